//! Whatever comes from outside: it panics nothing, and admits nobody.
//!
//! On the stable toolchain every target runs [`TIME`] on random and mutated input; the same
//! targets run under a coverage-guided fuzzer with `cargo bolero test -p tower-merit fuzz::<name>`.

use std::{
    future::Future,
    net::IpAddr,
    pin::pin,
    sync::LazyLock,
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::keys::{Pair, SECRET, base64url, claims, ec256, now, set};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use serde_json::json;
use tower_merit::{
    AgentId, Identify, JwtIdentity, JwtVerifier, PeerAddr, PeerIdentity,
    identity::{ApiKeys, ClaimPath, Selector, jwt::Algorithm, peer::ForwardedField},
};

/// How long a target runs where nobody watches coverage.
const TIME: Duration = Duration::from_secs(2);

static OURS: LazyLock<Pair> = LazyLock::new(ec256);
static VERIFIER: LazyLock<JwtVerifier> = LazyLock::new(|| {
    let identity = JwtIdentity::key_set(set(&[OURS.jwk("k")]));
    identity.issuer("issuer").audience("service").build().unwrap()
});
static HS256: LazyLock<JwtVerifier> = LazyLock::new(|| {
    JwtIdentity::hs256(SECRET).issuer("issuer").audience("service").build().unwrap()
});

fn taken(verifier: &JwtVerifier, token: &str) -> bool {
    match pin!(verifier.verify(token)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer.is_ok(),
        Poll::Pending => panic!("a configured key is waited for"),
    }
}

/// Puts `edits` (place, byte) into a text; what is no UTF-8 any more is left out.
fn mutated(text: &str, edits: &[(u16, u8)]) -> Option<String> {
    let mut bytes = text.as_bytes().to_vec();
    for (place, byte) in edits {
        let place = usize::from(*place) % (bytes.len() + 1);
        match byte % 3 {
            _ if place == bytes.len() => bytes.push(*byte),
            0 => drop(bytes.remove(place)),
            1 => bytes.insert(place, *byte),
            _ => bytes[place] = *byte,
        }
    }
    String::from_utf8(bytes).ok()
}

#[test]
fn no_text_is_a_token() {
    bolero::check!().with_test_time(TIME).with_max_len(400).for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        assert!(!taken(&VERIFIER, &text) && !taken(&HS256, &text), "{text:?}");
        let parts: Vec<String> = bytes.split(|byte| *byte == b'.').map(base64url).collect();
        let text = parts.join(".");
        assert!(!taken(&VERIFIER, &text) && !taken(&HS256, &text), "{text:?}");
    });
}

#[test]
fn a_good_token_that_was_changed_is_none() {
    let good = [
        OURS.sign(Algorithm::ES256, Some("k"), &claims(json!({}))),
        Pair::Hmac(SECRET.to_vec()).sign(Algorithm::HS256, None, &claims(json!({}))),
    ];
    assert!(taken(&VERIFIER, &good[0]) && taken(&HS256, &good[1]));
    let edits = bolero::produce::<Vec<(u16, u8)>>().with().len(1..6_usize);
    bolero::check!().with_test_time(TIME).with_generator(edits).for_each(|edits| {
        for (verifier, good) in [&*VERIFIER, &*HS256].into_iter().zip(&good) {
            if let Some(token) = mutated(good, edits).filter(|token| token != good) {
                assert!(!taken(verifier, &token), "{token}");
            }
        }
    });
}

#[test]
fn a_signed_token_is_taken_only_with_claims_that_say_so() {
    let honest = claims(json!({"nbf": now() - 9})).to_string();
    let header = json!({"alg": "HS256"}).to_string();
    let edits = bolero::produce::<(Vec<(u16, u8)>, Vec<(u16, u8)>)>();
    bolero::check!().with_test_time(TIME).with_generator(edits).for_each(|(first, second)| {
        let Some(header) = mutated(&header, &first[..first.len().min(3)]) else { return };
        let Some(claims) = mutated(&honest, &second[..second.len().min(5)]) else { return };
        let token = Pair::Hmac(SECRET.to_vec()).sign_text(Algorithm::HS256, &header, &claims);
        if taken(&HS256, &token) {
            let header: serde_json::Value = serde_json::from_str(&header).unwrap();
            let claims: serde_json::Value = serde_json::from_str(&claims).unwrap();
            assert_eq!(header["alg"], "HS256");
            assert!(header.get("crit").is_none() && header.get("b64").is_none());
            assert_eq!((&claims["iss"], &claims["aud"]), (&json!("issuer"), &json!("service")));
            assert!(claims["exp"].as_f64().unwrap() + 6.0 > now() as f64, "{claims}");
        }
    });
}

#[test]
fn a_selector_that_is_read_is_read_the_same_again() {
    bolero::check!().with_test_time(TIME).with_max_len(80).for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(path) = text.parse::<ClaimPath>() {
            let again: ClaimPath = path.to_string().parse().unwrap();
            assert!(path.names().eq(again.names()) && path.names().all(|name| !name.is_empty()));
        }
        for text in [text.to_string(), format!("jwt.claims.{text}"), format!("header.{text}")] {
            if let Ok(selector) = text.parse::<Selector>() {
                assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector), "{text:?}");
            }
        }
        let _ = ApiKeys::parse(&text);
    });
}

#[test]
fn whatever_a_field_says_the_peer_is_an_agent_and_a_stranger_is_himself() {
    static IDENTITIES: LazyLock<[PeerIdentity; 2]> = LazyLock::new(|| {
        let trusting = PeerIdentity::new().trusted_proxies(["10.0.0.0/8".parse().unwrap()]);
        [trusting.clone(), trusting.forwarded(ForwardedField::Forwarded)]
    });
    let seen = |identity: &PeerIdentity, peer: &str, headers: &HeaderMap| {
        let peer: IpAddr = peer.parse().unwrap();
        let mut request = Request::builder().extension(PeerAddr(peer)).body(()).unwrap();
        request.headers_mut().clone_from(headers);
        identity.identify(&request).into_inner().unwrap().agent
    };
    bolero::check!().with_test_time(TIME).with_max_len(200).for_each(|bytes: &[u8]| {
        let mut headers = HeaderMap::new();
        for part in bytes.split(|byte| *byte == 0) {
            let Ok(value) = HeaderValue::from_bytes(part) else { continue };
            let with_for = [b"for=", part, b";proto=http"].concat();
            let Ok(element) = HeaderValue::from_bytes(&with_for) else { continue };
            headers.append(HeaderName::from_static("x-forwarded-for"), value.clone());
            headers.append(HeaderName::from_static("forwarded"), value);
            headers.append(HeaderName::from_static("forwarded"), element);
        }
        for identity in &*IDENTITIES {
            let agent = seen(identity, "10.0.0.1", &headers);
            assert!(agent.as_str().starts_with("ip-"));
            assert!(AgentId::new(agent.as_str()).is_ok());
            assert_eq!(seen(identity, "192.0.2.1", &headers).as_str(), "ip-192.0.2.1");
        }
        // What a proxy of ours puts behind a stranger's words is what counts.
        for (appended, agent) in [
            ("for=203.0.113.9", "ip-203.0.113.9"),
            (r#"for="[2001:db8::9]:80";host="a,\"b""#, "ip-2001-db8-0-0-0-0-0-0"),
        ] {
            let field = [bytes, b", ", appended.as_bytes()].concat();
            let Ok(field) = HeaderValue::from_bytes(&field) else { return };
            let headers = HeaderMap::from_iter([(HeaderName::from_static("forwarded"), field)]);
            assert_eq!(seen(&IDENTITIES[1], "10.0.0.1", &headers).as_str(), agent);
        }
        let field = [bytes, b", 203.0.113.9"].concat();
        let field = HeaderValue::from_bytes(&field).expect("it was one with another end");
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-forwarded-for"), field)]);
        assert_eq!(seen(&IDENTITIES[0], "10.0.0.1", &headers).as_str(), "ip-203.0.113.9");
    });
}

#[test]
fn whatever_a_key_set_says_a_key_that_it_does_not_hold_proves_nothing() {
    let honest = set(&[OURS.jwk("k"), ec256().jwk("other")]);
    let theirs = ec256().sign(Algorithm::ES256, Some("k"), &claims(json!({})));
    let edits = bolero::produce::<(Vec<(u16, u8)>, Vec<u8>)>();
    bolero::check!().with_test_time(TIME).with_generator(edits).for_each(|(edits, bytes)| {
        let changed = mutated(&honest, &edits[..edits.len().min(4)]).unwrap_or_default();
        for document in [changed.as_bytes(), bytes] {
            let identity = JwtIdentity::key_set(document).issuer("issuer").audience("service");
            if let Ok(verifier) = identity.build() {
                assert!(!taken(&verifier, &theirs));
            }
        }
    });
}
