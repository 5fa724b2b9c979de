//! What tokens say, well signed and all: each doubt is refused for its own reason.

use std::time::Duration;

use serde_json::{Value, json};
use tower_merit::{
    JwtIdentity,
    identity::{ClaimError, jwt::Algorithm},
};

use crate::{
    keys::{SECRET, claims, now},
    verifier::{
        ALGORITHM, CLAIMS, EXPIRED, EXTENSION, MALFORMED, SIGNATURE, hs256, refused, secret, sign,
        strict, verify,
    },
};

#[test]
fn a_token_says_who_it_is_for_whom_it_acts_and_what_it_may() {
    let identity = JwtIdentity::hs256(SECRET).claim("act.sub").rater_claim("sub");
    let token = sign(&claims(json!({
        "sub": "u1", "scope": "x ratings:write", "act": {"sub": "agent-7", "act": {"sub": "a0"}}
    })));
    let token = verify(&strict(identity), &token).unwrap();
    assert_eq!(token.agent.as_ref().unwrap().as_str(), "agent-7");
    assert_eq!((token.subject.as_deref(), token.rater.as_deref()), (Some("u1"), Some("u1")));
    assert!(token.has_scope("ratings:write") && !token.has_scope("ratings"));
}

#[test]
fn a_rater_that_is_no_sound_name_is_none() {
    let verifier = strict(JwtIdentity::hs256(SECRET).rater_claim("act.sub"));
    for act in [
        json!(null),
        json!("u"),
        json!({"sub": 7}),
        json!({"sub": ""}),
        json!({"sub": "a\nb"}),
        json!({"sub": "x".repeat(257)}),
    ] {
        let token = verify(&verifier, &sign(&claims(json!({ "act": act })))).unwrap();
        assert_eq!(token.rater, None, "{act}");
    }
}

#[test]
fn a_malformed_token_or_header_is_refused_however_it_is_signed() {
    let payload = claims(json!({})).to_string();
    let sign_header = |header: &str| secret().sign_text(Algorithm::HS256, header, &payload);
    assert!(verify(&hs256(), &sign_header(r#"{"alg":"HS256"}"#)).is_ok());
    for (header, reason) in [
        (r#"{"alg":"HS256","crit":["exp"]}"#, EXTENSION),
        (r#"{"alg":"HS256","crit":[]}"#, EXTENSION),
        (r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, EXTENSION),
        (r#"{"alg":"HS256","b64":false}"#, EXTENSION),
        (r#"{"alg":"HS256","b64":true}"#, EXTENSION),
        (r#"{"alg":"HS256","cty":"JWT"}"#, "the token holds another token"),
        (r#"{"alg":"HS256","cty":"jwt"}"#, "the token holds another token"),
        (r#"{"alg":"HS256","cty":7}"#, "the token holds another token"),
        (r#"{"alg":"hs256"}"#, ALGORITHM),
        (r#"{"alg":"HS256","alg":"none"}"#, MALFORMED),
        (r#"{"alg":"none","alg":"HS256"}"#, MALFORMED),
        (r#"{"alg":"HS256","\u0061lg":"HS256"}"#, MALFORMED),
        (r#"{"alg":["HS256"]}"#, MALFORMED),
        (r#"{"alg":null}"#, MALFORMED),
        (r#"{"typ":"JWT"}"#, MALFORMED),
        (r#"["HS256"]"#, MALFORMED),
        (r#"{"alg":"HS256"} x"#, MALFORMED),
        ("", MALFORMED),
        ("\u{feff}{\"alg\":\"HS256\"}", MALFORMED),
    ] {
        assert_eq!(refused(&hs256(), &sign_header(header)), reason, "{header}");
    }
    let good = sign(&claims(json!({})));
    let parts: Vec<&str> = good.split('.').collect();
    let (header, body, signature) = (parts[0], parts[1], parts[2]);
    for token in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "a".to_owned(),
        format!("{header}.{body}"),
        format!("{header}{body}{signature}"),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.{signature}"),
        // JWE has five parts.
        format!("{header}.{body}.{signature}.{body}.{signature}"),
        format!("{header}..{signature}"),
        format!("{good}="),
        format!("{header}=.{body}.{signature}"),
        format!("{header}.{body}==.{signature}"),
        format!("{header}.{body}.{signature}\n"),
        format!(" {good}"),
        format!("{header}. {body}.{signature}"),
        format!("{header}.{}\r\n{}.{signature}", &body[..9], &body[9..]),
        good.replacen(header, &format!("{header}%3D"), 1),
        format!("{header}.{body}.+/{signature}"),
        format!("{header}.{body}.é"),
        format!("{header}.{body}.{signature}\0"),
        "\u{202e}".to_owned() + &good,
    ] {
        let reason = refused(&hs256(), &token);
        assert!([MALFORMED, SIGNATURE].contains(&reason), "{token:?}: {reason}");
    }
    // The last character's unused bits: another text of the same signature must not be another
    // token (32 bytes leave two bits unused).
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = alphabet.find(last).unwrap();
    for bits in 1..4 {
        let other = &alphabet[at + bits..=at + bits];
        let token = format!("{}{other}", &good[..good.len() - 1]);
        assert_eq!(refused(&hs256(), &token), MALFORMED);
    }
    let long = sign(&claims(json!({"x": "x".repeat(8 * 1024)})));
    assert_eq!(refused(&hs256(), &long), "the token is longer than 8 KiB");
    let deep = "[".repeat(200) + &"]".repeat(200);
    let text = format!("{{\"exp\":{},\"x\":{deep}}}", now() + 60);
    let token = secret().sign_text(Algorithm::HS256, r#"{"alg":"HS256"}"#, &text);
    assert_eq!(refused(&hs256(), &token), MALFORMED);
}

#[test]
fn claims_that_are_doubtful_are_refused_for_their_own_reason() {
    let later = now() + 60;
    let text = |claims: &str| secret().sign_text(Algorithm::HS256, r#"{"alg":"HS256"}"#, claims);
    let with = |exp: &str| {
        text(&format!(r#"{{"iss":"issuer","aud":"service","agent_id":"a1","exp":{exp}}}"#))
    };
    for exp in [format!("{later}"), format!("{later}.5"), format!("{later}e0"), "4e9".to_owned()] {
        assert!(verify(&hs256(), &with(&exp)).is_ok(), "{exp}");
    }
    for (exp, reason) in [
        (format!("\"{later}\""), CLAIMS),
        (format!("[{later}]"), CLAIMS),
        (format!("{{\"at\":{later}}}"), CLAIMS),
        ("null".to_owned(), CLAIMS),
        ("true".to_owned(), CLAIMS),
        ("1e30".to_owned(), CLAIMS),
        ("1e300".to_owned(), CLAIMS),
        ("99999999999999999999".to_owned(), CLAIMS),
        ("1e999".to_owned(), MALFORMED),
        ("NaN".to_owned(), MALFORMED),
        ("Infinity".to_owned(), MALFORMED),
        ("-1".to_owned(), CLAIMS),
        ("-0.5".to_owned(), CLAIMS),
        ("0".to_owned(), EXPIRED),
        (format!("{}", now() - 1), EXPIRED),
        // RFC 7519 section 4.1.4: on or after; and a fraction is never rounded up.
        (format!("{}", now()), EXPIRED),
        (format!("{}.999", now() - 1), EXPIRED),
    ] {
        assert_eq!(refused(&hs256(), &with(&exp)), reason, "{exp}");
    }
    // Repeated names: two parsers would see two tokens.
    for twice in [
        format!(
            r#"{{"iss":"issuer","aud":"service","exp":{later},"agent_id":"a","agent_id":"b"}}"#
        ),
        format!(r#"{{"iss":"issuer","aud":"service","exp":1,"exp":{later},"agent_id":"a"}}"#),
        format!(r#"{{"iss":"issuer","aud":"x","\u0061ud":"service","exp":{later}}}"#),
        format!(
            r#"{{"iss":"issuer","aud":"service","exp":{later},"act":{{"sub":"a","sub":"b"}}}}"#
        ),
    ] {
        assert_eq!(refused(&hs256(), &text(&twice)), MALFORMED, "{twice}");
    }
    for (name, value, reason) in [
        ("iss", json!("other"), "the token is by another issuer"),
        ("iss", json!("issuer "), "the token is by another issuer"),
        ("iss", json!(["issuer"]), CLAIMS),
        ("iss", json!(null), CLAIMS),
        ("aud", json!("other"), "the token is for another audience"),
        ("aud", json!(["x"]), "the token is for another audience"),
        ("aud", json!([]), "the token is for another audience"),
        ("aud", json!(["service", 7]), CLAIMS),
        ("aud", json!({"service": true}), CLAIMS),
        ("aud", json!(null), CLAIMS),
        ("nbf", json!(later), "the token is not valid yet"),
        ("nbf", json!("0"), "the token's `nbf` is not a time"),
        ("nbf", json!(null), "the token's `nbf` is not a time"),
        ("nbf", json!(1e30), "the token's `nbf` is not a time"),
    ] {
        let mut claims = claims(json!({}));
        claims[name] = value;
        assert_eq!(refused(&hs256(), &sign(&claims)), reason, "{claims}");
    }
    for name in ["exp", "iss", "aud"] {
        let mut claims = claims(json!({}));
        claims.as_object_mut().unwrap().remove(name);
        assert_eq!(refused(&hs256(), &sign(&claims)), CLAIMS, "{name}");
    }
    assert!(verify(&hs256(), &sign(&claims(json!({"aud": ["x", "service"]})))).is_ok());
    // RFC 7519 section 4.1.3: whoever is not named refuses, and so does whoever has no name.
    let anybody = JwtIdentity::hs256(SECRET).build().unwrap();
    let reason = refused(&anybody, &sign(&claims(json!({}))));
    assert_eq!(reason, "the token is for another audience");
    // A token inside a token.
    let inner = sign(&claims(json!({})));
    let nested = text(&format!("\"{inner}\""));
    assert_eq!(refused(&hs256(), &nested), MALFORMED);
}

#[test]
fn leeway_forgives_the_configured_seconds_and_not_one_more() {
    let lenient = JwtIdentity::hs256(SECRET).issuer("issuer").audience("service");
    let lenient = lenient.leeway(Duration::from_secs(60)).build().unwrap();
    for (name, at, taken) in [
        ("exp", now() - 50, true),
        ("exp", now() - 60, false),
        ("nbf", now() + 50, true),
        ("nbf", now() + 70, false),
    ] {
        let mut claims = claims(json!({}));
        claims[name] = at.into();
        assert_eq!(verify(&lenient, &sign(&claims)).is_ok(), taken, "{name}");
    }
}

#[test]
fn an_agent_that_is_missing_not_text_or_malformed_is_named_as_such() {
    let agent = |agent: Value| {
        let mut claims = claims(json!({}));
        claims["agent_id"] = agent;
        verify(&hs256(), &sign(&claims)).unwrap().agent.clone()
    };
    assert!(matches!(agent(json!(7)), Err(ClaimError::NotText { .. })));
    for text in ["a b", "ip-1", "key-a", "", "ä", "a{b}", "a\u{0}", "a\u{202e}b"] {
        assert!(matches!(agent(json!(text)), Err(ClaimError::Malformed { .. })), "{text}");
    }
    let missing = JwtIdentity::hs256(SECRET).claim("act.agent");
    let token = verify(&strict(missing), &sign(&claims(json!({})))).unwrap();
    assert!(matches!(token.agent, Err(ClaimError::Missing { .. })));
}

#[test]
fn a_claim_is_reached_by_its_path() {
    let payload = claims(json!({"act": {"agent": "inner"}, "https://a.example/id": "outer"}));
    for (path, agent) in [("act.agent", "inner"), (r#"["https://a.example/id"]"#, "outer")] {
        let token =
            verify(&strict(JwtIdentity::hs256(SECRET).claim(path)), &sign(&payload)).unwrap();
        assert_eq!(token.agent.as_ref().unwrap().as_str(), agent);
    }
    let error = JwtIdentity::hs256(SECRET).claim("a..b").build().unwrap_err();
    assert!(error.to_string().contains("empty name at byte 2"), "{error}");
    assert!(JwtIdentity::hs256(SECRET).rater_claim("").build().is_err());
}

#[test]
fn a_token_is_refused_whoever_sent_it_before() {
    // What is remembered is the whole text: a change of one character is another token.
    let verifier = hs256();
    let good = sign(&claims(json!({})));
    assert!(verify(&verifier, &good).is_ok());
    for at in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let token = String::from_utf8(bytes).unwrap();
        assert!(verify(&verifier, &token).is_err(), "{at}");
    }
    assert!(verify(&verifier, &good).is_ok());
}
