//! A secret in the wrong place, of the wrong type or in broken syntax: told, and not repeated.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// What must not be shown: as a text, and as a number.
const SECRETS: [&str; 2] = ["hunter2", "48151623"];

/// The keys that hold secrets, name where they are, or are where somebody would look for them.
const KEYS: [(&str, &[&str]); 6] = [
    (
        "store",
        &[
            "url",
            "url_env",
            "cluster",
            "sentinel",
            "password",
            "password_env",
            "password_file",
            "tls_key_file",
            "kind",
        ],
    ),
    ("identity", &["secret", "secret_env", "secret_file", "api_keys", "api_keys_file"]),
    ("ingest", &["api_key", "api_key_env"]),
    ("admin", &["token", "token_env"]),
    ("bus", &["password", "password_env", "password_file", "sasl_password", "security"]),
    ("ratings", &["receipt_keys", "receipt_keys_env", "receipt_keys_file", "receipts"]),
];

/// What somebody may write there, as TOML.
const VALUES: [&str; 15] = [
    "\"hunter2\"",
    "\"redis://user:hunter2@host:6379/0\"",
    "\"redis://user:hunter2@host:port\"",
    "\"redis://host?protocol=hunter2\"",
    "\"/run/secrets/../hunter2\"",
    "\"\"\"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\"\"\"",
    "[\"redis://user:hunter2@host:port\"]",
    "[\"a\", [\"hunter2\"]]",
    "{ password = \"hunter2\" }",
    "{ master = \"m\", urls = \"redis://:hunter2@host\" }",
    "48151623",
    "48151623.5",
    // No TOML.
    "hunter2",
    "redis://user:hunter2@host:6379/0",
    "\"hunter2",
];

const REST: &str = r#"
[[bucket]]
bucket_name = "b"
refill_rate = 20
capacity = 40
"#;

/// Lines of every table that make the key in question matter.
fn table(name: &str, key: &str) -> String {
    let lines: &[&str] = match name {
        "store" => &["kind = \"redis\"", "url = \"redis://127.0.0.1:1\"", "username = \"u\""],
        "identity" => &["algorithms = [\"HS256\"]", "issuer = \"i\"", "audience = \"a\""],
        "ingest" | "admin" => &["listen = \"127.0.0.1:0\""],
        "bus" => &[
            "kind = \"kafka\"",
            "brokers = \"127.0.0.1:1\"",
            "username = \"u\"",
            "security = \"sasl_ssl\"",
        ],
        _ => &["receipts = \"require\""],
    };
    let others = lines.iter().filter(|line| {
        let set = line.split(' ').next().unwrap();
        // An address beside another would only be told to be one too many.
        set != key && !(set == "url" && ["url_env", "cluster", "sentinel"].contains(&key))
    });
    others.map(|line| format!("{line}\n")).collect()
}

/// The configuration without `[name]`.
fn others(name: &str) -> String {
    let rest = KEYS.iter().filter(|(other, _)| *other != name);
    let rest = rest.filter(|(other, _)| matches!(*other, "ingest" | "identity"));
    let lines = rest.map(|(other, _)| {
        let secret = if *other == "identity" { "secret_env = \"MERIT_JWT_SECRET\"\n" } else { "" };
        format!("[{other}]\n{}{secret}", table(other, ""))
    });
    lines.collect::<String>() + REST
}

fn merit(command: &str, config: &str, environment: Option<(&str, &str)>) -> Output {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("secret-{:?}.toml", std::thread::current().id()));
    std::fs::write(&path, config).unwrap();
    let mut merit = Command::new(env!("CARGO_BIN_EXE_merit"));
    merit.args([command, "--config", path.to_str().unwrap()]).env_clear();
    merit.env("MERIT_JWT_SECRET", "a secret of at least thirty-two bytes");
    merit.envs(environment);
    merit.output().unwrap()
}

/// Checks that nothing of a secret comes out, and returns what does.
fn shown(output: &Output, what: &str) -> String {
    let shown = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    for secret in SECRETS {
        assert!(!shown.contains(secret), "{what} shows {secret}:\n{shown}");
    }
    shown.into_owned()
}

#[test]
fn no_key_repeats_a_secret_that_the_file_has_in_the_wrong_place() {
    let mut refused = 0;
    for (name, keys) in KEYS {
        for key in keys {
            for value in VALUES {
                let lines = table(name, key);
                let config = format!("[{name}]\n{lines}{key} = {value}\n{}", others(name));
                let output = merit("check-config", &config, None);
                let told = shown(&output, &config);
                let refusal = output.status.code() == Some(2);
                assert!(refusal || output.status.success(), "{config}: {told}");
                // The fault is of this table, or of the whole file's syntax.
                let place =
                    [format!("\n  {name}."), format!("\n  {name}: "), "\n  file: ".to_owned()];
                assert!(!refusal || place.iter().any(|at| told.contains(at)), "{config}: {told}");
                refused += usize::from(refusal);
            }
        }
    }
    // What passes are addresses that are good, and names that are read at the start.
    assert!(refused > 300, "only {refused} were refused");
}

#[test]
fn no_key_repeats_a_secret_that_the_environment_has_in_the_wrong_place() {
    for (name, keys) in KEYS {
        for key in keys {
            let variable = format!("MERIT__{name}__{key}").to_uppercase();
            for value in VALUES {
                let config = format!("[{name}]\n{}{}", table(name, key), others(name));
                let environment = (variable.as_str(), value);
                let output = merit("check-config", &config, Some(environment));
                shown(&output, &format!("{environment:?}"));
            }
        }
    }
}

#[test]
fn no_table_that_is_none_repeats_what_stands_in_its_place() {
    for (name, _) in KEYS {
        for value in VALUES {
            let config = format!("{name} = {value}\n{}", others(name));
            let output = merit("check-config", &config, None);
            shown(&output, &config);
            assert_eq!(output.status.code(), Some(2), "{config}");
            let variable = format!("MERIT__{name}").to_uppercase();
            let output = merit("check-config", &others(name), Some((&variable, value)));
            shown(&output, &variable);
        }
        let config = format!("[[{name}]]\npassword = \"hunter2\"\n{}", others(name));
        shown(&merit("check-config", &config, None), &config);
    }
}

#[test]
fn a_bucket_in_json_is_refused_without_its_values() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let good = r#"{"bucket_name":"b","refill_rate":20,"capacity":40}"#;
    for (from, to, fault) in [
        ("40", "\"hunter2\"", "capacity: must be a whole number from 0, is a string"),
        ("\"b\"", "48151623", "bucket_name: must be a string, is a number"),
        ("\"b\"", "hunter2", "at line 1 column"),
        ("}", ",\"password\":\"hunter2\"}", "password: unknown key; there are bucket_name"),
    ] {
        let path = folder.join("bucket-with-a-secret.json");
        std::fs::write(&path, good.replace(from, to)).unwrap();
        let alone = ["check-config", "--config", path.to_str().unwrap()];
        let alone = Command::new(env!("CARGO_BIN_EXE_merit")).args(alone).output().unwrap();
        let config = format!("bucket_files = [\"{}\"]\n{}", path.display(), others("bucket"));
        for output in [alone, merit("check-config", &config, None)] {
            let told = shown(&output, to);
            assert!(told.contains(fault), "{fault} is missing from {told}");
        }
    }
}

#[test]
fn names_that_are_read_at_the_start_are_not_repeated_either() {
    for (name, key, feature) in [
        ("ingest", "api_key_env", true),
        ("admin", "token_env", true),
        ("bus", "password_env", cfg!(feature = "kafka")),
        ("bus", "password_file", cfg!(feature = "kafka")),
    ] {
        if !feature {
            continue;
        }
        let config = format!("[{name}]\n{}{key} = \"hunter2\"\n{}", table(name, key), others(name));
        let output = merit("run", &config, None);
        assert!(!output.status.success());
        let told = shown(&output, &config);
        assert!(told.contains(&format!("{name}.{key}: ")), "{told}");
    }
}

#[test]
fn an_address_is_refused_without_its_password_and_query() {
    for (table, key, url) in [
        ("identity", "jwks_url", "https://user:hunter2@id.example.com/keys"),
        ("identity", "jwks_url", "http://id.example.com/keys?token=hunter2"),
        ("identity", "jwks_url", "id.example.com/keys?token=hunter2"),
        ("identity", "jwks_url", "user:hunter2@id.example.com"),
        ("gateway", "upstream", "http://user:hunter2@127.0.0.1:3000"),
        ("gateway", "upstream", "http://127.0.0.1:3000/?token=hunter2"),
        ("gateway", "upstream", "127.0.0.1:3000/?token=hunter2"),
        ("gateway", "upstream", "http://127.0.0.1:3000/#hunter2"),
    ] {
        let set = if table == "gateway" { "listen = \"127.0.0.1:0\"" } else { "issuer = \"i\"" };
        let config = format!("[{table}]\n{set}\n{key} = \"{url}\"\n{}", others(table));
        let output = merit("check-config", &config, None);
        assert_eq!(output.status.code(), Some(2), "{config}");
        let told = shown(&output, &config);
        assert!(told.contains(&format!("\n  {table}.{key}: ")), "{told}");
    }
}
