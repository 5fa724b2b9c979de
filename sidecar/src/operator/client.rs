//! Asks one listener, bounded in time and size; what it refuses becomes an error with its own words.
//!
//! Redirects are not followed: no admin listener sends any, and a token goes where it was meant to.

use std::{error::Error, io, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::RootCertStore;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    OperatorError,
    args::{Reach, TOKEN_ENV},
    place::Place,
    show::visible,
};
use crate::{outbound, secret::Variable};

/// The longest answer that is read, in bytes: 500 agents are some 400 KiB.
const ANSWER_MAX: usize = 8 << 20;
/// The longest piece of an answer that is shown, in characters.
const DETAIL_MAX: usize = 2000;
/// Connections that nothing was asked on for so long are closed.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// A client of one listener.
#[derive(Clone, Debug)]
pub(super) struct Client {
    place: Place,
    token: Option<HeaderValue>,
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
}

impl Client {
    /// Returns a client of the admin listener that `reach` tells of.
    ///
    /// # Errors
    ///
    /// Wrong usage: no address, no token where one was named, or a token that others could read.
    pub(super) fn new(reach: &Reach) -> Result<Self, OperatorError> {
        let place = Place::parse("--admin", &reach.admin)?;
        let token = token(reach.token_env.as_deref())?;
        Self::with(place, token, reach)
    }

    /// Returns a client of the listener at `place`, which is shown no token.
    pub(super) fn without_token(place: Place, reach: &Reach) -> Result<Self, OperatorError> {
        Self::with(place, None, reach)
    }

    fn with(
        place: Place,
        token: Option<HeaderValue>,
        reach: &Reach,
    ) -> Result<Self, OperatorError> {
        if token.is_some() && !place.keeps_secrets() {
            let variable = reach.token_env.as_deref().map_or(TOKEN_ENV.into(), shown_name);
            return Err(OperatorError::Usage(format!(
                "the token in {variable} would go to {place} unencrypted: use https, or a tunnel \
                 (`ssh -L 9900:127.0.0.1:9900 HOST`) and http://127.0.0.1:9900, or unset {variable}"
            )));
        }
        let wrong = |why: String| OperatorError::Usage(format!("--ca-file: {why}"));
        let roots = match (&reach.ca_file, place.is_encrypted()) {
            (Some(file), _) => outbound::authorities(file).map_err(wrong)?,
            (None, true) => outbound::system_roots().ok_or_else(|| {
                wrong("this system trusts no certificate authority; name the one to trust".into())
            })?,
            (None, false) => RootCertStore::empty(),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(outbound::tls(roots).map_err(OperatorError::Failed)?)
            .https_or_http()
            .enable_http1()
            .build();
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        Ok(Self { place, token, http, timeout: reach.timeout })
    }

    /// Returns where it asks.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Returns the JSON at `path`.
    ///
    /// # Errors
    ///
    /// When nobody answers, or not with that.
    pub(super) async fn get(&self, path: &str) -> Result<Value, OperatorError> {
        self.send(Method::GET, path, None).await
    }

    /// Sends `body` to `path` and returns the JSON that comes back, null for none.
    ///
    /// # Errors
    ///
    /// When nobody answers, or with a refusal.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, OperatorError> {
        let (status, bytes) = self.ask(method, path, body).await?;
        if !status.is_success() {
            return Err(self.refusal(status, path, &bytes));
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| self.foreign(format!("{path} is no JSON")))
    }

    /// Returns `value`, which `path` gave, as what docs/admin.md says that it is.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        value: &Value,
    ) -> Result<T, OperatorError> {
        T::deserialize(value).map_err(|error| {
            let path = path.split('?').next().unwrap_or_default();
            self.foreign(format!("{path}: {}", visible(&error.to_string())))
        })
    }

    /// Returns the status and the body of an answer, whatever it is.
    ///
    /// # Errors
    ///
    /// When there is none in time, or a longer one than [`ANSWER_MAX`].
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), OperatorError> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.place.uri(path)?)
            .header(header::ACCEPT, "application/json, application/problem+json")
            .header(header::USER_AGENT, concat!("merit/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token.clone());
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).expect("the fields are constants or checked");
        let exchange = async {
            let answer = self.http.request(request).await.map_err(|error| self.away(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            let body = body.map_err(|error| {
                self.foreign(format!("its answer broke off: {}", visible(&error.to_string())))
            })?;
            Ok((status, body.to_bytes()))
        };
        let late = OperatorError::Late {
            place: self.place.to_string(),
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
        };
        timeout(self.timeout, exchange).await.unwrap_or(Err(late))
    }

    fn away(&self, error: &legacy::Error) -> OperatorError {
        let mut cause: &(dyn Error + 'static) = error;
        let (mut refused, mut tls) = (false, false);
        loop {
            let io = cause.downcast_ref::<io::Error>();
            refused |= io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            tls |= cause.is::<rustls::Error>();
            // What an `io::Error` wraps is its cause, though it is not its `source`.
            let inner =
                io.and_then(io::Error::get_ref).map(|error| error as &(dyn Error + 'static));
            match inner.or_else(|| cause.source()) {
                Some(deeper) => cause = deeper,
                None => break,
            }
        }
        let remedy = if refused {
            "nobody listens there: start merit with `[admin] listen`, or say where it is with --admin \
             or MERIT_ADMIN_URL"
        } else if tls {
            "name the authority of its certificate with --ca-file, and the host as the certificate has it"
        } else if error.is_connect() {
            "check --admin or MERIT_ADMIN_URL, and that this machine reaches it"
        } else {
            "is that a listener of merit, and is it http or https as given?"
        };
        let why = visible(&cause.to_string());
        OperatorError::Away { place: self.place.to_string(), why, remedy }
    }

    fn foreign(&self, why: String) -> OperatorError {
        OperatorError::Foreign { place: self.place.to_string(), why }
    }

    pub(super) fn refusal(&self, status: StatusCode, path: &str, body: &[u8]) -> OperatorError {
        let problem = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let Some(detail) = problem["detail"].as_str().or_else(|| problem["title"].as_str()) else {
            let path = path.split('?').next().unwrap_or_default();
            return self.foreign(format!("{path} is answered {status}"));
        };
        let faults = faults(&problem);
        // A detail may end in what is listed below it.
        let listed = faults.first().and_then(|first| detail.find(first.as_str()));
        let detail = listed.map_or(detail, |at| detail[..at].trim_end_matches([':', ' ']));
        let mut detail = visible(&detail.chars().take(DETAIL_MAX).collect::<String>());
        for fault in faults {
            detail.push_str("\n  ");
            detail.push_str(&visible(&fault.chars().take(DETAIL_MAX).collect::<String>()));
        }
        if status == StatusCode::UNAUTHORIZED {
            let remedy = match self.token {
                None => {
                    "; put the token that `[admin] token_env` names there into MERIT_ADMIN_TOKEN here"
                }
                Some(_) => "; the token here is another one than `[admin] token_env` names there",
            };
            detail.push_str(remedy);
        }
        OperatorError::Refused { status: status.as_u16(), detail }
    }
}

/// Returns every fault that `problem` lists beside its detail.
fn faults(problem: &Value) -> Vec<String> {
    let lists = ["faults", "errors"].iter().filter_map(|name| problem[name].as_array());
    let said = |fault: &Value| match fault.as_str() {
        Some(text) => text.to_owned(),
        None => match (fault["path"].as_str(), fault["detail"].as_str()) {
            (Some(path), Some(detail)) => format!("{path}: {detail}"),
            _ => fault.to_string(),
        },
    };
    lists.flatten().map(said).collect()
}

/// Returns the token in the environment; one that was named must be there.
fn token(named: Option<&str>) -> Result<Option<HeaderValue>, OperatorError> {
    let wrong = |why: String| OperatorError::Usage(format!("--token-env: {why}"));
    let read = Variable::from(named.unwrap_or(TOKEN_ENV)).read();
    let secret = match (read, named) {
        (Ok(secret), _) if !secret.expose().is_empty() => secret,
        (Err(unset), Some(_)) => return Err(wrong(unset.to_string())),
        (Ok(_), Some(name)) => return Err(wrong(format!("{} is empty", shown_name(name)))),
        (_, None) => return Ok(None),
    };
    let field = outbound::bearer(secret.expose()).ok_or_else(|| {
        let name = named.map_or(TOKEN_ENV.to_owned(), shown_name);
        wrong(format!("{name} holds what no header carries; a token is visible ASCII"))
    })?;
    Ok(Some(field))
}

/// Returns the name of a variable, unless it may be the token itself.
fn shown_name(name: &str) -> String {
    format!("{:?}", Variable::from(name)).trim_matches('"').to_owned()
}
