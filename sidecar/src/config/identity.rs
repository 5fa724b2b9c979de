//! The `[identity]` table: who is asking, for gateway and ingest.
//!
//! 1. The selector says who identifies the agents of the gateway: tokens, API keys or addresses.
//!    What belongs to another selector is a fault, not ignored.
//! 2. Ratings are posted with tokens, whatever the selector: with `header.…` or `peer.ip` the keys of
//!    tokens may be configured beside it, and without them only the API keys of `[ingest]` may rate.
//!    The API keys of agents are not raters: an agent would rate itself.

use std::{
    future::{Future, Ready},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower_merit::{
    ApiKeyIdentity, Caller, Identify, JwtIdentity, JwtVerifier, PeerIdentity,
    identity::{
        ApiKeys, ClaimPath, IdentityConfigError, IdentityError, Selector,
        jwt::{Algorithm, JwksUrl, Verifying},
        peer::{ForwardedField, Network},
    },
};

use super::{Address, Config, cause, read, with_cause};
use crate::{
    bus::duration,
    secret::{File, Variable},
};

/// `[identity]`: one for ingest and gateway.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// What says who is asking: `jwt.claims.<path>` (a name that holds dots is written `["…"]`),
    /// `header.<name>` (API keys) or `peer.ip`; the bucket's own selector when absent, and
    /// `jwt.claims.agent_id` when neither says.
    pub key_selector: Option<String>,
    /// The algorithms that tokens are signed with: HS256/384/512 with a secret; RS256/384/512,
    /// PS256/384/512, ES256/384 or EdDSA with a public key, of one family; with a key set any but
    /// HS*, and all of them unless named.
    pub algorithms: Vec<String>,
    /// Address of a JSON Web Key Set: `https://…`, or `http://` to this machine.
    pub jwks_url: Option<Address>,
    /// File with a JSON Web Key Set, read again at every refresh.
    pub jwks_file: Option<PathBuf>,
    /// PEM file of the only authorities that may vouch for `jwks_url`; the system's when absent.
    pub jwks_ca_file: Option<PathBuf>,
    /// How often the key set is fetched anew; default 5m: a key is usually announced hours before
    /// it signs, and an unknown key id fetches at once anyway.
    pub jwks_refresh: Option<String>,
    /// How long keys serve after the last good fetch; default 1h: longer than an issuer's outage
    /// should last, shorter than a revoked key should serve.
    pub jwks_stale: Option<String>,
    /// PEM file of the public key.
    pub public_key_file: Option<PathBuf>,
    /// Environment variable with the secret, at least as long as the hash, for HS*.
    pub secret_env: Option<Variable>,
    /// File with the secret; a line break at its end is no part of it.
    pub secret_file: Option<File>,
    /// What `iss` must be.
    pub issuer: Option<String>,
    /// What `aud` must be or contain.
    pub audience: Option<String>,
    /// Clock difference to the issuer that is forgiven; default 5s.
    pub leeway: Option<String>,
    /// The claim that names the user for whom an agent acts, like `sub` beside
    /// `key_selector = "jwt.claims.act.sub"` (RFC 8693 section 4.1); no token names one
    /// unless set.
    pub rater_claim: Option<String>,
    /// File of API keys for `header.<name>`, a line `name:sha256` each; `merit api-key` makes them.
    pub api_keys_file: Option<File>,
    /// Networks of the proxies in front, for `peer.ip`: only they are believed about the peer.
    pub trusted_proxies: Vec<String>,
    /// The field that they write: `x-forwarded-for` (default) or `forwarded`.
    pub forwarded: Option<String>,
    /// How many bits of an IPv6 address count, for `peer.ip`; default 64: a host has that many
    /// addresses to change through.
    pub ipv6_prefix: Option<u8>,
}

const NAMES: &str = "HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or \
                     EdDSA";

/// The longest leeway that configuration may ask for.
const LEEWAY_MAX: Duration = Duration::from_secs(300);

impl Config {
    pub(super) fn selectors(&self) -> impl Iterator<Item = &str> {
        let own = self.identity.key_selector.as_deref();
        let buckets = self.bucket.iter().filter_map(|bucket| bucket.key_selector.as_deref());
        // `[identity]` decides when it says; buckets among themselves must agree either way.
        own.into_iter().take(1).chain(buckets.filter(move |_| own.is_none()))
    }

    /// Adds a fault when buckets name different selectors.
    pub(super) fn validate_selectors(&self, faults: &mut Vec<String>) {
        let selectors: std::collections::BTreeSet<&str> = self.selectors().collect();
        if selectors.len() > 1 {
            let all: Vec<&str> = selectors.into_iter().collect();
            faults.push(format!(
                "bucket.key_selector: all buckets share one selector, found `{}`",
                all.join("`, `")
            ));
        }
    }

    /// Returns what says who is asking.
    ///
    /// # Errors
    ///
    /// With the fault and its path.
    pub fn selector(&self) -> Result<Selector, String> {
        let text = self.selectors().next().unwrap_or("jwt.claims.agent_id");
        text.parse().map_err(|error| format!("identity.key_selector: {error}"))
    }

    /// Returns the claim that names the agent: the selector's, or `agent_id` when the selector is of
    /// another kind, for then the claim serves only to know an agent that rates itself.
    ///
    /// # Errors
    ///
    /// With the fault and its path.
    pub fn claim(&self) -> Result<ClaimPath, String> {
        match self.selector()? {
            Selector::Claim(path) => Ok(path),
            _ => Ok("agent_id".parse().expect("a plain name is a path")),
        }
    }

    /// Returns how tokens are verified, with the keys read from where the configuration says;
    /// nothing when none are configured and the selector needs none.
    ///
    /// # Errors
    ///
    /// With every fault and its path.
    pub fn tokens(&self) -> Result<Option<JwtIdentity>, Vec<String>> {
        let mut faults = Vec::new();
        let tokens = self.read_tokens(&mut faults);
        if faults.is_empty() { Ok(tokens) } else { Err(faults) }
    }

    fn read_tokens(&self, faults: &mut Vec<String>) -> Option<JwtIdentity> {
        let table = &self.identity;
        let needed = matches!(self.selector(), Ok(Selector::Claim(_)));
        let claim = note(self.claim(), faults);
        if !needed && !table.has_keys() {
            table.refuse_without_keys(faults);
            return None;
        }
        for (name, value) in [("issuer", &table.issuer), ("audience", &table.audience)] {
            if value.as_deref().is_none_or(str::is_empty) {
                faults.push(format!(
                    "identity.{name}: must be set: tokens for others must not pass here"
                ));
            }
        }
        let algorithms = note(table.parse_algorithms(), faults);
        let leeway = table.duration("leeway", &table.leeway, Duration::ZERO..=LEEWAY_MAX, faults);
        let identity = table.keys(algorithms.as_deref().unwrap_or_default(), faults);
        let mut identity = identity?.claim(claim?.as_str());
        if let Some(algorithms) = algorithms.filter(|algorithms| !algorithms.is_empty()) {
            identity = identity.algorithms(algorithms);
        }
        if let Some(path) = &table.rater_claim {
            match path.parse::<ClaimPath>() {
                Ok(_) => identity = identity.rater_claim(path),
                Err(error) => faults.push(format!("identity.rater_claim: {path:?} {error}")),
            }
        }
        if let Some(issuer) = &table.issuer {
            identity = identity.issuer(issuer);
        }
        if let Some(audience) = &table.audience {
            identity = identity.audience(audience);
        }
        if let Some(leeway) = leeway {
            identity = identity.leeway(leeway);
        }
        Some(identity)
    }

    /// Returns who identifies the agents of the gateway.
    ///
    /// # Errors
    ///
    /// With every fault and its path.
    ///
    /// # Panics
    ///
    /// Never: with a selector of claims there are tokens, or [`Config::tokens`] is an error.
    pub fn agents(&self, verifier: Option<&JwtVerifier>) -> Result<Agents, Vec<String>> {
        let mut faults = Vec::new();
        let agents = match self.selector() {
            Err(fault) => return Err(vec![fault]),
            Ok(Selector::Claim(_)) => {
                Some(Agents::Token(verifier.expect("tokens have keys").clone()))
            }
            Ok(Selector::Header(field)) => {
                let keys = self.identity.api_keys(&mut faults);
                keys.map(|keys| Agents::ApiKey(ApiKeyIdentity::new(field, keys)))
            }
            Ok(Selector::Peer) => self.identity.peers(&mut faults).map(Agents::Peer),
            Ok(other) => return Err(vec![format!("identity.key_selector: `{other}` is unknown")]),
        };
        agents.filter(|_| faults.is_empty()).ok_or(faults)
    }

    /// Adds a fault for a key that is an agent's and a collector's: the agent would rate itself.
    fn keys_apart(&self, agents: &ApiKeys, faults: &mut Vec<String>) {
        // What is wrong with the collectors' keys themselves is named with their table.
        let Ok(collectors) = self.ingest.api_keys() else { return };
        for (digest, collector) in collectors.digests() {
            if let Some(agent) = agents.agent_of_digest(digest) {
                faults.push(format!(
                    "identity.api_keys_file: key of agent `{agent}` is also `{collector}` of \
                     ingest.api_key_env: make one of them anew, an agent must not rate"
                ));
            }
        }
    }

    /// Adds every fault of the table, for a process that takes ratings (`rates`), or that asks
    /// (`guards`).
    pub(super) fn validate_identity(&self, rates: bool, guards: bool, faults: &mut Vec<String>) {
        let table = &self.identity;
        let before = faults.len();
        let tokens = self.read_tokens(faults);
        // Not in `read_tokens`: within a runtime a verifier fetches its keys as soon as it is built.
        if let (Some(tokens), true) = (&tokens, faults.len() == before)
            && let Err(error) = tokens.clone().build()
        {
            faults.push(table.misfit(&error));
        }
        // A malformed selector was named above.
        let Ok(selector) = self.selector() else { return };
        let mut only_for = |fits: bool, kind: &str, names: &[(&str, bool)]| {
            let stray = names.iter().filter(|(_, set)| *set && !fits);
            faults.extend(stray.map(|(name, _)| {
                format!("identity.{name}: serves {kind} only, and key_selector is `{selector}`")
            }));
        };
        only_for(
            matches!(selector, Selector::Header(_)),
            "`header.<name>`",
            &[("api_keys_file", table.api_keys_file.is_some())],
        );
        only_for(
            matches!(selector, Selector::Peer),
            "`peer.ip`",
            &[
                ("trusted_proxies", !table.trusted_proxies.is_empty()),
                ("forwarded", table.forwarded.is_some()),
                ("ipv6_prefix", table.ipv6_prefix.is_some()),
            ],
        );
        match selector {
            Selector::Header(_) if guards => {
                if let Some(agents) = table.api_keys(faults) {
                    self.keys_apart(&agents, faults);
                }
            }
            Selector::Peer => drop(table.peers(faults)),
            _ => {}
        }
        let needs_tokens = matches!(selector, Selector::Claim(_));
        if rates && !needs_tokens && !table.has_keys() && self.ingest.api_key_env.is_none() {
            faults.push(
                "ingest.api_key_env: nobody could rate: set it, or the keys of tokens in [identity]"
                    .to_owned(),
            );
        }
    }
}

fn note<T>(found: Result<T, String>, faults: &mut Vec<String>) -> Option<T> {
    found.map_err(|fault| faults.push(fault)).ok()
}

impl Identity {
    /// Returns what a verifier refuses, as a fault of the key that says it.
    fn misfit(&self, error: &IdentityConfigError) -> String {
        use IdentityConfigError as Misfit;
        let keys = self.key_sources().into_iter().find_map(|(name, set)| set.then_some(name));
        let keys = keys.unwrap_or_default();
        match error {
            Misfit::ShortSecret { length, needed } => {
                format!("identity.{keys}: must be at least {needed} bytes long, has {length}")
            }
            Misfit::Key { .. } | Misfit::UnusableKey { .. } | Misfit::KeySet { .. } => {
                format!("identity.{keys}: {}", with_cause(error))
            }
            Misfit::Algorithms { algorithms } => format!(
                "identity.algorithms: must fit the key, one family for one key and never HS* beside \
                 others, are {algorithms:?}"
            ),
            Misfit::Time { name, found, least, most } => format!(
                "identity.jwks_{name}: must be {} to {}, and not below jwks_refresh, is {}",
                duration::format(*least),
                duration::format(*most),
                duration::format(*found)
            ),
            _ => format!("identity: {}", with_cause(error)),
        }
    }

    /// The keys of the table that say where the keys of tokens are.
    fn key_sources(&self) -> [(&'static str, bool); 5] {
        [
            ("jwks_url", self.jwks_url.is_some()),
            ("jwks_file", self.jwks_file.is_some()),
            ("public_key_file", self.public_key_file.is_some()),
            ("secret_env", self.secret_env.is_some()),
            ("secret_file", self.secret_file.is_some()),
        ]
    }

    fn has_keys(&self) -> bool {
        self.key_sources().iter().any(|(_, set)| *set)
    }

    fn refuse_without_keys(&self, faults: &mut Vec<String>) {
        for (name, set) in [
            ("algorithms", !self.algorithms.is_empty()),
            ("jwks_ca_file", self.jwks_ca_file.is_some()),
            ("jwks_refresh", self.jwks_refresh.is_some()),
            ("jwks_stale", self.jwks_stale.is_some()),
            ("issuer", self.issuer.is_some()),
            ("audience", self.audience.is_some()),
            ("leeway", self.leeway.is_some()),
            ("rater_claim", self.rater_claim.is_some()),
        ] {
            if set {
                faults.push(format!(
                    "identity.{name}: is about tokens, and no keys of tokens are configured"
                ));
            }
        }
    }

    fn parse_algorithms(&self) -> Result<Vec<Algorithm>, String> {
        let named = self.algorithms.iter().map(|name| {
            let unknown = || format!("identity.algorithms: must be among {NAMES}, is {name:?}");
            name.parse::<Algorithm>().map_err(|_| unknown())
        });
        let algorithms: Vec<Algorithm> = named.collect::<Result<_, _>>()?;
        match algorithms.is_empty() && self.jwks_url.is_none() && self.jwks_file.is_none() {
            true => Err(format!("identity.algorithms: must name at least one of {NAMES}")),
            false => Ok(algorithms),
        }
    }

    fn duration(
        &self,
        name: &str,
        text: &Option<String>,
        range: std::ops::RangeInclusive<Duration>,
        faults: &mut Vec<String>,
    ) -> Option<Duration> {
        let text = text.as_ref()?;
        let parsed = duration::parse(text).filter(|found| range.contains(found));
        if parsed.is_none() {
            faults.push(format!(
                "identity.{name}: must be {} to {}, is {text:?}",
                duration::format(*range.start()),
                duration::format(*range.end())
            ));
        }
        parsed
    }

    /// Reads the keys of tokens from where the table says.
    fn keys(&self, algorithms: &[Algorithm], faults: &mut Vec<String>) -> Option<JwtIdentity> {
        let sources = self.key_sources();
        let set: Vec<&str> =
            sources.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
        let [source] = set[..] else {
            let names = sources.map(|(name, _)| name).join(", ");
            let found = if set.is_empty() { "none".to_owned() } else { set.join(", ") };
            faults.push(format!("identity: exactly one of {names} must be set, found {found}"));
            return None;
        };
        let fetched = source.starts_with("jwks_");
        for (name, set, fits) in [
            ("jwks_ca_file", self.jwks_ca_file.is_some(), source == "jwks_url"),
            ("jwks_refresh", self.jwks_refresh.is_some(), fetched),
            ("jwks_stale", self.jwks_stale.is_some(), fetched),
        ] {
            if set && !fits {
                faults.push(format!("identity.{name}: has no effect with {source}: remove it"));
            }
        }
        let first = algorithms.first().copied();
        let identity = match source {
            "jwks_url" => note(self.key_set_url(), faults)?,
            "jwks_file" => {
                let path = self.jwks_file.as_ref()?;
                // Whether it is there is said now, and not by the first request.
                note(file("jwks_file", path), faults)?;
                JwtIdentity::key_file(path)
            }
            "public_key_file" => {
                let pem = note(file("public_key_file", self.public_key_file.as_ref()?), faults);
                JwtIdentity::public_key(first?, pem?)
            }
            _ => {
                let secret = note(self.secret(), faults);
                JwtIdentity::secret(first?, secret?)
            }
        };
        if !fetched {
            return Some(identity);
        }
        let (ms, day) = (Duration::from_millis, Duration::from_secs(24 * 3600));
        let refresh = self.duration("jwks_refresh", &self.jwks_refresh, ms(100)..=day, faults);
        let stale = self.duration("jwks_stale", &self.jwks_stale, ms(100)..=7 * day, faults);
        let identity = refresh.into_iter().fold(identity, JwtIdentity::refresh);
        Some(stale.into_iter().fold(identity, JwtIdentity::stale))
    }

    fn key_set_url(&self) -> Result<JwtIdentity, String> {
        let url = self.jwks_url.as_deref().unwrap_or_default();
        let source = match &self.jwks_ca_file {
            None => JwksUrl::new(url),
            Some(path) => JwksUrl::with_authorities(url, file("jwks_ca_file", path)?),
        };
        let fault = |error| format!("identity.jwks_url: {}", with_cause(&error));
        source.map(JwtIdentity::key_source).map_err(fault)
    }

    /// Returns the secret of HS* tokens.
    ///
    /// # Errors
    ///
    /// When it is not where the configuration says.
    pub fn secret(&self) -> Result<Vec<u8>, String> {
        match (&self.secret_env, &self.secret_file) {
            (Some(variable), None) => match variable.read() {
                Ok(secret) => Ok(secret.expose().as_bytes().to_vec()),
                Err(error) => Err(format!("identity.secret_env: {error}")),
            },
            (None, Some(file)) => match file.read_one() {
                Ok(secret) => Ok(secret.expose().as_bytes().to_vec()),
                Err(error) => Err(format!("identity.secret_file: {error}")),
            },
            _ => Err("identity.secret_env: set it or secret_file, one of them".to_owned()),
        }
    }

    /// Returns the secret to sign development tokens with, and the algorithm.
    ///
    /// # Errors
    ///
    /// When tokens are not signed with a secret, or it is not there.
    pub fn signing_secret(&self) -> Result<(Algorithm, Vec<u8>), String> {
        match self.parse_algorithms()?.first() {
            Some(hmac @ (Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)) => {
                Ok((*hmac, self.secret()?))
            }
            _ => {
                Err("identity.algorithms: tokens are signed with a private key that is not here; \
                      only HS256, HS384 and HS512 tokens can be made"
                    .to_owned())
            }
        }
    }

    fn api_keys(&self, faults: &mut Vec<String>) -> Option<ApiKeys> {
        let Some(file) = &self.api_keys_file else {
            faults.push("identity.api_keys_file: must be set for `header.<name>`".to_owned());
            return None;
        };
        let text = file.read().map_err(|error| format!("identity.api_keys_file: {error}"));
        let keys = ApiKeys::parse(note(text, faults)?.expose())
            .map_err(|error| format!("identity.api_keys_file: {}", with_cause(&error)));
        let keys = note(keys, faults)?;
        if keys.is_empty() {
            faults.push("identity.api_keys_file: must hold at least one key".to_owned());
        }
        Some(keys)
    }

    fn peers(&self, faults: &mut Vec<String>) -> Option<PeerIdentity> {
        let mut networks = Vec::new();
        for (index, text) in self.trusted_proxies.iter().enumerate() {
            match text.parse::<Network>() {
                Ok(network) => networks.push(network),
                Err(error) => faults.push(format!("identity.trusted_proxies[{index}]: {error}")),
            }
        }
        let field = match self.forwarded.as_deref() {
            None | Some("x-forwarded-for") => ForwardedField::XForwardedFor,
            Some("forwarded") => ForwardedField::Forwarded,
            Some(other) => {
                faults.push(format!(
                    "identity.forwarded: must be `x-forwarded-for` or `forwarded`, is `{other}`"
                ));
                return None;
            }
        };
        if self.forwarded.is_some() && self.trusted_proxies.is_empty() {
            faults.push(
                "identity.forwarded: nobody is believed: name trusted_proxies as well".to_owned(),
            );
        }
        let bits = self.ipv6_prefix.unwrap_or(tower_merit::identity::peer::IPV6_PREFIX_DEFAULT);
        if bits > 128 {
            faults.push(format!("identity.ipv6_prefix: must be 0 to 128, is {bits}"));
        }
        Some(PeerIdentity::new().trusted_proxies(networks).forwarded(field).ipv6_prefix(bits))
    }
}

fn file(name: &str, path: &Path) -> Result<String, String> {
    read(path).map_err(|error| format!("identity.{name}: {error}: {}", cause(&error)))
}

/// Who identifies the agents of the gateway: one of a closed set that configuration chooses from.
#[derive(Clone, Debug)]
pub enum Agents {
    /// Bearer tokens.
    Token(JwtVerifier),
    /// API keys.
    ApiKey(ApiKeyIdentity),
    /// Addresses.
    Peer(PeerIdentity),
}

/// The answer of [`Agents`].
#[derive(Debug)]
pub enum Learning {
    /// About a token.
    Token(Verifying<Caller>),
    /// About what is known at once.
    Known(Ready<Result<Caller, IdentityError>>),
}

impl Identify for Agents {
    type Future = Learning;

    fn identify<B>(&self, request: &Request<B>) -> Learning {
        match self {
            Self::Token(verifier) => Learning::Token(verifier.identify(request)),
            Self::ApiKey(keys) => Learning::Known(keys.identify(request)),
            Self::Peer(peers) => Learning::Known(peers.identify(request)),
        }
    }

    fn identify_now<B>(
        &self,
        request: &Request<B>,
        now: Instant,
    ) -> Option<Result<Caller, IdentityError>> {
        match self {
            Self::Token(verifier) => verifier.identify_now(request, now),
            Self::ApiKey(keys) => keys.identify_now(request, now),
            Self::Peer(peers) => peers.identify_now(request, now),
        }
    }
}

impl Future for Learning {
    type Output = Result<Caller, IdentityError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Token(pending) => Pin::new(pending).poll(context),
            Self::Known(pending) => Pin::new(pending).poll(context),
        }
    }
}
