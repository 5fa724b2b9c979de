//! One question to the registry, and what its answer means (Confluent's documentation, "Schema Registry API
//! Reference").

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use metrics::counter;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::timeout;

use super::config::{Config, Plan};
use crate::{
    bus::{BusError, Cause},
    rating::confluent::SchemaId,
};

/// The type of what we send, and what we take.
const CONTENT: &str = "application/vnd.schemaregistry.v1+json";
const ACCEPT: &str = "application/vnd.schemaregistry.v1+json, application/json";
/// The longest answer, in bytes: a schema of a quarter of this is a large one.
const ANSWER_MAX: usize = 1 << 20;
/// How much of what the registry says an error repeats, in characters.
const SAID_MAX: usize = 300;
/// Connections that nobody has used for so long are closed.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// What stands in a path as it is (RFC 3986 section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The registry's own codes of what it does not know.
const NO_SUBJECT: u32 = 40401;
const NO_VERSION: u32 = 40402;
const NO_SCHEMA: u32 = 40403;

/// Why the registry gave no answer that helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Nothing came back.
    #[error("schema registry at {address} cannot be reached")]
    Away {
        /// Where it should be.
        address: String,
        /// What the client said.
        #[source]
        source: Cause,
    },
    /// It took too long.
    #[error("schema registry at {address} did not answer within {timeout_ms} ms")]
    Late {
        /// Where it should be.
        address: String,
        /// How long was waited.
        timeout_ms: u128,
    },
    /// It answered something that is no answer to the question.
    #[error("schema registry at {address} answers {status}{said}{}", remedy(*.status))]
    Answer {
        /// Where it is.
        address: String,
        /// The status.
        status: StatusCode,
        /// What it said about it, with a colon before it.
        said: String,
    },
    /// The answer is not in the API's form.
    #[error("schema registry at {address} answers what is no answer of its API: {problem}")]
    Malformed {
        /// Where it is.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// Our schema breaks the rules of its subject.
    #[error(
        "subject {subject} of the schema registry refuses our schema as incompatible with what is registered there{said}; \
         name another in bus.schema_registry.subject, or change the subject's compatibility"
    )]
    Incompatible {
        /// The subject.
        subject: String,
        /// What the registry said, with a colon before it.
        said: String,
    },
    /// Our schema is not there, and we may not register it.
    #[error(
        "subject {subject} of the schema registry does not hold our schema; register it there, or set \
         bus.schema_registry.register = true"
    )]
    Unregistered {
        /// The subject.
        subject: String,
    },
}

fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; check who bus.schema_registry logs in as, and what that one may do"
        }
        StatusCode::NOT_FOUND => "; check the path in bus.schema_registry.url",
        StatusCode::UNPROCESSABLE_ENTITY => {
            "; check that it takes this kind of schema, and under this subject"
        }
        _ if status.is_redirection() => {
            "; redirects are not followed, set bus.schema_registry.url to their target"
        }
        _ => "",
    }
}

/// What the registry says of a schema.
#[derive(Debug, Deserialize)]
pub(super) struct Described {
    pub(super) schema: String,
    /// Absent: Avro, the first that there was.
    #[serde(rename = "schemaType", default = "avro")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) references: Option<Vec<serde::de::IgnoredAny>>,
}

fn avro() -> String {
    "AVRO".to_owned()
}

#[derive(Deserialize)]
struct Named {
    id: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    error_code: u32,
    message: String,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Asked<'a> {
    schema_type: &'a str,
    schema: &'a str,
}

/// Asks the registry. It fails once; whoever asks asks again.
pub(super) struct Client {
    plan: Plan,
    timeout: Duration,
    http: Http<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    pub(super) fn new(config: &Config) -> Result<Self, BusError> {
        let plan = config.plan()?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(plan.tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = Http::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self { plan, timeout: config.timeout, http })
    }

    pub(super) fn address(&self) -> &str {
        &self.plan.base
    }

    /// Returns the schema with this id; nothing when the registry says that there is none.
    pub(super) async fn schema(&self, id: SchemaId) -> Result<Option<Described>, RegistryError> {
        let (status, body) = self.ask(Method::GET, &format!("/schemas/ids/{id}"), None).await?;
        match status {
            StatusCode::OK => self.parse(&body).map(Some),
            // A page that is not there is no word about a schema.
            StatusCode::NOT_FOUND if said(&body).error_code == NO_SCHEMA => Ok(None),
            _ => Err(self.refused(status, &body)),
        }
    }

    /// Registers a schema; returns its id, which is the old one where it was registered before.
    pub(super) async fn register(
        &self,
        subject: &str,
        kind: &str,
        schema: &str,
    ) -> Result<SchemaId, RegistryError> {
        let path = format!("/subjects/{}/versions", utf8_percent_encode(subject, SEGMENT));
        let (status, body) = self.ask(Method::POST, &path, Some((kind, schema))).await?;
        match status {
            StatusCode::OK => self.parse(&body).map(|Named { id }| SchemaId(id)),
            StatusCode::CONFLICT => Err(RegistryError::Incompatible {
                subject: subject.to_owned(),
                said: shown(&said(&body).message),
            }),
            _ => Err(self.refused(status, &body)),
        }
    }

    /// Returns the id of a schema that the subject holds; nothing when it does not.
    pub(super) async fn look_up(
        &self,
        subject: &str,
        kind: &str,
        schema: &str,
    ) -> Result<Option<SchemaId>, RegistryError> {
        let path = format!("/subjects/{}", utf8_percent_encode(subject, SEGMENT));
        let (status, body) = self.ask(Method::POST, &path, Some((kind, schema))).await?;
        let known = [NO_SUBJECT, NO_VERSION, NO_SCHEMA];
        match status {
            StatusCode::OK => self.parse(&body).map(|Named { id }| Some(SchemaId(id))),
            StatusCode::NOT_FOUND if known.contains(&said(&body).error_code) => Ok(None),
            _ => Err(self.refused(status, &body)),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        schema: Option<(&str, &str)>,
    ) -> Result<(StatusCode, Bytes), RegistryError> {
        let body = schema.map_or_else(Vec::new, |(schema_type, schema)| {
            let asked = Asked { schema_type, schema };
            serde_json::to_vec(&asked).expect("two texts are JSON")
        });
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.plan.base))
            .header(header::ACCEPT, ACCEPT)
            .header(header::USER_AGENT, concat!("merit/", env!("CARGO_PKG_VERSION")));
        if schema.is_some() {
            request = request.header(header::CONTENT_TYPE, CONTENT);
        }
        if let Some(authorization) = &self.plan.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::from(body)).expect("the address was checked");
        let away = |source| RegistryError::Away { address: self.plan.base.clone(), source };
        let answer = async {
            let answer = self.http.request(request).await.map_err(|error| away(error.into()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            Ok((status, body.map_err(away)?.to_bytes()))
        };
        let outcome = timeout(self.timeout, answer).await.unwrap_or_else(|_| {
            let timeout_ms = self.timeout.as_millis();
            Err(RegistryError::Late { address: self.plan.base.clone(), timeout_ms })
        });
        let counted = match &outcome {
            Ok((status, _)) if status.is_success() => "ok",
            Ok(_) => "refused",
            Err(_) => "failed",
        };
        counter!("merit_schema_registry_requests_total", "outcome" => counted).increment(1);
        outcome
    }

    fn parse<'a, T: Deserialize<'a>>(&self, body: &'a [u8]) -> Result<T, RegistryError> {
        serde_json::from_slice(body).map_err(|error| RegistryError::Malformed {
            address: self.plan.base.clone(),
            problem: error.to_string(),
        })
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> RegistryError {
        let address = self.plan.base.clone();
        RegistryError::Answer { address, status, said: shown(&said(body).message) }
    }
}

/// Returns what an error says; nothing of a body that is no error of the API.
fn said(body: &[u8]) -> Said {
    serde_json::from_slice(body).unwrap_or_default()
}

/// Returns a text of the registry as an error may repeat it, with a colon before it.
fn shown(text: &str) -> String {
    let start: String = text.chars().take(SAID_MAX).flat_map(char::escape_debug).collect();
    if start.is_empty() { start } else { format!(": {start}") }
}
