//! The dashboard in a real Chromium, served by the real binary over real Redis.
//!
//! `browser/dashboard.mjs` drives it; what it saw is judged here. How long a table of a hundred thousand agents takes is
//! printed, and no bound of the test.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, routing::post};
use http::Method;
use merit_integration::{
    Folder, Merit, Persistence, Process, Redis, Settings, Upstream, binary, browser,
    client::{Client, request},
    keys, ports,
    ratings::{Poster, Rating},
    until,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Mutex};
use tower_merit::{
    AgentId, RedisStore,
    bucket::Limits,
    store::{Change, Tune, Written},
};

const TOKEN: &str = "an-admin-token-of-a-test";
const TOKEN_ENV: &str = "MERIT_TEST_ADMIN_TOKEN";
/// How long a whole visit may take.
const VISIT_DEADLINE: Duration = Duration::from_secs(300);
const READ_DEADLINE: Duration = Duration::from_secs(60);
const AGENTS: usize = 60;
/// The one that is looked at closely.
const AGENT: &str = "agent-007";
/// As many as a large service has.
const CROWD: usize = 100_000;
const CROWD_CALL: usize = 500;
/// What no agent is called, and an address may say all the same.
const HOSTILE: [&str; 4] = [
    "<img src=x onerror=alert(1)>",
    "\"><script>alert(1)</script>",
    "\u{202e}txt.exe\u{2066}",
    "'&lt;b&gt;%3Cb%3E",
];

/// Returns settings with an admin listener at `listen`, and its URL over loopback.
fn settings(redis: &Redis, listen: &str) -> (Settings, String) {
    let port = ports::free();
    let mut settings = Settings::new(&redis.url());
    settings.tables = format!(
        "[admin]\nlisten = \"{listen}:{port}\"\ntoken_env = \"{TOKEN_ENV}\"\naudit_log = \"audit.ndjson\"\n"
    );
    settings.environment = [
        (TOKEN_ENV, TOKEN),
        ("MERIT__POLICY__KIND", "price"),
        ("MERIT__POLICY__SERVICE_CAPACITY", "500"),
        // So long that what moved the agent is still ratings when it is looked at.
        ("MERIT__POLICY__TICK", "20s"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    (settings, format!("http://127.0.0.1:{port}/"))
}

/// Lets the driver kill the process and start it again; returns where.
async fn control(merit: Arc<Mutex<Merit>>) -> String {
    type Process = State<Arc<Mutex<Merit>>>;
    let routes = Router::new()
        .route("/kill", post(async |State(merit): Process| merit.lock().await.kill9()))
        .route("/start", post(async |State(merit): Process| merit.lock().await.restart().await))
        .with_state(merit);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
    format!("http://{address}")
}

fn told(visit: &str, page: &str) -> Value {
    json!({
        "visit": visit,
        "chromium": browser::chromium(),
        "root": browser::is_root(),
        "page": page,
        "token": TOKEN,
        "agent": AGENT,
        "agents": AGENTS,
    })
}

/// Asserts what holds for every visit: nothing complained, on a console or of the policy; nobody is kept
/// out, in light and in dark; nothing is wider than a telephone.
fn assert_sound(seen: &Value) {
    assert_eq!(seen["complaints"], json!([]), "console, policy, dialogs, or requests of others");
    assert_eq!(seen["axe"], json!([]));
    assert_eq!(seen["wide"], json!([]));
}

#[tokio::test]
async fn an_operator_sees_the_loop_and_acts_on_it() {
    let redis = Redis::start(Persistence::EveryWrite).await;
    let upstream = Upstream::start();
    let (settings, page) = settings(&redis, "127.0.0.1");
    let merit = Merit::start(settings.upstream(&upstream.url())).await;
    let mut poster = Poster::new(&merit.ingest());
    for round in 0..5 {
        let score = |agent: usize| f64::from(u8::try_from(1 + (agent + round) % 5).unwrap());
        let all: Vec<Rating> =
            (1..=AGENTS).map(|n| Rating::new(&format!("agent-{n:03}"), score(n))).collect();
        poster.rate_all(&all).await;
        let praise: Vec<Rating> = (0..4).map(|_| Rating::new(AGENT, 5.0)).collect();
        poster.rate_all(&praise).await;
    }
    let client = Client::new();
    let url = format!("{page}agents?page_size=1");
    until("all agents are in the table", READ_DEADLINE, || async {
        let answer = client.get(&url, None).await.ok()?;
        (answer.status == 200 && answer.json()["total"] == AGENTS).then_some(())
    })
    .await;
    let gateway = merit.gateway();
    let log = merit.folder().join("audit.ndjson");
    let merit = Arc::new(Mutex::new(merit));
    let downloads = Folder::new("downloads");
    let mut told = told("all", &page);
    told["gateway"] = gateway.into();
    told["bearer"] = keys::agent(AGENT).into();
    told["control"] = control(Arc::clone(&merit)).await.into();
    told["downloads"] = downloads.path().to_str().unwrap().into();
    told["hostile"] = json!(HOSTILE);
    let seen = browser::visit("dashboard.mjs", &told, VISIT_DEADLINE).await;
    assert_sound(&seen);

    // What is told.
    assert_eq!(seen["policy"], "price live");
    assert_eq!(seen["theme"], json!([true, true]), "colours are chosen and kept");
    assert_eq!(seen["focus"], json!(["H1", "Agents", "Agents · Merit"]));
    assert_eq!(seen["kept_focus"], true, "a change of order moves the focus nowhere");
    assert_eq!(seen["ascending"], json!(["agent-001", "agent-002"]));
    assert_eq!(seen["descending"], json!(["agent-060"]));
    assert_eq!(seen["pages"][0], "Page 1 of 3");
    assert!(seen["pages"][2].as_str().unwrap().starts_with("26 to 50 of 60 agents."), "{seen}");
    assert_eq!((&seen["pages"][1], &seen["pages"][3]), (&json!(25), &json!(25)));
    assert_eq!(seen["linked"], "#/agents?sort=-agent_id&page=2&page_size=25");
    assert_eq!(seen["found"], json!([AGENT]));
    assert_eq!(seen["sparks"], 2);
    let sentences = seen["sentences"].to_string();
    assert!(sentences.contains("say a quality of"), "{sentences}");
    assert!(seen["scale"].as_str().unwrap().starts_with("Quality 4."), "{}", seen["scale"]);
    let moves = seen["moves"].to_string();
    assert!(moves.contains("a rating of 5"), "{moves}");

    // What is done.
    let wrong = seen["wrong_token"].as_str().unwrap();
    assert!(wrong.contains("another one") && wrong.contains("Nothing was changed"), "{wrong}");
    assert_eq!(seen["wrong_focus"], "password");
    assert_eq!(seen["not_frozen"], "none");
    assert_eq!(seen["frozen"], json!(["frozen", [format!("{AGENT} is frozen.")]]));
    assert!(seen["bad_rate"].as_str().unwrap().starts_with("Refused (422): refill_rate"));
    // The rate may have moved on by a step since: it is a starting point.
    assert!((5.0..10.0).contains(&seen["set"][0].as_f64().unwrap()), "{}", seen["set"]);
    assert_eq!(
        (&seen["before_ban"], &seen["banned"], &seen["unbanned"]),
        (&json!(200), &json!(403), &json!(200))
    );
    assert_eq!(seen["ban_dialog"][1], json!([]), "axe");
    assert_eq!(seen["focus_back"], "Ban…");
    assert!(
        (15.0..25.0).contains(&seen["reset"].as_f64().unwrap()),
        "it starts anew from 20: {seen}"
    );
    assert_eq!(seen["kept"], json!([{}, {}, ""]).to_string(), "the token is nowhere");
    assert_eq!(seen["address"], format!("{page}#/agents/{AGENT}"));

    // Buckets.
    assert_eq!(seen["draft"].as_array().unwrap().len(), 2, "{}", seen["draft"]);
    assert_eq!(seen["not_applied"], 1, "a draft is a draft");
    assert_eq!(seen["applied"]["source"], "store");
    assert_eq!(seen["applied"]["buckets"][1]["bucket_name"], "writes");
    assert_eq!(seen["applied"]["routes"][0]["path"], "/v1/orders/*");
    let fault = seen["fault"].as_str().unwrap();
    assert!(fault.starts_with("Refused (422)") && fault.contains("refill_rate"), "{fault}");
    let conflict = seen["conflict"].to_string();
    assert!(
        conflict.contains("Not applied") && conflict.contains("refill_rate from 21 to 20"),
        "{conflict}"
    );
    assert_eq!(seen["changed"], 4.0);
    assert_eq!(seen["exported"], seen["exported_as"]);
    assert_eq!(seen["exported"]["bucket_name"], "writes");
    assert_eq!(seen["file_again"], "file");

    // Who did what.
    let actions = ["reset", "unban", "ban", "set", "unfreeze", "freeze"];
    let shown: Vec<&str> =
        seen["audit"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(shown.ends_with(&actions), "{shown:?}");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("\"begun\"") && log.contains("\"done\""), "{log}");
    assert!(!log.contains(TOKEN), "{log}");

    // Whatever an address says is text.
    let hostile: Vec<Value> =
        HOSTILE.iter().map(|id| json!([id, format!("{id} · Merit"), 0])).collect();
    assert_eq!(seen["hostile"], json!(hostile));
    assert_eq!(seen["hostile_bucket"], json!([["moltbook-agent-bucket", HOSTILE[0]], 0]));

    // Nobody there.
    let lost = seen["lost"][0].as_str().unwrap();
    assert!(
        lost.starts_with("Disconnected since ") && lost.contains("What you see is from"),
        "{lost}"
    );
    assert_eq!(seen["stale"][0], seen["stale"][1], "the last figures stay");
    assert_eq!(seen["back"][0], "");
    assert!(seen["back"][1].to_string().contains("started anew"), "{}", seen["back"]);
    merit.lock().await.terminate().await;
}

#[tokio::test]
async fn a_hundred_thousand_agents_are_a_table_like_any_other() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = RedisStore::builder(&redis.url()).timeout(READ_DEADLINE).connect().await.unwrap();
    store.life().await.unwrap();
    store.begin_epoch("crowd").await.unwrap();
    let change = |number: usize| Change {
        agent: AgentId::new(&format!("agent-{number:06}")).unwrap(),
        rev: 0,
        limits: Limits::per_second(f64::from(u32::try_from(number % 400 + 1).unwrap()) / 10.0, 40)
            .unwrap(),
        named: Vec::new(),
        adopts: None,
        state: String::new(),
        applied: Vec::new(),
        seen: Vec::new(),
    };
    for from in (0..CROWD).step_by(CROWD_CALL) {
        let changes: Vec<Change> = (from..from + CROWD_CALL).map(change).collect();
        let written = store.write(&changes).await.unwrap();
        assert!(written.iter().all(|one| matches!(one, Ok(Written::Done { .. }))), "{written:?}");
    }
    let (settings, page) = settings(&redis, "127.0.0.1");
    let mut merit = Merit::start(settings).await;
    let mut told = told("crowd", &page);
    told["agents"] = CROWD.into();
    told["agent"] = "agent-054321".into();
    let seen = browser::visit("dashboard.mjs", &told, VISIT_DEADLINE).await;
    println!("milliseconds until the table of {CROWD} agents, and through it: {}", seen["ms"]);
    assert_sound(&seen);
    assert_eq!((&seen["first"], &seen["last"]), (&json!("agent-000000"), &json!("agent-099999")));
    assert_eq!(seen["where"], "Page 1 of 2,000");
    assert_eq!(seen["found"], json!(["agent-054321"]));
    merit.terminate().await;
}

#[tokio::test]
async fn where_reading_needs_the_token_the_page_asks_for_it() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (settings, page) = settings(&redis, "0.0.0.0");
    let mut merit = Merit::start(settings).await;
    let client = Client::new();
    let bare = client.get(&format!("{page}overview"), None).await.unwrap();
    assert_eq!(bare.status, 401, "data need the token");
    let style = client.get(&format!("{page}assets/style.css"), None).await.unwrap();
    assert_eq!(style.status, 200, "the page does not");
    let seen = browser::visit("dashboard.mjs", &told("locked", &page), VISIT_DEADLINE).await;
    assert_sound(&seen);
    assert_eq!((&seen["hidden"], &seen["opened"]), (&json!(true), &json!(true)));
    assert!(seen["refused"].to_string().contains("the admin token is another one"), "{seen}");
    assert_eq!(seen["address"], page);
    assert_eq!(seen["kept"], json!([{}, {}]).to_string(), "what is forgotten is kept nowhere");
    merit.terminate().await;
}

#[tokio::test]
async fn the_demo_serves_it_where_it_is_told_to() {
    let folder = Folder::new("demo");
    let address = format!("127.0.0.1:{}", ports::free());
    let arguments =
        ["demo", "--duration=60s", "--agents=2", "--admin", &address].map(str::to_owned);
    let binary = binary();
    let program = binary.to_str().expect("the target folder's name is text");
    let process = Process::start("demo", program, &arguments, &[], folder.path());
    let (client, url) = (Client::new(), format!("http://{address}/"));
    let page = until("the page is there", READ_DEADLINE, || async {
        let asked = request(Method::GET, &url, None, &[("accept", "text/html")], "");
        client.call(asked).await.ok().filter(|page| page.status == 200)
    })
    .await;
    assert!(page.text().contains("<title>Merit</title>"), "{}", page.text());
    until("the demo said where", READ_DEADLINE, || async {
        process.output().contains(&format!("Watch it in a browser: {url}")).then_some(())
    })
    .await;
    let agents = until("agents were rated", READ_DEADLINE, || async {
        let answer = client.get(&format!("{url}agents"), None).await.ok()?;
        (answer.status == 200 && answer.json()["total"] == 2).then(|| answer.json())
    })
    .await;
    assert_eq!(agents["matching"], 2, "{agents}");
    // Nobody named a token: it shows, and does nothing.
    let freeze = request(Method::POST, &format!("{url}agents/agent-1/freeze"), None, &[], "");
    let refused = client.call(freeze).await.unwrap();
    assert_eq!(refused.status, 403, "{}", refused.text());
}
