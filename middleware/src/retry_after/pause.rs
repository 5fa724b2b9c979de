//! Pauses that requests of one agent to one origin share.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
};

use http::{HeaderName, Request, header};
use lru::LruCache;
use tokio::time::Instant;

/// The most pauses that one layer remembers.
pub const PAUSES_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not 0");

/// The fields whose values say which agent asks, unless configured.
pub(super) const CREDENTIALS: [HeaderName; 2] =
    [header::AUTHORIZATION, HeaderName::from_static("x-api-key")];

/// Whose pause: a hash, so that no credential is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Whose(u64);

/// Until when, for each.
#[derive(Debug)]
pub(super) struct Pauses {
    credentials: Box<[HeaderName]>,
    until: Mutex<LruCache<Whose, Instant>>,
    hasher: RandomState,
}

impl Pauses {
    /// Returns pauses of agents that are told apart by these fields.
    pub(super) fn new(credentials: impl IntoIterator<Item = HeaderName>) -> Self {
        Self {
            credentials: credentials.into_iter().collect(),
            until: Mutex::new(LruCache::new(PAUSES_MAX)),
            hasher: RandomState::new(),
        }
    }

    /// Returns whose pause concerns `request`: its origin (of the URI, or `Host`) and credentials.
    pub(super) fn whose<B>(&self, request: &Request<B>) -> Whose {
        let mut hasher = self.hasher.build_hasher();
        let uri = request.uri();
        uri.scheme_str().unwrap_or_default().hash(&mut hasher);
        match uri.authority() {
            Some(authority) => authority.as_str().to_ascii_lowercase().hash(&mut hasher),
            None => request.headers().get(header::HOST).hash(&mut hasher),
        }
        for (number, field) in self.credentials.iter().enumerate() {
            for credential in request.headers().get_all(field) {
                (number, credential).hash(&mut hasher);
            }
        }
        Whose(hasher.finish())
    }

    /// Returns until when there is a pause, if there is one at `now`.
    pub(super) fn until(&self, whose: Whose, now: Instant) -> Option<Instant> {
        let mut known = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&whose).copied() {
            Some(until) if until > now => Some(until),
            Some(_) => {
                known.pop(&whose);
                None
            }
            None => None,
        }
    }

    /// Notes a pause until `until`; it never shortens one.
    pub(super) fn extend(&self, whose: Whose, until: Instant) {
        let mut known = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let later = known.get(&whose).is_none_or(|before| *before < until);
        if later {
            known.put(whose, until);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn whose(pauses: &Pauses, uri: &str, fields: &[(&str, &str)]) -> Whose {
        let mut request = Request::get(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        pauses.whose(&request.body(()).unwrap())
    }

    #[test]
    fn a_pause_is_of_one_origin_and_one_credential() {
        let pauses = Pauses::new(CREDENTIALS);
        let own = ("authorization", "Bearer a");
        let first = whose(&pauses, "http://h:1/a", &[own]);
        assert_eq!(first, whose(&pauses, "http://H:1/b?c", &[own, ("x-other", "y")]));
        for (uri, fields) in [
            ("https://h:1/a", &[own][..]),
            ("http://h:2/a", &[own]),
            ("http://h:1/a", &[("authorization", "Bearer b")]),
            ("http://h:1/a", &[]),
            ("http://h:1/a", &[own, ("x-api-key", "k")]),
            ("http://h:1/a", &[("x-api-key", "Bearer a")]),
            ("/a", &[own, ("host", "h:1")]),
        ] {
            assert_ne!(first, whose(&pauses, uri, fields), "{uri} {fields:?}");
        }
        let by_host = |host| whose(&pauses, "/a", &[own, ("host", host)]);
        assert_eq!(by_host("h"), by_host("h"));
        assert_ne!(by_host("h"), by_host("g"));
    }

    #[test]
    fn the_fields_that_tell_agents_apart_are_the_named_ones() {
        let pauses = Pauses::new([HeaderName::from_static("x-agent")]);
        let of = |fields: &[(&str, &str)]| whose(&pauses, "http://h/", fields);
        assert_ne!(of(&[("x-agent", "a")]), of(&[("x-agent", "b")]));
        assert_eq!(of(&[("x-agent", "a")]), of(&[("x-agent", "a"), ("x-api-key", "k")]));
    }

    #[test]
    fn a_pause_ends_is_never_shortened_and_is_one_of_a_bounded_number() {
        let (pauses, now) = (Pauses::new(CREDENTIALS), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        pauses.extend(Whose(1), after(5));
        pauses.extend(Whose(1), after(3));
        assert_eq!(pauses.until(Whose(1), now), Some(after(5)));
        assert_eq!(pauses.until(Whose(1), after(5)), None);
        for number in 0..2 * PAUSES_MAX.get() as u64 {
            pauses.extend(Whose(number), after(5));
        }
        assert_eq!(pauses.until.lock().unwrap().len(), PAUSES_MAX.get());
    }
}
