//! Descriptors as requests: what admission needs of a request is put together from entries.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use futures_util::future::Either;
use http::{HeaderName, HeaderValue, Method, Request, Uri, header, uri::PathAndQuery};
use std::future::{Ready, ready};
use tokio::time::Instant;
use tower_merit::{
    AgentId, Caller, Cost, Identify, PeerAddr,
    identity::{IdentityError, Selector},
};

use super::{
    Config, Identified,
    proto::{Entry, RateLimitDescriptor},
};

/// The entry that Envoy's action `remote_address` makes.
const ADDRESS_KEY: &str = "remote_address";

/// The most entries of a descriptor: a proxy's configuration makes a handful.
const ENTRIES_MAX: usize = 64;

/// What a descriptor has to hold to be about an agent.
#[derive(Clone, Debug)]
enum Proof {
    /// The entry that names it.
    Named,
    /// A field of the request.
    Field(HeaderName),
    /// The address.
    Address,
}

/// How descriptors become requests.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    config: Config,
    proof: Proof,
}

/// For how many requests one counts.
#[derive(Clone, Copy)]
pub(super) struct Hits(pub(super) u64);

/// What the proxy calls the agent.
#[derive(Clone)]
struct Name(Option<AgentId>);

impl Reader {
    /// `selector` is where agents stand in requests.
    pub(super) fn new(config: &Config, selector: &Selector) -> Self {
        let proof = match (config.identify, selector) {
            (Identified::Entry, _) => Proof::Named,
            (Identified::Request, Selector::Header(name)) => Proof::Field(name.clone()),
            (Identified::Request, Selector::Peer) => Proof::Address,
            (Identified::Request, _) => Proof::Field(header::AUTHORIZATION),
        };
        Self { config: config.clone(), proof }
    }

    /// Returns whether limits of `domain` are kept here.
    pub(super) fn keeps(&self, domain: &str) -> bool {
        self.config.domain.as_deref().is_none_or(|kept| kept == domain)
    }

    /// Returns the request that `descriptor` describes and that counts for `hits`; nothing when it is not about an
    /// agent.
    ///
    /// # Errors
    ///
    /// With the entry that no request could have.
    pub(super) fn request<'a>(
        &self,
        descriptor: &'a RateLimitDescriptor,
        hits: u64,
    ) -> Result<Option<Request<()>>, &'a str> {
        let entries = &descriptor.entries;
        if !entries.iter().any(|entry| self.proves(entry)) {
            return Ok(None);
        }
        let mut request = Request::new(());
        let own = descriptor.hits_addend.map_or(hits, |own| own.value);
        let hits = if descriptor.is_negative_hits { 0 } else { own };
        request.extensions_mut().insert(Hits(hits));
        for (index, entry) in entries.iter().enumerate() {
            // Whoever can add a second one must not be able to choose.
            let twice = self.is_one(&entry.key)
                && entries[..index].iter().any(|before| before.key == entry.key);
            if twice || index >= ENTRIES_MAX {
                return Err(&entry.key);
            }
            self.put(entry, &mut request).ok_or(entry.key.as_str())?;
        }
        Ok(Some(request))
    }

    /// Returns whether there is one of what the entry `key` says.
    fn is_one(&self, key: &str) -> bool {
        let Config { agent_key, path_key, method_key, .. } = &self.config;
        let named = matches!(self.proof, Proof::Named) && key == agent_key;
        named || key == path_key || key == method_key || key == ADDRESS_KEY
    }

    fn proves(&self, entry: &Entry) -> bool {
        match &self.proof {
            Proof::Named => entry.key == self.config.agent_key,
            Proof::Field(name) => entry.key.eq_ignore_ascii_case(name.as_str()),
            Proof::Address => entry.key == ADDRESS_KEY,
        }
    }

    /// Returns nothing when no request can have what `entry` says.
    fn put(&self, entry: &Entry, request: &mut Request<()>) -> Option<()> {
        let Entry { key, value } = entry;
        if *key == self.config.path_key {
            let path =
                value.starts_with(b"/").then(|| PathAndQuery::from_maybe_shared(value.clone()));
            *request.uri_mut() = Uri::from(path?.ok()?);
        } else if *key == self.config.method_key {
            *request.method_mut() = Method::from_bytes(value).ok()?;
        } else if matches!(self.proof, Proof::Named) && *key == self.config.agent_key {
            // As a token may claim it: ids of addresses and API keys are nobody's to name.
            let name = text(value).and_then(|name| AgentId::claimed(name).ok());
            request.extensions_mut().insert(Name(name));
        } else if key == ADDRESS_KEY {
            let address: IpAddr = text(value)?.parse().ok()?;
            request.extensions_mut().insert(PeerAddr::from(SocketAddr::new(address, 0)));
        } else if let Ok(name) = HeaderName::from_bytes(key.as_bytes())
            // It would choose the form of refusals, which here is the protocol's.
            && name != header::CONTENT_TYPE
        {
            // Whether one may stand twice is decided by who reads it.
            let value = HeaderValue::from_maybe_shared(value.clone()).ok()?;
            request.headers_mut().append(name, value);
        }
        Some(())
    }
}

fn text(value: &Bytes) -> Option<&str> {
    std::str::from_utf8(value).ok()
}

/// Returns the cost of a request that costs `tokens` when it counts once.
#[must_use]
pub fn cost(tokens: u64) -> Cost {
    Cost::by(move |head| {
        head.extensions.get::<Hits>().map_or(tokens, |hits| tokens.saturating_mul(hits.0))
    })
}

/// Who asks: whom the proxy names, or who proves it to `I`.
#[derive(Clone, Debug)]
pub struct Callers<I>(Option<I>);

impl<I> Callers<I> {
    /// Returns an identity that believes what the proxy says.
    #[must_use]
    pub fn named() -> Self {
        Self(None)
    }

    /// Returns an identity that asks `identity`.
    #[must_use]
    pub fn proved_to(identity: I) -> Self {
        Self(Some(identity))
    }
}

fn named<B>(request: &Request<B>) -> Result<Caller, IdentityError> {
    let name = request.extensions().get::<Name>().and_then(|name| name.0.clone());
    let reason = "what the proxy names is no agent id";
    name.map(Caller::from).ok_or(IdentityError::Unauthenticated { reason, presented: true })
}

impl<I: Identify> Identify for Callers<I> {
    type Future = Either<Ready<Result<Caller, IdentityError>>, I::Future>;

    fn identify<B>(&self, request: &Request<B>) -> Self::Future {
        match &self.0 {
            None => Either::Left(ready(named(request))),
            Some(identity) => Either::Right(identity.identify(request)),
        }
    }

    fn identify_now<B>(
        &self,
        request: &Request<B>,
        now: Instant,
    ) -> Option<Result<Caller, IdentityError>> {
        match &self.0 {
            None => Some(named(request)),
            Some(identity) => identity.identify_now(request, now),
        }
    }
}
