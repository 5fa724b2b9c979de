//! The `[gateway]` table.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use http::{Uri, uri::Authority};
use tower_merit::{AgentId, admission::RETRY_JITTER_MAX};

/// The range of the deadlines.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// The most upgraded connections that configuration may ask for.
const TUNNELS_MAX: usize = 1_000_000;

/// How requests reach the protected service.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen; off unless named.
    pub listen: Option<SocketAddr>,
    /// The protected service, `http://host:port` with an optional path that is put before every
    /// request's; required once `listen` is set.
    pub upstream: String,
    /// The path on which a rating that the upstream accepts (2xx) is taken by Merit too; off unless
    /// named.
    pub tee_ratings: Option<String>,
    /// How long to wait for a connection to the upstream; 2 s is one lost SYN and its repeat.
    #[serde(with = "crate::bus::duration")]
    pub connect_timeout: Duration,
    /// How long the upstream may stay silent after the last byte of the request was passed on;
    /// 60 s is what slow model calls need. A response that has begun may take as long as it likes.
    #[serde(with = "crate::bus::duration")]
    pub response_timeout: Duration,
    /// How long an unused connection is kept; 4 s is below the 5 s after which common servers close
    /// theirs, so that no request meets a closing one.
    #[serde(with = "crate::bus::duration")]
    pub idle_timeout: Duration,
    /// How long the answer to a rating waits for Merit to take it too; 100 ms is far above what the
    /// bus needs. When it takes longer the answer goes out and the rating is taken behind it.
    #[serde(with = "crate::bus::duration")]
    pub tee_timeout: Duration,
    /// Whether `Host` stays the client's; true, so that the upstream builds the links clients know.
    pub preserve_host: bool,
    /// Whether `X-Forwarded-*`, `Forwarded` and `X-Real-IP` of the client are believed; false,
    /// because anybody can send them.
    pub trust_forwarded: bool,
    /// Most upgraded connections (WebSocket) at a time, further ones get 503; 10000 is within the
    /// usual limit of open files.
    pub max_tunnels: usize,
    /// Most upgraded connections of one agent at a time, further ones get 429; 100 is plenty for
    /// one agent, and a hundredth of all.
    pub max_tunnels_per_agent: usize,
    /// Agents that pass uncharged, whatever their limits, even when banned; nobody.
    pub allow: Vec<String>,
    /// Most requests of one agent in flight at a time on this gateway, each until its answer's body
    /// has ended, further ones get 429; without bound unless set. Gateways do not talk about it: with
    /// several of them it is the total divided by their number.
    pub concurrency_per_agent: Option<NonZeroU32>,
    /// Whether everything is decided and counted and passes all the same; false.
    pub shadow: bool,
    /// Whether a request that the upstream fails (5xx, or no answer) gets its tokens back; false,
    /// because whoever provokes errors would do it for nothing.
    pub refund_on_5xx: bool,
    /// Whether answers carry `RateLimit` and `RateLimit-Policy`; true.
    pub rate_limit_headers: bool,
    /// Whether answers carry `X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds from now) as
    /// well; false, for clients that know no others.
    pub x_rate_limit_headers: bool,
    /// Whether `Access-Control-Expose-Headers` lets scripts of other origins read them; false.
    pub expose_headers: bool,
    /// Whether `GET /.well-known/merit/limits` tells each agent of its own limits, and refusals name that page;
    /// true. With `shadow` it does not: callers then see nothing of Merit.
    pub limits_page: bool,
    /// The most that is added at random to the wait of a denial, so that agents refused together do
    /// not come back together; 0s, at most 1h.
    #[serde(with = "crate::bus::duration")]
    pub retry_jitter: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            upstream: String::new(),
            tee_ratings: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(4),
            tee_timeout: Duration::from_millis(100),
            preserve_host: true,
            trust_forwarded: false,
            max_tunnels: 10_000,
            max_tunnels_per_agent: 100,
            allow: Vec::new(),
            concurrency_per_agent: None,
            shadow: false,
            refund_on_5xx: false,
            rate_limit_headers: true,
            x_rate_limit_headers: false,
            expose_headers: false,
            limits_page: true,
            retry_jitter: Duration::ZERO,
        }
    }
}

/// Why a gateway cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// The upstream's address cannot be used.
    #[error("upstream {upstream:?} {problem}")]
    Upstream {
        /// The address without query and fragment; it never holds credentials, because those are
        /// refused unseen.
        upstream: String,
        /// What is wrong and what to write.
        problem: &'static str,
    },
    /// Path and receiver of teed ratings come together.
    #[error("tee_ratings needs both the path and somebody who takes the ratings")]
    Tee,
}

/// Where requests go.
#[derive(Clone, Debug)]
pub(super) struct Upstream {
    pub(super) authority: Authority,
    /// What is put before every path; empty or beginning with a slash, without one at the end.
    pub(super) prefix: String,
}

impl Config {
    /// Adds every fault of the table at `path` (normally `gateway`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if (self.listen.is_some() || !self.upstream.is_empty())
            && let Err(GatewayError::Upstream { upstream, problem }) = self.upstream()
        {
            faults.push(format!("{path}.upstream: {upstream:?} {problem}"));
        }
        if let Some(tee) = &self.tee_ratings
            && (!tee.starts_with('/') || tee.contains(['?', '#', '*']))
        {
            faults.push(format!("{path}.tee_ratings: must be a path like /v1/rating, is {tee:?}"));
        }
        let deadlines = [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("idle_timeout", self.idle_timeout),
            ("tee_timeout", self.tee_timeout),
        ];
        for (name, value) in deadlines {
            if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&value) {
                faults.push(format!(
                    "{path}.{name}: must be {TIMEOUT_MIN:?}..={TIMEOUT_MAX:?}, is {value:?}"
                ));
            }
        }
        for agent in &self.allow {
            if let Err(error) = AgentId::new(agent) {
                faults.push(format!("{path}.allow: {agent:?} {error}"));
            }
        }
        if self.retry_jitter > RETRY_JITTER_MAX {
            let (most, found) = (RETRY_JITTER_MAX, self.retry_jitter);
            faults.push(format!("{path}.retry_jitter: must be at most {most:?}, is {found:?}"));
        }
        let tunnels = [
            ("max_tunnels", self.max_tunnels),
            ("max_tunnels_per_agent", self.max_tunnels_per_agent),
        ];
        for (name, value) in tunnels {
            if !(1..=TUNNELS_MAX).contains(&value) {
                faults.push(format!("{path}.{name}: must be 1..={TUNNELS_MAX}, is {value}"));
            }
        }
    }

    pub(super) fn upstream(&self) -> Result<Upstream, GatewayError> {
        let shown = self.upstream.split(['?', '#']).next().unwrap_or_default();
        let fault = |problem| GatewayError::Upstream { upstream: shown.to_owned(), problem };
        if self.upstream.is_empty() {
            return Err(fault("is missing; write upstream = \"http://127.0.0.1:3000\""));
        }
        if self.upstream.contains('@') {
            let upstream = "…@…".to_owned();
            let problem = "holds credentials; send them as a header from the client instead";
            return Err(GatewayError::Upstream { upstream, problem });
        }
        let uri: Uri =
            self.upstream.parse().map_err(|_| fault("is no URL; write http://host:port"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(fault(
                    "is https, which this version does not speak to upstreams; put the service's \
                     plain listener here, or a TLS proxy beside the gateway",
                ));
            }
            _ => return Err(fault("has no scheme http; write http://host:port")),
        }
        if uri.query().is_some() || self.upstream.contains('#') {
            return Err(fault("has a query or a fragment; write scheme, host, port and path only"));
        }
        let authority = uri.authority().cloned().ok_or_else(|| fault("has no host"))?;
        Ok(Upstream { authority, prefix: uri.path().trim_end_matches('/').to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Vec<String> {
        let config: Config = serde_json::from_str(json).unwrap();
        let mut faults = Vec::new();
        config.validate("gateway", &mut faults);
        faults
    }

    #[test]
    fn a_gateway_that_is_off_and_one_with_an_upstream_are_valid() {
        assert_eq!(faults("{}"), [""; 0]);
        let on = r#"{"listen":"127.0.0.1:8080","upstream":"http://localhost:3000/api/","tee_ratings":"/v1/rating"}"#;
        assert_eq!(faults(on), [""; 0]);
    }

    #[test]
    fn every_fault_is_named_with_its_path() {
        for (upstream, said) in [
            ("", "is missing"),
            ("localhost:3000", "has no scheme"),
            ("/x", "has no scheme"),
            ("https://api.example.com", "is https"),
            ("http://u:secret@host", "holds credentials"),
            ("http://host/?a=1", "query"),
            ("http://a b", "is no URL"),
        ] {
            let json = format!(r#"{{"listen":"127.0.0.1:1","upstream":"{upstream}"}}"#);
            let found = faults(&json);
            assert!(found[0].starts_with("gateway.upstream: "), "{found:?}");
            assert!(found[0].contains(said), "{upstream}: {found:?}");
            assert!(!found[0].contains("secret"));
        }
        let rest = faults(
            r#"{"tee_ratings":"v1","connect_timeout":"0ms","max_tunnels":0,"max_tunnels_per_agent":0,
                "allow":["a b"],"retry_jitter":"2h"}"#,
        );
        assert_eq!(rest.len(), 6, "{rest:?}");
        assert_eq!(rest[5], "gateway.max_tunnels_per_agent: must be 1..=1000000, is 0");
    }
}
