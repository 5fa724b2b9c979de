//! Header fields on their way through: what ends here, what is added.

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{
        CONNECTION, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE, VIA,
    },
};
use tower_merit::AgentId;

/// Tells the upstream which agent was admitted.
pub const AGENT_FIELD: HeaderName = HeaderName::from_static("x-merit-agent");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// How all fields begin in which a proxy tells of the client.
const X_FORWARDED_PREFIX: &str = "x-forwarded-";
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Fields that speak of one connection only, whether or not `Connection` names them.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What is known of a request besides its fields.
pub(super) struct Origin<'a> {
    pub(super) version: Version,
    /// The host that the client asked for.
    pub(super) host: Option<HeaderValue>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) agent: Option<&'a AgentId>,
    pub(super) trust_forwarded: bool,
    /// What `Host` the upstream gets instead of the client's.
    pub(super) replace_host: Option<HeaderValue>,
    /// Fields by which the request was priced.
    pub(super) priced_by: &'a [HeaderName],
}

/// Returns true when `Connection` names `token`.
pub(super) fn connection_names(headers: &HeaderMap, token: &str) -> bool {
    connection_tokens(headers).any(|name| name.eq_ignore_ascii_case(token))
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|name| !name.is_empty())
}

/// Removes all fields that end at this hop (RFC 9110 section 7.6.1).
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    remove_hop_by_hop_but(headers, &[]);
}

/// The same, but leaves the fields `kept` whatever `Connection` says of them.
fn remove_hop_by_hop_but(headers: &mut HeaderMap, kept: &[HeaderName]) {
    let names = connection_tokens(headers).filter_map(|name| name.parse().ok());
    let named: Vec<HeaderName> = names.filter(|name| !kept.contains(name)).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Makes the fields of a client's request those of a request to the upstream.
pub(super) fn to_upstream(headers: &mut HeaderMap, origin: &Origin<'_>) {
    // Or a client could state a price here that the upstream never reads.
    remove_hop_by_hop_but(headers, origin.priced_by);
    // Always, whatever the client can take: trailers may settle what its request cost. `TE` is of
    // this connection, and says so (RFC 9110 section 10.1.4).
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONNECTION, HeaderValue::from_static("te"));
    // The body is asked for when the upstream is connected, and the server then says 100 by itself.
    headers.remove(EXPECT);
    join_cookies(headers);
    // What a client calls itself.
    remove_where(headers, |name| name == AGENT_FIELD.as_str());
    if let Some(agent) = origin.agent {
        let value = HeaderValue::from_str(agent.as_str()).expect("an agent id is visible ASCII");
        headers.insert(AGENT_FIELD, value);
    }
    forwarded(headers, origin);
    headers.remove(HOST);
    if let Some(host) = origin.replace_host.as_ref().or(origin.host.as_ref()) {
        headers.insert(HOST, host.clone());
    }
    // RFC 9110 section 7.6.3.
    let via = match origin.version {
        Version::HTTP_2 => "2 merit",
        Version::HTTP_10 => "1.0 merit",
        _ => "1.1 merit",
    };
    append(headers, VIA, HeaderValue::from_static(via));
}

/// Removes every field whose name, spelled with hyphens, is one that `ends_here` knows.
///
/// CGI and WSGI servers read `_` and `-` in a name as the same.
fn remove_where(headers: &mut HeaderMap, ends_here: impl Fn(&str) -> bool) {
    let spelled = |name: &&HeaderName| match name.as_str() {
        plain if !plain.contains('_') => ends_here(plain),
        mixed => ends_here(&mixed.replace('_', "-")),
    };
    let names: Vec<HeaderName> = headers.keys().filter(spelled).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn forwarded(headers: &mut HeaderMap, origin: &Origin<'_>) {
    if !origin.trust_forwarded {
        remove_where(headers, |name| {
            name.starts_with(X_FORWARDED_PREFIX)
                || name == FORWARDED.as_str()
                || name == X_REAL_IP.as_str()
        });
    }
    if let Some(peer) = origin.peer {
        let address = peer.ip().to_canonical().to_string();
        let value = HeaderValue::from_str(&address).expect("an address is visible ASCII");
        append(headers, X_FORWARDED_FOR, value);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let Some(host) = &origin.host
        && !headers.contains_key(X_FORWARDED_HOST)
    {
        headers.insert(X_FORWARDED_HOST, host.clone());
    }
}

/// HTTP/2 may split the field, HTTP/1.1 may not (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() < 2 {
        return;
    }
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, whole);
    }
}

/// A full header map drops the field, not the request.
fn append(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let _ = headers.try_append(name, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    fn origin(agent: Option<&AgentId>) -> Origin<'_> {
        Origin {
            version: Version::HTTP_11,
            host: Some(HeaderValue::from_static("api.example")),
            peer: Some("[::ffff:192.0.2.7]:4000".parse().unwrap()),
            agent,
            trust_forwarded: false,
            replace_host: None,
            priced_by: &[],
        }
    }

    #[test]
    fn fields_of_the_hop_and_those_that_connection_names_end_here() {
        let mut fields = headers(&[
            ("connection", "close, X-Trace"),
            ("connection", "x-other ,,"),
            ("x-trace", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("trailer", "x-sum"),
            ("authorization", "Bearer t"),
        ]);
        remove_hop_by_hop(&mut fields);
        assert_eq!(names(&fields), ["authorization", "trailer"]);
    }

    #[test]
    fn a_field_that_a_request_was_priced_by_passes_whatever_connection_says() {
        let sent =
            [("connection", "X-Max-Tokens, x-other"), ("x-max-tokens", "9"), ("x-other", "1")];
        let mut fields = headers(&sent);
        let priced_by = [HeaderName::from_static("x-max-tokens")];
        to_upstream(&mut fields, &Origin { priced_by: &priced_by, ..origin(None) });
        assert_eq!(fields["x-max-tokens"], "9");
        assert!(!fields.contains_key("x-other"));
    }

    #[test]
    fn the_agent_is_the_admitted_one_whatever_the_client_says() {
        let agent = AgentId::new("a1").unwrap();
        let forged = [
            ("x-merit-agent", "root"),
            ("x_merit_agent", "root"),
            ("x-merit_agent", "root"),
            ("connection", "x-merit-agent"),
        ];
        let mut fields = headers(&forged);
        to_upstream(&mut fields, &origin(Some(&agent)));
        assert_eq!(fields.get_all(AGENT_FIELD).iter().collect::<Vec<_>>(), ["a1"]);
        assert!(!names(&fields).iter().any(|name| name.contains('_')));
        let mut nobody = headers(&forged);
        to_upstream(&mut nobody, &origin(None));
        assert!(!nobody.contains_key(AGENT_FIELD));
    }

    #[test]
    fn forwarded_fields_are_written_anew_unless_they_are_trusted() {
        let sent = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=203.0.113.9"),
        ];
        let mut fields = headers(&sent);
        to_upstream(&mut fields, &origin(None));
        assert_eq!(fields["x-forwarded-for"], "192.0.2.7");
        assert_eq!(fields["x-forwarded-proto"], "http");
        assert_eq!(fields["x-forwarded-host"], "api.example");
        assert!(!fields.contains_key("forwarded"));
        let mut trusted = headers(&sent);
        to_upstream(&mut trusted, &Origin { trust_forwarded: true, ..origin(None) });
        let chain: Vec<_> = trusted.get_all("x-forwarded-for").iter().collect();
        assert_eq!(chain, ["203.0.113.9", "192.0.2.7"]);
        assert_eq!(trusted["x-forwarded-proto"], "https");
    }

    #[test]
    fn no_spelling_of_a_forwarded_field_passes_unless_it_is_trusted() {
        let forged = [
            ("x-forwarded-user", "root"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-client-cert", "Hash=1"),
            ("x-real-ip", "203.0.113.9"),
            ("x_real_ip", "203.0.113.9"),
            ("x_forwarded_for", "203.0.113.9"),
            ("x-forwarded_user", "root"),
        ];
        let kept = [("x-forwarder", "a"), ("x-real-ip-count", "1"), ("not_forwarded", "1")];
        let mut fields = headers(&[&forged[..], &kept[..]].concat());
        to_upstream(&mut fields, &origin(None));
        for (name, _) in forged {
            assert!(!fields.contains_key(name), "{name} passed");
        }
        for (name, _) in kept {
            assert!(fields.contains_key(name), "{name} is gone");
        }
        assert_eq!(fields["x-forwarded-for"], "192.0.2.7");
        let mut trusted = headers(&forged);
        to_upstream(&mut trusted, &Origin { trust_forwarded: true, ..origin(None) });
        for (name, value) in forged {
            assert_eq!(trusted[name], value);
        }
    }

    #[test]
    fn trailers_host_via_and_cookies_reach_the_upstream_as_http_1_1_writes_them() {
        let mut fields = headers(&[
            ("te", "gzip, trailers"),
            ("expect", "100-continue"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("via", "1.1 front"),
        ]);
        to_upstream(&mut fields, &Origin { version: Version::HTTP_2, ..origin(None) });
        assert_eq!(fields.get_all("te").iter().collect::<Vec<_>>(), ["trailers"]);
        let mut silent = headers(&[]);
        to_upstream(&mut silent, &origin(None));
        assert_eq!(silent["connection"], "te");
        assert_eq!(silent["te"], "trailers", "a client could dodge what settles at the end");
        assert!(!fields.contains_key("expect"));
        assert_eq!(fields.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        assert_eq!(fields.get_all("via").iter().collect::<Vec<_>>(), ["1.1 front", "2 merit"]);
        assert_eq!(fields["host"], "api.example");
    }
}
