//! `merit` as a shell meets it: exit codes, every fault at once, secrets that are not shown.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{
    path::PathBuf,
    process::{Command, Output},
};

const SECRET: &str = "a secret of at least thirty-two bytes";

fn merit(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_merit"));
    command.args(arguments).env_clear().env("MERIT_JWT_SECRET", SECRET);
    command.envs(environment.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A file in the folder that cargo keeps for this test.
fn file(name: &str, content: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn deployed(name: &str) -> String {
    format!("{}/../deploy/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_deployed_configurations_are_valid_and_shown_without_secrets() {
    let files = [
        ("merit.toml", "all"),
        ("openclaw.toml", "all"),
        ("merit.kafka.toml", "all"),
        ("merit.feed.toml", "feed"),
        ("merit.rls.toml", "rls"),
    ];
    for (name, role) in files {
        let lacks_grpc = name.contains("rls") && !cfg!(feature = "grpc");
        if lacks_grpc || (name.contains("kafka") && !cfg!(feature = "kafka")) {
            continue;
        }
        let arguments = ["check-config", "--config", &deployed(name), "--role", role, "--json"];
        let secrets = [("FEED_API_KEY", SECRET), ("OPENCLAW_API_KEY", "one-two-three")];
        let output = merit(&arguments, &secrets);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output.stderr));
        let shown = text(&output.stdout);
        assert_eq!(shown.lines().count(), 1);
        assert!(!shown.contains(SECRET));
    }
}

#[test]
fn every_fault_is_told_at_once_with_its_full_path() {
    let config = file(
        "faulty.toml",
        r#"
        [identity]
        algorithms = ["none"]
        [store]
        kind = "redis"
        timeout = "soon"
        mode = "lease"
        lease_term = "2s"
        lease_ahead_max = 0
        lease_agents_max = 0
        [[bucket]]
        bucket_name = "a b"
        refill_rate = -1
        capacity = 40
        [bus]
        kind = "nats"
        [policy]
        kind = "oracle"
        [tuner]
        replay_window = "0s"
        agents_max = 9
        [ingest]
        listen = "127.0.0.1:0"
        max_batch = 0
        [feed]
        url = "ws://feed.example.com"
        forward_to = "ftp://x"
        headers = { "X-Key" = { env = "MERIT_TEST_NO_SUCH_VARIABLE" } }
        queue = 0
        [gateway]
        listen = "127.0.0.1:0"
        upstream = "ftp://x"
        [admin]
        listen = "0.0.0.0:9900"
        [nonsense]
        "#,
    );
    let output = merit(&["check-config", "--config", &config], &[]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    for path in [
        "identity.algorithms: ",
        "identity.issuer: ",
        "identity.audience: ",
        "store.timeout: ",
        "store.mode: ",
        "store.lease_term: must be 10ms to 1s, is 2s",
        "store.lease_ahead_max: ",
        "store.lease_agents_max: ",
        "bucket[0].bucket_name: ",
        "bucket[0].refill_rate: must be 0.000001 to 9000000 tokens per second, is -1",
        "bus.url: must be nats://host[:port] or tls://",
        "policy.kind: must be `additive`, `price`, `bandit` or `ppo`",
        "tuner.replay_window: ",
        "tuner.agents_max: must be 10000 to 100000000, is 9",
        "ingest.max_batch: ",
        "feed.url: must be wss://, or ws:// to localhost",
        "feed.forward_to: must be https://",
        "feed.headers.X-Key: environment variable MERIT_TEST_NO_SUCH_VARIABLE",
        "feed.queue: must be 1..=1000000, is 0",
        "gateway.upstream: ",
        "admin.token_env: ",
        "nonsense: unknown table",
    ] {
        assert!(told.contains(&format!("\n  {path}")), "{path} is missing from:\n{told}");
    }
}

/// All that is needed besides what a test is about.
const IDENTITY: &str = r#"
[identity]
algorithms = ["HS256"]
secret_env = "MERIT_JWT_SECRET"
issuer = "i"
audience = "a"
"#;

#[test]
fn every_fault_of_routes_is_told_with_its_place_in_the_file() {
    let config = file(
        "routes.toml",
        r#"
        [[bucket]]
        bucket_name = "all"
        default = true
        refill_rate = 20
        capacity = 40
        earned = true
        [[bucket]]
        bucket_name = "writes"
        refill_rate = 2
        capacity = 10
        earned = true
        [[route]]
        path = "/v1/orders/*"
        methods = ["POST"]
        buckets = ["writes"]
        [[route]]
        path = "v1"
        methods = ["post"]
        cost = 1
        cost_header = { name = "x-cost", max = 5 }
        [[route]]
        path = "/a"
        buckets = ["reads"]
        cost_header = { name = "x cost", max = 5 }
        settle_header = "ü"
        [[route]]
        path = "/b"
        cost = 9000001
        strip_settle_header = true
        [[route]]
        path = "/c"
        cost_header = { name = "x-cost", min = 7, max = 5 }
        [[route]]
        path = "/d"
        default_cost = 9000002
        unsettled_cost = 9000003
        settle_header = "x-cost"
        [gateway]
        listen = "127.0.0.1:0"
        upstream = "http://127.0.0.1:1"
        allow = ["a b"]
        retry_jitter = "2h"
        "#,
    );
    let output = merit(&["check-config", "--config", &config], &[]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    for fault in [
        "bucket[0].earned: ratings move the default bucket anyway: remove it",
        "route[1].path: \"v1\" must begin with",
        "route[1].methods: \"post\" is no method",
        "route[1].cost: set it or cost_header",
        "route[2].buckets: there is no \"reads\": add a [[bucket]]",
        "route[2].cost_header.name: must be letters",
        "route[2].settle_header: ",
        "route[3].cost: must be at most 9000000 tokens, is 9000001",
        "route[3].strip_settle_header: ",
        "route[4].cost_header.min: must be at most cost_header.max (5), is 7",
        "route[5].default_cost: must be at most 9000000 tokens, is 9000002",
        "route[5].unsettled_cost: must be at most 9000000 tokens, is 9000003",
        "gateway.allow: \"a b\"",
        "gateway.retry_jitter: ",
    ] {
        assert!(told.contains(&format!("\n  {fault}")), "{fault} is missing from:\n{told}");
    }
    assert!(!told.contains("route[0]") && !told.contains("bucket[1]"), "{told}");
    // The library's builder is nothing that whoever wrote the file has met.
    assert!(![".bucket(", ".named("].iter().any(|call| told.contains(call)), "{told}");
}

#[test]
fn two_buckets_need_one_that_is_marked_and_one_that_no_route_names_is_odd() {
    let buckets = |default: &str| {
        format!(
            r#"{IDENTITY}
            [[bucket]]
            bucket_name = "all"
            {default}
            refill_rate = 20
            capacity = 40
            [[bucket]]
            bucket_name = "writes"
            refill_rate = 2
            capacity = 10
            "#
        )
    };
    let config = file("unmarked.toml", &buckets(""));
    let output = merit(&["check-config", "--config", &config], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("\n  bucket: exactly one must have `default = true`"));
    let config = file("marked.toml", &buckets("default = true"));
    let output = merit(&["check-config", "--config", &config], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let told = text(&output.stderr) + &text(&output.stdout);
    assert!(told.contains("`writes`: no [[route]] names it"), "{told}");
}

#[test]
fn a_bucket_file_is_a_configuration_and_gives_the_selector() {
    let bucket = r#"{"bucket_name":"moltbook-agent-bucket","refill_rate":20,"capacity":40,"key_selector":"jwt.claims.act.agent"}"#;
    let config = file("bucket.json", bucket);
    let output = merit(&["check-config", "--config", &config, "--json"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["bucket"][0]["capacity"], 40);
    assert_eq!(shown["bucket"][0]["default"], true);

    file("other-bucket.json", &bucket.replace("act.agent", "sub").replace("moltbook", "other"));
    let config = file("two-buckets.toml", "bucket_files = [\"*bucket.json\"]\n");
    let output = merit(&["check-config", "--config", &config], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("all buckets share one selector"));
}

#[test]
fn the_environment_overrides_the_file_and_a_password_in_an_address_is_hidden() {
    let environment =
        [("MERIT__STORE__URL", "redis://user:hunter2@db:6379"), ("MERIT__POLICY__ALPHA", "0.25")];
    let arguments = ["check-config", "--config", &deployed("merit.toml"), "--json"];
    let output = merit(&arguments, &environment);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["policy"]["alpha"], 0.25);
    assert_eq!(shown["store"]["url"], "redis://***@db:6379");
}

/// The deployed configuration with other lines of `[store]`.
fn with_store(name: &str, lines: &str) -> String {
    let deployed = std::fs::read_to_string(deployed("merit.toml")).unwrap();
    let url = "url       = \"redis://127.0.0.1:6379\"\n";
    assert!(deployed.contains(url), "{deployed}");
    let bus = deployed.lines().find(|line| line.starts_with("kind = \"redis\" ")).unwrap();
    file(name, &deployed.replace(bus, "kind = \"in-process\"").replace(url, lines))
}

#[test]
fn a_bus_over_redis_is_on_the_server_of_the_store_unless_it_names_its_own() {
    let deployed = std::fs::read_to_string(deployed("merit.toml")).unwrap();
    let own = deployed.replace("[bus]\n", "[bus]\nurl = \"redis://other:1\"\n");
    for (name, config, url) in
        [("shared", &deployed, "redis://127.0.0.1:6379"), ("own", &own, "redis://other:1")]
    {
        let config = file(&format!("bus-{name}.toml"), config);
        let output = merit(&["check-config", "--config", &config, "--json"], &[]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(text(&output.stdout).contains("\"kind\":\"redis\""), "{shown}");
        let bus = shown.pointer("/config/bus").or_else(|| shown.get("bus")).unwrap();
        assert_eq!(bus["url"], url, "{bus}");
    }
    let cluster =
        deployed.replace("url       = \"redis://127.0.0.1:6379\"", "cluster = [\"redis://a:1\"]");
    let config = file("bus-cluster.toml", &cluster);
    let output = merit(&["check-config", "--config", &config], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("bus.url: must be redis://"), "{}", text(&output.stderr));
}

#[test]
fn every_way_to_address_redis_is_shown_without_its_passwords() {
    let ca = file("ca.pem", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n");
    let password = file("password", "hunter2\n");
    for (name, lines, shown) in [
        (
            "cluster",
            "cluster = [\"redis://u:hunter2@a:1\", \"redis://u:hunter2@b:2\"]",
            "redis://***@b:2",
        ),
        (
            "sentinel",
            "sentinel = { master = \"m\", urls = [\"redis://:hunter2@a:1\"] }\nusername = \"u\"\npassword_env = \"PASS\"",
            "redis://***@a:1",
        ),
        (
            "acl",
            &format!("url = \"redis://a:1\"\nusername = \"u\"\npassword_file = \"{password}\""),
            "redis://a:1",
        ),
        ("tls", &format!("url = \"rediss://a:1\"\ntls_ca_file = \"{ca}\""), "rediss://a:1"),
    ] {
        let config = with_store(&format!("{name}.toml"), &format!("{lines}\n"));
        let output =
            merit(&["check-config", "--config", &config, "--json"], &[("PASS", "hunter2")]);
        let told = text(&output.stderr);
        if name == "tls" {
            // An authority's file is looked into: this one is empty between its lines.
            assert_eq!(output.status.code(), Some(2), "{told}");
            assert!(told.contains("\n  store.url: "), "{told}");
            continue;
        }
        assert_eq!(output.status.code(), Some(0), "{name}: {told}");
        let printed = text(&output.stdout);
        assert!(printed.contains(shown) && !printed.contains("hunter2"), "{name}: {printed}");
    }
}

#[test]
fn every_fault_of_the_store_is_told_at_once() {
    let none = "no/such/file.pem";
    let lines = format!(
        "url = \"redis://a:1\"\ncluster = [\"redis://a:1\", \"http://b\", \"redis://c/3\"]\n\
         username = \"u\"\ntls_ca_file = \"{none}\"\ntls_cert_file = \"{none}\"\n"
    );
    let config = with_store("store-faults.toml", &lines);
    let output = merit(&["check-config", "--config", &config], &[]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    for path in [
        "store: say where Redis is by one of url, url_env, cluster and sentinel; 2 are set",
        "store.cluster[1]: ",
        "store.cluster[2]: a cluster has database 0",
        "store.username: needs",
        "store.tls_ca_file: cannot read",
        "store.tls_cert_file: cannot read",
        "store.tls_cert_file: goes with",
    ] {
        assert!(told.contains(&format!("\n  {path}")), "{path} is missing from:\n{told}");
    }
    for (lines, fault) in [
        ("", "store: say where Redis is"),
        ("sentinel = { master = \"m\", urls = [] }", "store.sentinel: the master's name and"),
        ("sentinel = { master = \"m\" }", "store.sentinel: `urls` is missing"),
        ("url = \"redis://a\"\npassword_env = \"NO_SUCH\"", "store.password_env: environment"),
        ("url = \"redis://u:hunter2@a:port\"", "store.url: must be redis://[user:password@]host"),
        ("url = \"redis://a?protocol=hunter2\"", "store.url: Invalid protocol version"),
        ("url = \"rediss://a/#insecure\"", "store.url: #insecure"),
    ] {
        let config = with_store("store-fault.toml", &format!("{lines}\n"));
        let output = merit(&["check-config", "--config", &config], &[]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{lines}: {told}");
        assert!(told.contains(&format!("\n  {fault}")), "{fault} is missing from:\n{told}");
        assert!(!told.contains("hunter2") && !told.contains("InvalidClientConfig"), "{told}");
    }
}

#[test]
fn a_token_is_printed_alone_and_a_bad_agent_is_wrong_usage() {
    let config = deployed("merit.toml");
    let output = merit(&["token", "--config", &config, "--agent", "a1", "--sub", "u1"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    assert_eq!(printed.trim().split('.').count(), 3, "{printed}");
    let output = merit(&["token", "--config", &config, "--agent", "a b"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--agent"));
}

#[test]
fn a_missing_file_a_missing_secret_and_an_unknown_role_are_wrong_usage() {
    let output = merit(&["run", "--config", "/no/such/file.toml"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/no/such/file.toml"));

    let short = [("MERIT_JWT_SECRET", "short")];
    let output = merit(&["run", "--config", &deployed("merit.toml")], &short);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("at least 32 bytes") && !told.contains("\"short\""), "{told}");

    let output = merit(&["run", "--config", &deployed("merit.toml"), "--role", "cook"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let output = merit(&["run", "--config", &deployed("merit.toml"), "--role", "feed"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("feed: must be there for role `feed`"));
    let output = merit(&["run", "--config", &deployed("merit.toml"), "--role", "rls"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("rls.listen: must be set for role `rls`"));
}

#[test]
fn an_address_that_is_taken_is_named_and_nothing_starts() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let environment = [
        ("MERIT__METRICS__LISTEN", address.as_str()),
        ("MERIT__GATEWAY__LISTEN", "127.0.0.1:0"),
        ("MERIT__INGEST__LISTEN", "127.0.0.1:0"),
        ("MERIT__ADMIN__LISTEN", "127.0.0.1:0"),
    ];
    let output = merit(&["run", "--config", &deployed("merit.toml")], &environment);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("metrics.listen") && told.contains(&address), "{told}");
}

#[test]
fn simulate_prints_one_object_and_draws_its_figures_without_a_system() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("figures");
    let drawn = folder.to_str().unwrap();
    let small = ["--seeds", "2", "--ticks", "300", "--agents", "40"];
    let arguments = ["simulate", "--policy", "static,price", "--regime", "base", "--json"];
    let all = [&arguments[..], &small[..], &["--plot", drawn]].concat();
    let output = merit(&all, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert_eq!(shown.lines().count(), 1);
    let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(value["seeds"], serde_json::json!([1, 2]));
    assert_eq!(value["results"].as_array().unwrap().len(), 2);
    for figure in ["utility-base", "drift-base", "rates-base"] {
        let png = std::fs::read(folder.join(format!("{figure}.png"))).unwrap();
        assert!(png.starts_with(b"\x89PNG"), "{figure}");
        let svg = std::fs::read_to_string(folder.join(format!("{figure}.svg"))).unwrap();
        assert!(svg.contains("price"), "{figure}");
    }
}

#[test]
fn simulate_judges_policies_by_their_bars() {
    let small = ["--seeds", "2", "--ticks", "300", "--agents", "40", "--tuning-seeds", "7..7"];
    let all = [&["simulate", "--bars", "--policies", "static", "--json"][..], &small].concat();
    let output = merit(&all, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let value: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(value["tuning_seeds"], serde_json::json!([7]));
    let criteria = value["criteria"].as_array().unwrap();
    let of = |policy: &str, what: &str| {
        let found = criteria
            .iter()
            .find(|one| one["policy"] == policy && one["what"].as_str().unwrap().starts_with(what));
        found.unwrap_or_else(|| panic!("{policy}: {what}"))["verdict"].clone()
    };
    assert_eq!(of("static", "base, %"), "missed");
    assert_eq!(of("static", "mean step of log r"), "met");
    assert_eq!(of("price", "agents farming receipts"), "reported");
}

#[test]
fn simulate_names_the_flag_the_value_and_the_remedy() {
    for (arguments, code, told) in [
        (&["--policies", "addtive"][..], 2, "no policy `addtive`: choose from static"),
        (&["--policies", "additive:x"], 2, "like additive:0.1"),
        (&["--policies", "additive:bst"], 2, "like additive:0.1"),
        (&["--bars", "--regimes", "base"], 2, "cannot be used with"),
        (&["--regimes", "calm"], 2, "no regime `calm`: choose from base"),
        (&["--seeds", "9..7"], 2, "the first and the last (1..10)"),
        (&["--ticks", "5"], 2, "--ticks"),
        (&["--jobs", "0"], 2, "--jobs"),
        (&["--versus", "reference"], 2, "--versus reference is not among --policies: name it"),
        (&["--agents", "90000", "--ticks", "90000"], 2, "ask for at most 20000000 agent-ticks"),
        (&["--plot", "/dev/null/x"], 1, "--plot /dev/null/x: cannot make the folder: name one"),
    ] {
        let output = merit(&[&["simulate"], arguments].concat(), &[]);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(text(&output.stderr).contains(told), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}
