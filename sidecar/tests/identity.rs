//! `[identity]` as an operator writes it: exactly what fits the selector, every fault at once.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{
    path::PathBuf,
    process::{Command, Output},
};

const SECRET: &str = "a secret of at least sixty-four bytes, so that it is fit for HS512 as well";

fn merit(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_merit"));
    command.args(arguments).env_clear().env("MERIT_JWT_SECRET", SECRET);
    command.env("SHORT", "x".repeat(40)).env("KEYS", "feed:0123456789abcdef");
    command.output().unwrap()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn file(name: &str, content: &str) -> String {
    std::fs::write(path(name), content).unwrap();
    path(name).to_str().unwrap().to_owned()
}

/// Checks a configuration with this `[identity]`, a gateway and an ingest; returns the faults.
fn faults(name: &str, identity: &str) -> String {
    let config = file(
        &format!("identity-{name}.toml"),
        &format!(
            "[identity]\n{identity}\n[[bucket]]\nbucket_name = \"b\"\nrefill_rate = 20\n\
             capacity = 40\n[ingest]\nlisten = \"127.0.0.1:0\"\napi_key_env = \"KEYS\"\n\
             [gateway]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://127.0.0.1:1\"\n"
        ),
    );
    let output = merit(&["check-config", "--config", &config]);
    let told = String::from_utf8(output.stderr).unwrap();
    match output.status.code() {
        Some(0) => String::new(),
        Some(2) => told,
        other => panic!("{other:?}: {told}"),
    }
}

const FOR: &str = "issuer = \"i\"\naudience = \"a\"\n";
const KEY_SET: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

#[test]
fn every_selector_is_valid_with_what_it_needs() {
    let keys = file("keys.txt", &format!("partner:{}\n", "ab".repeat(32)));
    let set = file("set.json", KEY_SET);
    for (name, identity) in [
        ("secret", format!("{FOR}algorithms = [\"HS256\", \"HS512\"]\nsecret_env = \"MERIT_JWT_SECRET\"")),
        ("url", format!("{FOR}jwks_url = \"http://127.0.0.1:1/keys\"\njwks_refresh = \"1m\"\njwks_stale = \"2h\"\nalgorithms = [\"RS256\", \"ES256\"]")),
        ("file", format!("{FOR}jwks_file = \"{set}\"\nrater_claim = \"sub\"\nkey_selector = 'jwt.claims.[\"https://a.example/id\"]'")),
        ("header", format!("key_selector = \"header.x-api-key\"\napi_keys_file = \"{keys}\"")),
        ("header-and-tokens", format!("key_selector = \"header.x-api-key\"\napi_keys_file = \"{keys}\"\n{FOR}jwks_file = \"{set}\"")),
        ("peer", "key_selector = \"peer.ip\"\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]\nforwarded = \"forwarded\"\nipv6_prefix = 56".to_owned()),
    ] {
        assert_eq!(faults(name, &identity), "", "{name}");
    }
}

#[test]
fn what_is_missing_wrong_or_for_another_selector_is_told_at_once_with_its_path() {
    let empty = file("empty.txt", "# none\n");
    let bad = file("bad.txt", "partner:xyz\n");
    let set = file("set.json", KEY_SET);
    for (name, identity, told) in [
        ("none", String::new(), &["identity.issuer: ", "identity.audience: ", "identity.algorithms: must name", "identity: exactly one of jwks_url, "][..]),
        (
            "two",
            format!("jwks_file = \"{set}\"\nsecret_env = \"SHORT\"\nleeway = \"10m\"\nrater_claim = \"a..b\""),
            &["identity: exactly one of", "found jwks_file, secret_env", "identity.leeway: must be 0", "identity.issuer: "],
        ),
        ("claim", format!("{FOR}jwks_file = \"{set}\"\nrater_claim = \"a..b\""), &["identity.rater_claim: \"a..b\" has an empty name at byte 2"]),
        ("short", format!("{FOR}algorithms = [\"HS384\"]\nsecret_env = \"SHORT\""), &["identity.secret_env: must be at least 48 bytes long, has 40"]),
        ("mixed", format!("{FOR}algorithms = [\"HS256\", \"RS256\"]\njwks_file = \"{set}\""), &["identity.algorithms: must fit the key"]),
        ("unknown", format!("{FOR}algorithms = [\"HS1\"]\njwks_file = \"{set}\""), &["identity.algorithms: must be among HS256, "]),
        ("http", format!("{FOR}jwks_url = \"http://id.example.com/keys\""), &["identity.jwks_url: ", "must be https"]),
        ("gone", format!("{FOR}jwks_file = \"/no/such/set\""), &["identity.jwks_file: cannot read"]),
        (
            "stray",
            format!("{FOR}algorithms = [\"HS256\"]\nsecret_env = \"MERIT_JWT_SECRET\"\njwks_refresh = \"1m\"\njwks_ca_file = \"x\"\napi_keys_file = \"x\"\ntrusted_proxies = [\"::1\"]"),
            &[
                "identity.jwks_refresh: has no effect with secret_env",
                "identity.jwks_ca_file: has no effect",
                "identity.api_keys_file: serves `header.<name>` only",
                "identity.trusted_proxies: serves `peer.ip` only",
            ],
        ),
        ("times", format!("{FOR}jwks_file = \"{set}\"\njwks_refresh = \"1ms\"\njwks_stale = \"soon\""), &["identity.jwks_refresh: must be 100ms to", "identity.jwks_stale: must be"]),
        ("stale", format!("{FOR}jwks_file = \"{set}\"\njwks_refresh = \"1h\"\njwks_stale = \"1m\""), &["identity.jwks_stale: must be 1h to 7d"]),
        ("selector", "key_selector = \"cookie.x\"".to_owned(), &["identity.key_selector: selector \"cookie.x\" must be"]),
        ("header", "key_selector = \"header.x-api-key\"".to_owned(), &["identity.api_keys_file: must be set"]),
        ("header-empty", format!("key_selector = \"header.x-api-key\"\napi_keys_file = \"{empty}\""), &["identity.api_keys_file: must hold at least one"]),
        ("header-bad", format!("key_selector = \"header.x-api-key\"\napi_keys_file = \"{bad}\"\nissuer = \"i\""), &["identity.api_keys_file: line 1", "identity.issuer: is about tokens"]),
        (
            "peer",
            "key_selector = \"peer.ip\"\ntrusted_proxies = [\"10.0.0.1/8\", \"::1\", \"x\"]\nipv6_prefix = 129".to_owned(),
            &["identity.trusted_proxies[0]: ", "identity.trusted_proxies[2]: ", "identity.ipv6_prefix: must be 0 to 128"],
        ),
        ("peer-field", "key_selector = \"peer.ip\"\nforwarded = \"x-real-ip\"".to_owned(), &["identity.forwarded: must be `x-forwarded-for` or"]),
        ("peer-nobody", "key_selector = \"peer.ip\"\nforwarded = \"forwarded\"".to_owned(), &["identity.forwarded: nobody is believed"]),
    ] {
        let found = faults(name, &identity);
        for fault in told {
            assert!(found.contains(fault), "{name}: {fault} is missing from:\n{found}");
        }
    }
}

#[test]
fn an_ingest_that_nobody_could_post_to_is_a_fault() {
    let config = file(
        "nobody-rates.toml",
        "[identity]\nkey_selector = \"peer.ip\"\n[[bucket]]\nbucket_name = \"b\"\n\
         refill_rate = 20\ncapacity = 40\n[ingest]\nlisten = \"127.0.0.1:0\"\n",
    );
    let output = merit(&["check-config", "--config", &config]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("nobody could rate"));
}

#[test]
fn a_secret_of_an_agent_and_a_collector_is_refused_and_not_shown() {
    // SHA-256 of the collector's `0123456789abcdef`.
    let digest = "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f";
    let keys = file("shared.txt", &format!("partner:{digest}\n"));
    let identity = format!("key_selector = \"header.x-api-key\"\napi_keys_file = \"{keys}\"");
    let told = faults("shared", &identity);
    let fault = "identity.api_keys_file: key of agent `key-partner` is also `key-feed`";
    assert!(told.contains(fault), "{told}");
    assert!(!told.contains("0123456789abcdef") && !told.contains(digest), "{told}");
}

#[test]
fn an_api_key_is_made_and_its_line_is_what_the_configuration_takes() {
    let keys = path("made-keys.txt");
    let _ = std::fs::remove_file(&keys);
    let lines = keys.to_str().unwrap();
    let output = merit(&["api-key", "partner", "--line-to", lines, "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(made["agent_id"], "key-partner");
    let written = std::fs::read_to_string(&keys).unwrap();
    assert_eq!(written.trim(), made["line"].as_str().unwrap());
    assert!(!written.contains(made["key"].as_str().unwrap()));
    let identity = format!("key_selector = \"header.x-api-key\"\napi_keys_file = \"{lines}\"");
    assert_eq!(faults("made", &identity), "");
    // The name is there already: a fault, and of the one who starts with it.
    assert_eq!(merit(&["api-key", "partner", "--line-to", lines]).status.code(), Some(0));
    assert!(faults("made-twice", &identity).contains("stands twice"));
    assert_eq!(merit(&["api-key", "a b"]).status.code(), Some(2));
}

#[test]
fn a_token_is_signed_as_configured_and_put_where_the_selector_looks() {
    let config = file(
        "token.toml",
        &format!(
            "[identity]\n{FOR}algorithms = [\"HS512\"]\nsecret_env = \"MERIT_JWT_SECRET\"\n\
             key_selector = 'jwt.claims.act[\"a.b\"]'\n[[bucket]]\nbucket_name = \"b\"\n\
             refill_rate = 20\ncapacity = 40\n"
        ),
    );
    let output = merit(&["token", "--config", &config, "--agent", "a1"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let token = String::from_utf8(output.stdout).unwrap();
    let key = jsonwebtoken::DecodingKey::from_secret(SECRET.as_bytes());
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS512);
    rules.set_audience(&["a"]);
    let decoded = jsonwebtoken::decode::<serde_json::Value>(token.trim(), &key, &rules).unwrap();
    assert_eq!(decoded.claims["act"]["a.b"], "a1");
}
