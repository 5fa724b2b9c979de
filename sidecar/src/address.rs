//! Addresses that may hold a secret: user and password, or a query.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Serialize, Serializer};

/// An address as the operator wrote it. Shown, in `Debug` as in `merit check-config`, without user,
/// password and query.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Address(String);

impl Address {
    fn shown(&self) -> String {
        let (scheme, rest) = match self.0.split_once("://") {
            Some((scheme, rest)) => (format!("{scheme}://"), rest),
            None => (String::new(), &*self.0),
        };
        // First whoever it is, who may have a `?` in the password; then the query.
        let (user, rest) = match rest.rsplit_once('@') {
            Some((_, rest)) => ("***@", rest),
            None => ("", rest),
        };
        match rest.split_once('?') {
            Some((host, _)) => format!("{scheme}{user}{host}?***"),
            None => format!("{scheme}{user}{rest}"),
        }
    }
}

impl From<&str> for Address {
    fn from(address: &str) -> Self {
        Self(address.to_owned())
    }
}

impl Deref for Address {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Sentinel};

    #[test]
    fn neither_debug_output_nor_json_shows_what_may_be_a_secret() {
        let mut config = Config::default();
        config.store.url = Some("redis://user:hunter2@a:1/0?x=hunter2".into());
        config.store.cluster = vec!["redis://:?hunter2@b:2".into(), "u:hunter2@c".into()];
        let urls = vec!["rediss://u:p@hunter2@d:3".into()];
        config.store.sentinel = Some(Sentinel { master: "m".to_owned(), urls });
        config.identity.jwks_url = Some("https://id.example.com/keys?token=hunter2".into());
        let json = serde_json::to_string(&config).unwrap();
        for shown in [format!("{config:?}"), format!("{:?}", config.store), json] {
            assert!(!shown.contains("hunter2"), "{shown}");
            for address in [
                "\"redis://***@a:1/0?***\"",
                "\"redis://***@b:2\"",
                "\"***@c\"",
                "\"rediss://***@d:3\"",
            ] {
                assert!(shown.contains(address), "{address} is missing from {shown}");
            }
        }
        assert_eq!(&**config.store.url.as_ref().unwrap(), "redis://user:hunter2@a:1/0?x=hunter2");
    }
}
