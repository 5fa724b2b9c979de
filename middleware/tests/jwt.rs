//! Tokens as an issuer signs them, and as an attacker would.
//!
//! The table of attacks names for each the reason that the caller reads: a vector that is refused
//! for another reason would pass by accident.

#![allow(clippy::unwrap_used)]

mod keys;

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use aws_lc_rs::rsa::KeySize;
use keys::{Pair, RSA, SECRET, base64url, claims, ec256, ec384, ed25519, now, rsa, set};
use serde_json::{Value, json};
use tower_merit::{
    JwtIdentity, JwtVerifier,
    identity::{ClaimError, IdentityConfigError, IdentityError, Token, jwt::Algorithm},
};

fn strict(identity: JwtIdentity) -> JwtVerifier {
    identity.issuer("issuer").audience("service").leeway(Duration::ZERO).build().unwrap()
}

fn hs256() -> JwtVerifier {
    strict(JwtIdentity::hs256(SECRET))
}

/// A token whose key is configured is judged at once.
fn verify(verifier: &JwtVerifier, token: &str) -> Result<Arc<Token>, IdentityError> {
    match pin!(verifier.verify(token)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("a configured key is waited for"),
    }
}

fn refused(verifier: &JwtVerifier, token: &str) -> &'static str {
    match verify(verifier, token) {
        Err(IdentityError::Unauthenticated { reason, presented: true }) => reason,
        other => panic!("{token}: {other:?}"),
    }
}

fn secret() -> Pair {
    Pair::Hmac(SECRET.to_vec())
}

fn sign(claims: &Value) -> String {
    secret().sign(Algorithm::HS256, None, claims)
}

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
fn every_algorithm_verifies_with_a_key_that_fits_and_with_no_other() {
    use Algorithm::{
        ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
    };
    let all = [HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA];
    let (hmac, p256, p384, ed) = (secret(), ec256(), ec384(), ed25519());
    let pairs = [&hmac, &*RSA, &p256, &p384, &ed];
    let fits = |pair: &Pair, algorithm: Algorithm| match pair {
        Pair::Hmac(_) => [HS256, HS384, HS512].contains(&algorithm),
        Pair::Rsa(_) => [RS256, RS384, RS512, PS256, PS384, PS512].contains(&algorithm),
        Pair::Ec256(_) => algorithm == ES256,
        Pair::Ec384(_) => algorithm == ES384,
        Pair::Ed25519(_) => algorithm == EdDSA,
    };
    for pair in pairs {
        for algorithm in all {
            let identity = match pair {
                Pair::Hmac(secret) => JwtIdentity::secret(algorithm, secret),
                _ => JwtIdentity::public_key(algorithm, pair.pem()),
            };
            let built = identity.issuer("issuer").audience("service").build();
            assert_eq!(built.is_ok(), fits(pair, algorithm), "{algorithm:?}");
            let Ok(verifier) = built else { continue };
            for signed in all.into_iter().filter(|other| fits(pair, *other)) {
                let verified = verify(&verifier, &pair.sign(signed, None, &claims(json!({}))));
                assert_eq!(verified.is_ok(), signed == algorithm, "{algorithm:?} {signed:?}");
            }
        }
    }
}

#[test]
fn several_algorithms_of_one_family_may_be_taken_together_and_no_others() {
    let both = || JwtIdentity::rs256(RSA.pem()).algorithms([Algorithm::RS256, Algorithm::PS256]);
    let verifier = strict(both());
    for (algorithm, taken) in
        [(Algorithm::RS256, true), (Algorithm::PS256, true), (Algorithm::RS512, false)]
    {
        let token = RSA.sign(algorithm, None, &claims(json!({})));
        assert_eq!(verify(&verifier, &token).is_ok(), taken, "{algorithm:?}");
    }
    let refused = |identity: JwtIdentity, algorithms: &[Algorithm]| {
        let error = identity.algorithms(algorithms.iter().copied()).build().unwrap_err();
        assert!(
            matches!(
                error,
                IdentityConfigError::Algorithms { .. } | IdentityConfigError::NoAlgorithm
            ),
            "{error}"
        );
    };
    refused(both(), &[Algorithm::RS256, Algorithm::ES256]);
    refused(both(), &[Algorithm::RS256, Algorithm::HS256]);
    refused(both(), &[]);
    refused(JwtIdentity::hs256(SECRET), &[Algorithm::HS256, Algorithm::RS256]);
    let keys = set(&[RSA.jwk("r")]);
    refused(JwtIdentity::key_set(&keys), &[Algorithm::RS256, Algorithm::HS256]);
    let mixed = JwtIdentity::key_set(&keys).algorithms([Algorithm::RS256, Algorithm::ES256]);
    assert!(mixed.build().is_ok());
}

#[test]
fn a_configured_key_that_is_weak_or_for_another_algorithm_is_a_fault() {
    assert!(JwtIdentity::hs256([1; 31]).build().unwrap_err().to_string().contains("at least 32"));
    let short = JwtIdentity::secret(Algorithm::HS512, [1; 63]);
    assert!(short.build().unwrap_err().to_string().contains("at least 64"));
    let both = JwtIdentity::hs256([1; 40]).algorithms([Algorithm::HS256, Algorithm::HS384]);
    assert!(both.build().unwrap_err().to_string().contains("at least 48"));
    // 1024 bits, made by openssl: aws-lc makes none that short.
    let weak = "-----BEGIN PUBLIC KEY-----\n\
        MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC4POP9LjIaQ46eXbB+VitvO81p\n\
        YoqEzbXFXYSGuAe1qSlFhMtfvFB+PXyxMXyAxV8/1FAXpScO4i1xrpJxU8ozrUA2\n\
        UFOx4HgjHcBA+noR0W6Qx97qVJp4Drie4QN+3HohXie+zm5iVsCy0DcWREngjH3z\n\
        zxWHJsyw1skBAU8pTQIDAQAB\n\
        -----END PUBLIC KEY-----\n";
    let error = JwtIdentity::rs256(weak).build().unwrap_err();
    assert!(matches!(error, IdentityConfigError::UnusableKey { .. }), "{error}");
    for (algorithm, pem) in [
        (Algorithm::ES384, ec256().pem()),
        (Algorithm::ES256, ec384().pem()),
        (Algorithm::EdDSA, ec256().pem()),
        (Algorithm::RS256, ed25519().pem()),
        (Algorithm::HS256, RSA.pem()),
        (Algorithm::RS256, String::new()),
        (Algorithm::ES256, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".into()),
    ] {
        assert!(JwtIdentity::public_key(algorithm, pem).build().is_err(), "{algorithm:?}");
    }
}

const MALFORMED: &str = "the token is malformed";
const ALGORITHM: &str = "the token is signed with another algorithm";
const SIGNATURE: &str = "the token's signature does not verify";
const EXTENSION: &str = "the token's header asks for an extension that is not supported";
const UNKNOWN_KEY: &str = "the token is signed with a key that is not known";
const CLAIMS: &str = "the token lacks `exp`, `iss` or `aud`, or one of them is of the wrong type";
const EXPIRED: &str = "the token has expired";

#[test]
fn every_attack_on_the_signature_is_refused_for_its_own_reason() {
    let pair = ec256();
    let keys = set(&[pair.jwk("ec"), RSA.jwk("rsa")]);
    let published = strict(JwtIdentity::key_set(&keys));
    let rs256 = strict(JwtIdentity::rs256(RSA.pem()));
    let payload = claims(json!({})).to_string();
    let good = pair.sign(Algorithm::ES256, Some("ec"), &claims(json!({})));
    assert!(verify(&published, &good).is_ok());

    let unsigned = |alg: &str| {
        let header = json!({ "alg": alg }).to_string();
        format!("{}.{}.", base64url(header), base64url(&payload))
    };
    for alg in ["none", "None", "NONE", "nOnE", "", "HS1", "ES256K", "ES512", "RSA-OAEP", "dir"] {
        for verifier in [&published, &rs256, &hs256()] {
            assert_eq!(refused(verifier, &unsigned(alg)), ALGORITHM, "{alg}");
        }
    }

    // CVE-2015-9235: the public key, in every form it is published in, as an HMAC secret.
    for secret in [
        RSA.pem(),
        RSA.pem().trim().to_owned(),
        RSA.jwk("rsa").to_string(),
        RSA.jwk("rsa")["n"].as_str().unwrap().to_owned(),
    ] {
        let forger = Pair::Hmac(secret.into_bytes());
        for kid in [None, Some("rsa")] {
            let token = forger.sign(Algorithm::HS256, kid, &claims(json!({})));
            assert_eq!(refused(&rs256, &token), ALGORITHM);
            assert_eq!(refused(&published, &token), ALGORITHM);
        }
    }
    // The RSA key for ES256, and the other way round.
    let token = pair.sign(Algorithm::ES256, Some("rsa"), &claims(json!({})));
    assert_eq!(refused(&published, &token), ALGORITHM);
    let token = RSA.sign(Algorithm::RS256, Some("ec"), &claims(json!({})));
    assert_eq!(refused(&published, &token), ALGORITHM);

    // CVE-2022-21449 (psychic signatures), and other numbers that prove nothing.
    let (message, signature) = good.rsplit_once('.').unwrap();
    let with = |signature: &[u8]| format!("{message}.{}", base64url(signature));
    let order = hex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
    let zero = [0; 32];
    for (r, s) in [(&zero[..], &zero[..]), (&order, &order), (&zero, &order), (&order, &zero)] {
        assert_eq!(refused(&published, &with(&[r, s].concat())), SIGNATURE);
    }
    let bytes = pair.signature(Algorithm::ES256, message.as_bytes());
    for forged in [
        &bytes[..63],
        &[&bytes[..], &[0]].concat(),
        &[&[0][..], &bytes].concat(),
        &[&bytes[..], &bytes].concat(),
        &[],
        &[0; 64],
    ] {
        assert_eq!(refused(&published, &with(forged)), SIGNATURE);
    }
    // DER instead of the fixed form (RFC 7518 section 3.4).
    let der = [&[0x30, 0x44, 0x02, 0x20][..], &bytes[..32], &[0x02, 0x20], &bytes[32..]].concat();
    assert_eq!(refused(&published, &with(&der)), SIGNATURE);
    for at in [0, 31, 32, 63] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        assert_eq!(refused(&published, &with(&flipped)), SIGNATURE);
    }
    let rsa_token = RSA.sign(Algorithm::RS256, Some("rsa"), &claims(json!({})));
    let (message, _) = rsa_token.rsplit_once('.').unwrap();
    let long = RSA.signature(Algorithm::RS256, message.as_bytes());
    for forged in [&long[..255], &[&long[..], &[0]].concat(), &[&[0][..], &long].concat(), &[1]] {
        let token = format!("{message}.{}", base64url(forged));
        assert_eq!(refused(&published, &token), SIGNATURE);
    }
    // Another's claims, another's header under a good signature.
    let other = claims(json!({"agent_id": "victim"})).to_string();
    let (header, _) = good.split_once('.').unwrap();
    let swapped = format!("{header}.{}.{signature}", base64url(other));
    assert_eq!(refused(&published, &swapped), SIGNATURE);
}

fn hex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn nothing_in_a_header_brings_a_key() {
    let (ours, theirs) = (ec256(), ec256());
    let published = strict(JwtIdentity::key_set(set(&[ours.jwk("k")])));
    let payload = claims(json!({})).to_string();
    let offers = [
        json!({"jwk": theirs.jwk("k")}),
        json!({"jku": "http://127.0.0.1:1/keys"}),
        json!({"x5u": "http://127.0.0.1:1/chain"}),
        json!({"x5c": ["MIIB"]}),
        json!({"x5t": "AAAA", "x5t#S256": "AAAA"}),
    ];
    for offer in offers {
        let mut header = json!({"alg": "ES256", "kid": "k"});
        header.as_object_mut().unwrap().extend(offer.as_object().unwrap().clone());
        let header = header.to_string();
        // Signed with the offered key it is refused; with ours the offer does not matter.
        let forged = theirs.sign_text(Algorithm::ES256, &header, &payload);
        assert_eq!(refused(&published, &forged), SIGNATURE, "{header}");
        let honest = ours.sign_text(Algorithm::ES256, &header, &payload);
        assert!(verify(&published, &honest).is_ok(), "{header}");
    }
}

#[test]
fn a_key_id_is_a_name_and_nothing_is_opened_or_asked_by_it() {
    let pair = ec256();
    let published = strict(JwtIdentity::key_set(set(&[pair.jwk("k")])));
    for kid in [
        "../../../../../../dev/null",
        "/dev/null",
        "k' UNION SELECT 'secret' --",
        "k\0",
        "K",
        " k",
        "k ",
        "http://127.0.0.1:1/keys",
        "k\u{200b}",
        "ｋ",
        &"k".repeat(256),
    ] {
        let token = pair.sign(Algorithm::ES256, Some(kid), &claims(json!({})));
        assert_eq!(refused(&published, &token), UNKNOWN_KEY, "{kid}");
    }
    let payload = claims(json!({})).to_string();
    for kid in [json!(""), json!("k".repeat(257)), json!(1), json!(null), json!(["k"]), json!({})] {
        let header = json!({"alg": "ES256", "kid": kid}).to_string();
        let token = pair.sign_text(Algorithm::ES256, &header, &payload);
        assert_eq!(refused(&published, &token), MALFORMED, "{header}");
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

#[test]
fn unusable_keys_of_a_set_are_left_out_and_the_rest_serve() {
    let pair = ec256();
    let weak = {
        let mut jwk = RSA.jwk("weak");
        jwk["n"] = base64url([0xff; 128]).into();
        jwk
    };
    let with = |mut jwk: Value, changes: Value| {
        jwk.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        jwk
    };
    let mut private = ec256().jwk("private");
    private["d"] = base64url([7; 32]).into();
    let unusable = [
        json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "kid": "pq"}),
        json!({"kid": "no kind"}),
        json!("no object"),
        json!(null),
        weak,
        private,
        with(RSA.jwk("e1"), json!({"e": base64url([1])})),
        with(RSA.jwk("even"), json!({"e": base64url([2])})),
        with(RSA.jwk("padded"), json!({"n": format!("{}==", RSA.jwk("")["n"].as_str().unwrap())})),
        with(RSA.jwk("enc"), json!({"use": "enc"})),
        with(RSA.jwk("use"), json!({"use": 7})),
        with(RSA.jwk("ops"), json!({"key_ops": ["sign"]})),
        with(RSA.jwk("ops none"), json!({"key_ops": []})),
        with(RSA.jwk("oaep"), json!({"alg": "RSA-OAEP"})),
        with(RSA.jwk("hs"), json!({"alg": "HS256"})),
        with(pair.jwk("es384"), json!({"alg": "ES384"})),
        with(pair.jwk("curve"), json!({"crv": "P-384"})),
        with(pair.jwk("off"), json!({"x": base64url([1; 32])})),
        with(pair.jwk("short"), json!({"x": base64url([1; 31])})),
        with(pair.jwk("secp"), json!({"crv": "secp256k1"})),
        json!({"kty": "OKP", "crv": "X25519", "x": base64url([9; 32]), "kid": "x"}),
        with(ed25519().jwk("ed"), json!({"x": base64url([1; 31])})),
        with(ed25519().jwk("number"), json!({"kid": 7})),
    ];
    for bad in &unusable {
        assert!(JwtIdentity::key_set(set(std::slice::from_ref(bad))).build().is_err(), "{bad}");
    }
    let mut keys = unusable.to_vec();
    keys.push(with(pair.jwk("good"), json!({"use": "sig", "key_ops": ["verify", "sign"], "alg": "ES256", "x5c": ["MIIB"], "ext": true})));
    let verifier = strict(JwtIdentity::key_set(set(&keys)));
    assert!(
        verify(&verifier, &pair.sign(Algorithm::ES256, Some("good"), &claims(json!({})))).is_ok()
    );
    for (pair, kid) in [(&pair, "es384"), (&*RSA, "enc"), (&*RSA, "e1"), (&*RSA, "oaep")] {
        let algorithm = if kid == "es384" { Algorithm::ES256 } else { Algorithm::RS256 };
        let token = pair.sign(algorithm, Some(kid), &claims(json!({})));
        assert_eq!(refused(&verifier, &token), UNKNOWN_KEY, "{kid}");
    }
}

#[test]
fn a_set_is_refused_whole_when_it_cannot_be_told_what_it_means() {
    let (one, other) = (ec256(), ec256());
    for (document, says) in [
        (set(&[one.jwk("k"), other.jwk("k")]), "two keys with the id \"k\""),
        (set(&[one.jwk("k"), secret().jwk("s")]), "symmetric keys beside asymmetric"),
        (set(&[]), "no usable key"),
        (set(&[json!({"kty": "AKP", "kid": "pq"})]), "\"pq\": its type or curve"),
        (set(&vec![json!({}); 1001]), "1001 keys"),
        ("{}".to_owned(), "a list `keys`"),
        ("[]".to_owned(), "a list `keys`"),
        (r#"{"keys":{}}"#.to_owned(), "a list `keys`"),
        ("<html>".to_owned(), "a list `keys`"),
        (String::new(), "a list `keys`"),
        (" ".repeat(1024 * 1024 + 1), "longer than"),
    ] {
        let error = JwtIdentity::key_set(&document).build().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    // Secrets alone may stand in a set, when they are asked for; each serves what it is long for.
    let secrets = set(&[secret().jwk("long"), Pair::Hmac(vec![1; 31]).jwk("short")]);
    assert!(JwtIdentity::key_set(&secrets).build().is_err());
    let identity = JwtIdentity::key_set(&secrets).algorithms([Algorithm::HS256, Algorithm::HS512]);
    let verifier = strict(identity);
    let sign = |algorithm, kid| secret().sign(algorithm, Some(kid), &claims(json!({})));
    assert!(verify(&verifier, &sign(Algorithm::HS512, "long")).is_ok());
    assert_eq!(refused(&verifier, &sign(Algorithm::HS384, "long")), ALGORITHM);
    assert_eq!(refused(&verifier, &sign(Algorithm::HS256, "short")), UNKNOWN_KEY);
}

#[test]
fn a_token_without_a_key_id_is_taken_when_one_key_alone_fits() {
    let (one, other, ed) = (ec256(), ec256(), ed25519());
    let verifier = strict(JwtIdentity::key_set(set(&[one.jwk("a"), other.jwk("b"), ed.jwk("")])));
    let unnamed = |pair: &Pair, algorithm| pair.sign(algorithm, None, &claims(json!({})));
    assert!(verify(&verifier, &unnamed(&ed, Algorithm::EdDSA)).is_ok());
    let reason = refused(&verifier, &unnamed(&one, Algorithm::ES256));
    assert_eq!(reason, "the token names no key, and several could be meant");
    assert_eq!(refused(&verifier, &unnamed(&RSA, Algorithm::RS256)), ALGORITHM);
}

#[test]
fn secrets_are_not_shown() {
    let identity = JwtIdentity::hs256(SECRET);
    let shown = format!("{identity:?} {:?}", identity.clone().build().unwrap());
    assert!(!shown.contains("secret of"), "{shown}");
    let short = JwtIdentity::hs256("tooshortsecret").build().unwrap_err();
    assert!(!format!("{short} {short:?}").contains("tooshort"));
}

#[test]
fn rsa_keys_of_every_usual_size_verify() {
    for size in [KeySize::Rsa2048, KeySize::Rsa3072] {
        let pair = rsa(size);
        let token = pair.sign(Algorithm::PS256, None, &claims(json!({})));
        let verifier = strict(JwtIdentity::public_key(Algorithm::PS256, pair.pem()));
        assert!(verify(&verifier, &token).is_ok());
    }
}
