//! The peer's address as the agent: `ip-<address, colons as dashes>`.
//!
//! 1. The address is the connection's. Only when that belongs to a trusted proxy is the field read
//!    that this proxy writes, and only the configured one: the other is the caller's to forge.
//! 2. Behind trusted proxies the peer is the rightmost address that is not theirs. Where a proxy
//!    wrote no address (`unknown`, a name, nothing), the peer is that proxy.
//! 3. An IPv4 address inside IPv6 is the IPv4 address. Of an IPv6 address the first 64 bits count,
//!    unless configured: a host has that many addresses to change through.
//! 4. IPv6 is written in full (`ip-2001-db8-0-1-0-0-0-0`), for an id ends in a letter or digit.

use std::{
    future::{Ready, ready},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use http::{Extensions, HeaderMap, Request};
use ipnet::IpNet;
use tokio::time::Instant;

use super::{Caller, Identify, IdentityError, forwarded};
use crate::AgentId;

/// The bits of an IPv6 address that count, unless configured.
pub const IPV6_PREFIX_DEFAULT: u8 = 64;

/// The address that a request came from, for [`PeerIdentity`]: whoever accepts connections puts it
/// in the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub IpAddr);

impl From<SocketAddr> for PeerAddr {
    fn from(address: SocketAddr) -> Self {
        Self(address.ip())
    }
}

/// The field in which trusted proxies say whom they forward for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardedField {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// A network of trusted proxies: `10.0.0.0/8`, `2001:db8::/32`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} must be an address or a network, like 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32")]
pub struct NetworkError {
    text: String,
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        // `10.1.2.3/8` is likely a slip for one address or the other.
        match network {
            Ok(network) if network.trunc() == network => Ok(Self(network)),
            _ => Err(NetworkError { text: text.to_owned() }),
        }
    }
}

type FromExtensions = Arc<dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync>;

/// Identifies callers by the address that they come from.
///
/// With axum, the address is where `into_make_service_with_connect_info` puts it:
///
/// ```
/// use std::net::SocketAddr;
/// use axum::extract::ConnectInfo;
/// use tower_merit::PeerIdentity;
///
/// let identity = PeerIdentity::new()
///     .address_from(|extensions| {
///         extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
///     })
///     .trusted_proxies(["10.0.0.0/8".parse()?]);
/// # let _ = identity;
/// # Ok::<(), tower_merit::identity::peer::NetworkError>(())
/// ```
#[derive(Clone)]
pub struct PeerIdentity {
    address: FromExtensions,
    proxies: Arc<[Network]>,
    field: ForwardedField,
    ipv6_prefix: u8,
}

impl Default for PeerIdentity {
    fn default() -> Self {
        Self::new()
    }
}

impl PeerIdentity {
    /// Returns an identity that finds the address as a [`PeerAddr`] in the request's extensions, and
    /// trusts no proxy.
    #[must_use]
    pub fn new() -> Self {
        Self {
            address: Arc::new(|extensions| extensions.get::<PeerAddr>().map(|peer| peer.0)),
            proxies: Arc::default(),
            field: ForwardedField::default(),
            ipv6_prefix: IPV6_PREFIX_DEFAULT,
        }
    }

    /// Sets where the connection's address is found.
    #[must_use]
    pub fn address_from(
        mut self,
        address: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.address = Arc::new(address);
        self
    }

    /// Sets the proxies whose word about the peer is taken.
    #[must_use]
    pub fn trusted_proxies(mut self, networks: impl IntoIterator<Item = Network>) -> Self {
        self.proxies = networks.into_iter().collect();
        self
    }

    /// Sets the field that the trusted proxies write; `X-Forwarded-For` unless set. They must write
    /// it always, for another is not read.
    #[must_use]
    pub fn forwarded(mut self, field: ForwardedField) -> Self {
        self.field = field;
        self
    }

    /// Sets how many bits of an IPv6 address count, at most 128; 64 unless set.
    #[must_use]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.ipv6_prefix = bits.min(128);
        self
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.0.contains(&address))
    }

    fn peer(&self, connection: IpAddr, headers: &HeaderMap) -> IpAddr {
        let connection = connection.to_canonical();
        if !self.trusts(connection) {
            return connection;
        }
        match self.field {
            ForwardedField::XForwardedFor => {
                self.first_stranger(connection, forwarded::x_forwarded_for(headers))
            }
            ForwardedField::Forwarded => {
                self.first_stranger(connection, forwarded::forwarded(headers))
            }
        }
    }

    fn first_stranger(&self, proxy: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut peer = proxy;
        for hop in hops {
            let Some(hop) = hop else { break };
            peer = hop.to_canonical();
            if !self.trusts(peer) {
                break;
            }
        }
        peer
    }

    fn agent(&self, peer: IpAddr) -> AgentId {
        let text = match peer {
            IpAddr::V4(address) => format!("ip-{address}"),
            IpAddr::V6(address) => {
                let shift = 128 - u32::from(self.ipv6_prefix);
                let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
                let [a, b, c, d, e, f, g, h] =
                    Ipv6Addr::from(u128::from(address) & mask).segments();
                format!("ip-{a:x}-{b:x}-{c:x}-{d:x}-{e:x}-{f:x}-{g:x}-{h:x}")
            }
        };
        AgentId::new(&text).expect("digits, dots and dashes between two letters or digits")
    }
}

impl std::fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerIdentity")
            .field("proxies", &self.proxies)
            .field("field", &self.field)
            .field("ipv6_prefix", &self.ipv6_prefix)
            .finish_non_exhaustive()
    }
}

impl Identify for PeerIdentity {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, request: &Request<B>) -> Self::Future {
        let reason = "the server does not say where the request came from";
        let unknown = IdentityError::Unavailable { reason, retry_after_s: 60 };
        let connection = (self.address)(request.extensions()).ok_or(unknown);
        let peer = connection.map(|address| self.peer(address, request.headers()));
        ready(peer.map(|peer| Caller::from(self.agent(peer))))
    }

    fn identify_now<B>(
        &self,
        request: &Request<B>,
        _: Instant,
    ) -> Option<Result<Caller, IdentityError>> {
        Some(self.identify(request).into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(identity: &PeerIdentity, peer: &str, fields: &[(&str, &str)]) -> String {
        let mut request = Request::builder().extension(PeerAddr(peer.parse().unwrap()));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let caller = identity.identify(&request.body(()).unwrap()).into_inner();
        caller.unwrap().agent.to_string()
    }

    fn behind(networks: &[&str]) -> PeerIdentity {
        PeerIdentity::new().trusted_proxies(networks.iter().map(|text| text.parse().unwrap()))
    }

    #[test]
    fn addresses_become_ids_ipv4_whole_and_ipv6_by_its_network() {
        let identity = PeerIdentity::new();
        assert_eq!(agent(&identity, "203.0.113.9", &[]), "ip-203.0.113.9");
        assert_eq!(agent(&identity, "::ffff:203.0.113.9", &[]), "ip-203.0.113.9");
        assert_eq!(agent(&identity, "2001:db8:0:1:2:3:4:5", &[]), "ip-2001-db8-0-1-0-0-0-0");
        assert_eq!(agent(&identity, "::1", &[]), "ip-0-0-0-0-0-0-0-0");
        let host = "2001:db8:a:b:c:d:e:f";
        for (bits, id) in [
            (128, "ip-2001-db8-a-b-c-d-e-f"),
            (56, "ip-2001-db8-a-0-0-0-0-0"),
            (48, "ip-2001-db8-a-0-0-0-0-0"),
            (0, "ip-0-0-0-0-0-0-0-0"),
        ] {
            assert_eq!(agent(&PeerIdentity::new().ipv6_prefix(bits), host, &[]), id);
        }
    }

    #[test]
    fn a_stranger_says_nothing_about_himself() {
        let forged = [("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=1.1.1.1")];
        assert_eq!(agent(&PeerIdentity::new(), "10.0.0.1", &forged), "ip-10.0.0.1");
        assert_eq!(agent(&behind(&["10.0.0.0/8"]), "11.0.0.1", &forged), "ip-11.0.0.1");
    }

    #[test]
    fn behind_trusted_proxies_the_peer_is_the_rightmost_address_that_is_not_theirs() {
        let identity = behind(&["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]);
        let peer = |field: &str| agent(&identity, "10.0.0.1", &[("x-forwarded-for", field)]);
        assert_eq!(peer("1.1.1.1, 9.9.9.9"), "ip-9.9.9.9");
        assert_eq!(peer("1.1.1.1, 9.9.9.9, 10.2.2.2, 192.0.2.7, 2001:db8::5"), "ip-9.9.9.9");
        assert_eq!(peer("9.9.9.9, ::ffff:10.2.2.2"), "ip-9.9.9.9");
        assert_eq!(peer("10.3.3.3, 10.2.2.2"), "ip-10.3.3.3");
        // The proxy at 10.2.2.2 could not say, or the one at 10.0.0.1.
        assert_eq!(peer("1.1.1.1, unknown, 10.2.2.2"), "ip-10.2.2.2");
        assert_eq!(peer("1.1.1.1, nonsense"), "ip-10.0.0.1");
        assert_eq!(agent(&identity, "10.0.0.1", &[]), "ip-10.0.0.1");
        assert_eq!(
            agent(&identity, "::ffff:10.0.0.1", &[("x-forwarded-for", "9.9.9.9")]),
            "ip-9.9.9.9"
        );
    }

    #[test]
    fn only_the_configured_field_is_read() {
        let fields = [("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=2.2.2.2")];
        let identity = behind(&["10.0.0.0/8"]);
        assert_eq!(agent(&identity, "10.0.0.1", &fields), "ip-1.1.1.1");
        let identity = identity.forwarded(ForwardedField::Forwarded);
        assert_eq!(agent(&identity, "10.0.0.1", &fields), "ip-2.2.2.2");
        assert_eq!(agent(&identity, "10.0.0.1", &fields[..1]), "ip-10.0.0.1");
    }

    #[test]
    fn a_network_is_an_address_or_a_prefix_without_host_bits() {
        for text in ["10.0.0.0/8", "10.0.0.7", "2001:db8::/32", "::1", "0.0.0.0/0"] {
            assert!(text.parse::<Network>().is_ok(), "{text}");
        }
        for text in ["", "10.0.0.7/8", "10.0.0.0/33", "10/8", "host", "fe80::1%eth0", "1.2.3.4:80"]
        {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn without_an_address_nobody_is_made_up() {
        let answer = PeerIdentity::new().identify(&Request::new(())).into_inner();
        assert!(matches!(answer, Err(IdentityError::Unavailable { .. })));
    }
}
