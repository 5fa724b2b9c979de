//! Keys that are configured, and signatures as an issuer makes them and as an attacker would.
//!
//! The table of attacks names for each the reason that the caller reads: a vector that is refused
//! for another reason would pass by accident.

use aws_lc_rs::rsa::KeySize;
use serde_json::{Value, json};
use tower_merit::{
    JwtIdentity,
    identity::{IdentityConfigError, jwt::Algorithm},
};

use crate::{
    keys::{Pair, RSA, SECRET, base64url, claims, ec256, ec384, ed25519, rsa, set},
    verifier::{
        ALGORITHM, MALFORMED, SIGNATURE, UNKNOWN_KEY, hs256, refused, secret, strict, verify,
    },
};

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
