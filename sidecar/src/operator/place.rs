//! Where a listener is, and whether a secret may go there.
//!
//! A token goes over TLS, or to this machine; a plain connection to another one would show it to whoever
//! listens on the way.

use std::fmt;

use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{OperatorError, show::visible};
use crate::outbound;

/// The address of a listener: scheme, host, port, and what stands before every path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    scheme: Scheme,
    authority: Authority,
    prefix: String,
}

impl Place {
    /// Reads the URL `text`, which `flag` gave.
    ///
    /// # Errors
    ///
    /// Wrong usage. A URL that may hold a password is not repeated.
    pub(super) fn parse(flag: &str, text: &str) -> Result<Self, OperatorError> {
        let wrong = |why: &str| OperatorError::Usage(format!("{flag}: {why}"));
        if text.contains('@') {
            return Err(wrong(
                "may hold no user or password; the token comes from the variable that --token-env names",
            ));
        }
        let form = || {
            wrong(&format!("write http://HOST:PORT or https://HOST:PORT, not `{}`", visible(text)))
        };
        let parts = text.parse::<Uri>().map_err(|_| form())?.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(form());
        };
        if ![Scheme::HTTP, Scheme::HTTPS].contains(&scheme) || authority.host().is_empty() {
            return Err(form());
        }
        let path = parts.path_and_query;
        if text.contains('#') || path.as_ref().is_some_and(|path| path.query().is_some()) {
            return Err(wrong("may hold no query and no fragment"));
        }
        let prefix = path.map(|path| path.path().trim_end_matches('/').to_owned());
        Ok(Self { scheme, authority, prefix: prefix.unwrap_or_default() })
    }

    /// Returns this place without the path `suffix` at its end: `…/readyz` is a way to name a listener.
    pub(super) fn without(mut self, suffix: &str) -> Self {
        if let Some(prefix) = self.prefix.strip_suffix(suffix) {
            self.prefix = prefix.to_owned();
        }
        self
    }

    /// Returns the URI of `path`, which begins with a slash and is encoded.
    pub(super) fn uri(&self, path: &str) -> Result<Uri, OperatorError> {
        let whole: Result<PathAndQuery, _> = format!("{}{path}", self.prefix).parse();
        let whole =
            whole.map_err(|_| OperatorError::Usage("what is asked for is too long".into()))?;
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(whole);
        Ok(uri.build().expect("all three parts are there"))
    }

    /// Returns whether connections to it are encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Returns whether nobody else reads what is sent there.
    pub(super) fn keeps_secrets(&self) -> bool {
        self.is_encrypted() || outbound::is_this_machine(self.authority.host())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_where_its_url_says() {
        for (text, shown, uri) in [
            (
                "http://127.0.0.1:9900",
                "http://127.0.0.1:9900",
                "http://127.0.0.1:9900/agents?page=1",
            ),
            (
                "https://merit.internal/",
                "https://merit.internal",
                "https://merit.internal/agents?page=1",
            ),
            ("https://h:1/a/b/", "https://h:1/a/b", "https://h:1/a/b/agents?page=1"),
            ("http://[::1]:9900", "http://[::1]:9900", "http://[::1]:9900/agents?page=1"),
        ] {
            let place = Place::parse("--admin", text).unwrap();
            assert_eq!(place.to_string(), shown);
            assert_eq!(place.uri("/agents?page=1").unwrap().to_string(), uri);
        }
        let probe = Place::parse("--url", "http://h:1/x/readyz").unwrap().without("/readyz");
        assert_eq!(probe.to_string(), "http://h:1/x");
    }

    #[test]
    fn what_is_no_listener_is_refused_and_no_password_repeated() {
        for text in [
            "",
            "127.0.0.1:9900",
            "/agents",
            "ftp://h",
            "http://",
            "http://h?x=1",
            "http://h/#x",
            "http://h\u{1b}[2J",
        ] {
            let error = Place::parse("--admin", text).unwrap_err();
            assert!(
                error.is_usage() && error.to_string().starts_with("--admin: "),
                "{text}: {error}"
            );
            assert!(!error.to_string().contains('\u{1b}'), "{error}");
        }
        let error = Place::parse("--admin", "http://ann:hunter2@h:9900").unwrap_err().to_string();
        assert!(!error.contains("hunter2") && error.contains("--token-env"), "{error}");
    }

    #[test]
    fn only_tls_and_this_machine_keep_secrets() {
        let keeps = |text| Place::parse("--admin", text).unwrap().keeps_secrets();
        for text in [
            "http://127.0.0.1:1",
            "http://127.9.9.9",
            "http://LOCALHOST:1",
            "http://[::1]",
            "https://h",
        ] {
            assert!(keeps(text), "{text}");
        }
        for text in [
            "http://h",
            "http://10.0.0.1",
            "http://localhost.evil",
            "http://[::2]",
            "http://0.0.0.0",
            "http://127.0.0.1.evil",
        ] {
            assert!(!keeps(text), "{text}");
        }
    }
}
