//! The `[bus.schema_registry]` table.

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri, uri::Scheme};
use rustls::{ClientConfig, RootCertStore};

use crate::{
    bus::{BusError, duration},
    outbound::{self, is_this_machine},
    secret::{Address, File, Secret, Variable},
};

/// What is wrong with this table below a bus of another kind.
pub(in crate::bus) const KAFKA_ALONE: &str =
    "is for kind = \"kafka\" alone: remove it, or carry ratings over Kafka";
/// The longest name of a subject, in bytes: a topic's and a suffix.
const SUBJECT_MAX: usize = 300;

/// Where the registry is, and what to ask it.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `https://…` or `http://…`, with the path under which `/subjects` and `/schemas` are.
    pub url: Address,
    /// The user; without one nobody logs in, unless there is a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The environment variable that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_env: Option<Variable>,
    /// The file that holds the password; a line break at its end is no part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<File>,
    /// The environment variable that holds a bearer token, instead of user and password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<Variable>,
    /// The file that holds a bearer token; a line break at its end is no part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<File>,
    /// PEM file of the only authorities that may vouch for `url`; absent: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// How long one answer may take, 100ms..=1m; 2s, as the registry answers from memory.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// The subject of our schema; absent: `<topic>-value`, as Confluent's clients name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Whether we register our schema when it is not there; if not, somebody else must have.
    pub register: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Address::from(""),
            username: None,
            password_env: None,
            password_file: None,
            token_env: None,
            token_file: None,
            ca_file: None,
            timeout: Duration::from_secs(2),
            subject: None,
            register: true,
        }
    }
}

/// How to reach the registry and get in.
pub(super) struct Plan {
    /// Without a slash at its end.
    pub(super) base: String,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) tls: ClientConfig,
}

/// A key below `schema_registry`, as [`BusError::Config`] names it, and what is wrong with it.
type Fault = (&'static str, String);

impl Config {
    /// Adds every fault of the table at `path` to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        for (key, problem) in self.faults() {
            let key = key.strip_prefix("schema_registry.").unwrap_or(key);
            faults.push(format!("{path}.{key}: {problem}"));
        }
    }

    /// Returns the subject of the schema of `topic`.
    #[must_use]
    pub fn subject(&self, topic: &str) -> String {
        self.subject.clone().unwrap_or_else(|| format!("{topic}-value"))
    }

    /// Returns true when something is shown to the registry that others must not see.
    fn logs_in(&self) -> bool {
        self.username.is_some() || self.token_env.is_some() || self.token_file.is_some()
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = Vec::new();
        let mut expect = |holds: bool, key, problem: String| {
            if !holds {
                faults.push((key, problem));
            }
        };
        if let Err((key, problem)) = self.uri() {
            expect(false, key, problem);
        }
        let with_user = self.password_env.is_some() != self.password_file.is_some();
        let token = self.token_env.is_some() || self.token_file.is_some();
        let one = "set it or the other, one of them".to_owned();
        match &self.username {
            Some(name) => {
                let plain =
                    !name.is_empty() && !name.contains(|c: char| c == ':' || c.is_control());
                // RFC 7617 section 2.
                expect(plain, "schema_registry.username", "must not be empty or hold a `:`".into());
                let problem = "set it or password_file with username, one of them".to_owned();
                expect(with_user, "schema_registry.password_env", problem);
                let problem = "has no effect beside username: remove one of them".to_owned();
                expect(!token, "schema_registry.token_env", problem);
            }
            None => {
                let password = self.password_env.is_some() || self.password_file.is_some();
                let problem = "must be set with a password".to_owned();
                expect(!password, "schema_registry.username", problem);
            }
        }
        let both = self.token_env.is_some() && self.token_file.is_some();
        expect(!both, "schema_registry.token_env", one);
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(60));
        let timeout = (least..=most).contains(&self.timeout);
        expect(timeout, "schema_registry.timeout", "must be 100ms..=1m".to_owned());
        let subject = self.subject.as_ref().is_none_or(|subject| {
            (1..=SUBJECT_MAX).contains(&subject.len()) && !subject.contains(char::is_control)
        });
        let problem = format!("must be 1 to {SUBJECT_MAX} bytes without control characters");
        expect(subject, "schema_registry.subject", problem);
        faults
    }

    fn uri(&self) -> Result<Uri, Fault> {
        let key = "schema_registry.url";
        let form = "must be https://host[:port][/path], or http://";
        let fault = |problem: &str| (key, problem.to_owned());
        let uri: Uri = self.url.parse().map_err(|_| fault(form))?;
        let authority = uri.authority().ok_or_else(|| fault(form))?;
        if authority.as_str().contains('@') {
            return Err(fault("must hold no user and no password: they have keys of their own"));
        }
        if uri.query().is_some() {
            return Err(fault("must have no query"));
        }
        match uri.scheme() {
            Some(scheme) if authority.host().is_empty() || *scheme == Scheme::HTTPS => {
                if authority.host().is_empty() { Err(fault(form)) } else { Ok(uri) }
            }
            Some(scheme) if *scheme == Scheme::HTTP => {
                if self.logs_in() && !is_this_machine(authority.host()) {
                    return Err(fault(
                        "must be https:// where a password or token is sent, or http:// to localhost, \
                         127.0.0.0/8 or [::1]: others could read it",
                    ));
                }
                if self.ca_file.is_some() {
                    let problem = "has no effect with http://: remove it".to_owned();
                    return Err(("schema_registry.ca_file", problem));
                }
                Ok(uri)
            }
            _ => Err(fault(form)),
        }
    }

    /// Returns how to reach the registry.
    ///
    /// # Errors
    ///
    /// The first fault, among them secrets and certificates that are not where they should be.
    pub(super) fn plan(&self) -> Result<Plan, BusError> {
        let config = |(key, problem)| BusError::Config { key, problem };
        if let Some(fault) = self.faults().into_iter().next() {
            return Err(config(fault));
        }
        let uri = self.uri().map_err(config)?;
        Ok(Plan {
            base: uri.to_string().trim_end_matches('/').to_owned(),
            authorization: self.authorization().map_err(config)?,
            tls: self.tls(uri.scheme() == Some(&Scheme::HTTPS)).map_err(config)?,
        })
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, Fault> {
        let read = |variable: &Option<Variable>, file: &Option<File>, keys: [&'static str; 2]| {
            let from_variable =
                |variable: &Variable| variable.read().map_err(|error| (keys[0], error.to_string()));
            let from_file =
                |file: &File| file.read_one().map_err(|error| (keys[1], error.to_string()));
            match (variable, file) {
                (Some(variable), _) => from_variable(variable).map(Some),
                (None, Some(file)) => from_file(file).map(Some),
                (None, None) => Ok(None::<Secret>),
            }
        };
        let keys = ["schema_registry.password_env", "schema_registry.password_file"];
        let password = read(&self.password_env, &self.password_file, keys)?;
        if let (Some(name), Some(password)) = (&self.username, password) {
            let pair = STANDARD.encode(format!("{name}:{}", password.expose()));
            return Ok(outbound::secret_field(&format!("Basic {pair}")));
        }
        let keys = ["schema_registry.token_env", "schema_registry.token_file"];
        let Some(token) = read(&self.token_env, &self.token_file, keys)? else { return Ok(None) };
        let key = if self.token_env.is_some() { keys[0] } else { keys[1] };
        let fault = || (key, "must hold a token of visible ASCII characters".to_owned());
        outbound::bearer(token.expose()).map(Some).ok_or_else(fault)
    }

    fn tls(&self, secure: bool) -> Result<ClientConfig, Fault> {
        let url = "schema_registry.url";
        let roots = match &self.ca_file {
            Some(file) => {
                let fault = |problem| ("schema_registry.ca_file", problem);
                outbound::authorities(file).map_err(fault)?
            }
            None if secure => outbound::system_roots().ok_or_else(|| {
                let none =
                    "this system trusts no authority: install certificates, or name a ca_file";
                (url, none.to_owned())
            })?,
            None => RootCertStore::empty(),
        };
        outbound::tls(roots).map_err(|problem| (url, problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn faults(json: &str) -> Vec<String> {
        let config: Config = serde_json::from_str(json).unwrap();
        let mut faults = Vec::new();
        config.validate("bus.schema_registry", &mut faults);
        faults
    }

    #[test]
    fn an_address_is_all_that_it_needs() {
        for url in ["https://h", "http://schema-registry:8081", "https://h/apis/ccompat/v7/"] {
            assert_eq!(faults(&format!(r#"{{"url":"{url}"}}"#)), [""; 0], "{url}");
        }
        let config: Config = serde_json::from_str(r#"{"url":"http://h/a/"}"#).unwrap();
        assert_eq!(config.plan().map(|plan| plan.base).unwrap(), "http://h/a");
        assert_eq!(config.subject("openclaw.ratings"), "openclaw.ratings-value");
    }

    #[test]
    fn every_fault_is_reported_with_its_path() {
        let found = faults(
            r#"{"url":"ftp://h","username":"a:b","token_env":"T_1","token_file":"t","timeout":"0s",
                "subject":""}"#,
        );
        for key in ["url", "username", "password_env", "token_env", "timeout", "subject"] {
            let path = format!("bus.schema_registry.{key}: ");
            assert!(found.iter().any(|fault| fault.starts_with(&path)), "{key}: {found:?}");
        }
        for (json, said) in [
            (r#"{}"#, "url: must be https://host"),
            (r#"{"url":"h:8081"}"#, "url: must be https://host"),
            (r#"{"url":"https://u:hunter2@h"}"#, "url: must hold no user"),
            (r#"{"url":"https://h/?k=hunter2"}"#, "url: must have no query"),
            (r#"{"url":"http://h","token_env":"T_1"}"#, "url: must be https:// where"),
            (r#"{"url":"http://h","ca_file":"ca.pem"}"#, "ca_file: has no effect"),
            (r#"{"url":"http://h","password_env":"P_1"}"#, "username: must be set"),
        ] {
            let found = faults(json);
            assert!(found.len() == 1 && found[0].contains(said), "{said}: {found:?}");
            assert!(!found[0].contains("hunter2"));
        }
        assert!(serde_json::from_str::<Config>(r#"{"password":"hunter2"}"#).is_err());
    }

    #[test]
    fn a_secret_gets_into_the_header_and_nowhere_else() {
        let file = std::env::temp_dir().join(format!("merit-registry-{}", std::process::id()));
        fs::write(&file, "hunter2\n").unwrap();
        let url = Address::from("http://localhost:1");
        let basic = Config {
            url: url.clone(),
            username: Some("Aladdin".to_owned()),
            password_file: Some(File::from(&file)),
            ..Config::default()
        };
        let bearer = Config { url, token_file: Some(File::from(&file)), ..Config::default() };
        let [with_basic, with_bearer] =
            [&basic, &bearer].map(|config| config.plan().unwrap().authorization.unwrap());
        fs::remove_file(&file).unwrap();
        assert_eq!(with_basic, "Basic QWxhZGRpbjpodW50ZXIy");
        assert_eq!(with_bearer, "Bearer hunter2");
        assert!(!format!("{basic:?} {with_basic:?} {with_bearer:?}").contains("hunter2"));
        let error = basic.plan().err().unwrap().to_string();
        assert!(error.starts_with("bus.schema_registry.password_file: cannot read"), "{error}");
    }
}
