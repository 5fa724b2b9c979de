//! The storefront of the examples in a real Chromium, against a gateway that is restarted meanwhile.
//!
//! `browser/storefront.mjs` drives it; what it saw is judged here. How long it takes from posting a rating to
//! the card is printed, and no bound of the test.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    routing::{get, post},
};
use merit_integration::{
    Bus, Folder, Merit, Persistence, Process, Redis, Role, SECRET, SECRET_ENV, Settings, binary,
    browser, client::Client, keys, ports, program, until,
};
use serde_json::json;
use tokio::{net::TcpListener, sync::Mutex};

const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long the whole visit may take.
const VISIT_DEADLINE: Duration = Duration::from_secs(240);
/// Ratings whose way to the page is timed.
const RATINGS: usize = 200;
/// Ratings around the restart of the gateway, a third of them each: while it stops, is away, and starts.
const MISSED: usize = 30;
/// The items of the cards that are in the page itself.
const PLAIN: [&str; 4] = ["tea", "ink", "lamp", "kettle"];
/// Items that the shop has, too.
const HOSTILE: [&str; 6] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "'; DROP TABLE items; --",
    "&lt;b&gt; & \\u003cb\\u003e",
    "\u{202e}txt.exe\u{2066}",
    "a\u{2028}data: b\u{2029}%0d%0a",
];
/// A viewer that ingest and gateway take.
const VIEWER: &str = "<img src=x onerror=alert(1)>\"'\u{202e}\u{2066}&amp;";
/// Names that they do not take, and that the page shows all the same.
const NOBODY: &str = "line one\nline two\r\n<b>\"'\u{202e}\u{200f}</b>";

/// The page's server.
struct Storefront {
    _process: Process,
    url: String,
    _folder: Folder,
}

impl Storefront {
    async fn start(port: u16, gateway: &str, items: &[&str]) -> Self {
        let sources = ["bin/storefront.rs", "lib.rs"].map(|file| format!("examples/src/{file}"));
        let page = ["index.html", "storefront.js", "storefront.css", "favicon.svg"]
            .map(|file| format!("examples/storefront/{file}"));
        let sources: Vec<&str> = sources.iter().chain(&page).map(String::as_str).collect();
        let binary = program("storefront", &sources);
        let mut arguments = vec![format!("--port={port}"), format!("--gateway={gateway}")];
        arguments.extend(items.iter().map(|item| format!("--item={item}")));
        let folder = Folder::new("storefront");
        let binary = binary.to_str().expect("the target folder's name is text");
        let process = Process::start("storefront", binary, &arguments, &[], folder.path());
        let url = format!("http://127.0.0.1:{port}/");
        let client = Client::new();
        until("the storefront answers", START_DEADLINE, || async {
            client.get(&url, None).await.ok().filter(|page| page.status == 200)
        })
        .await;
        Self { _process: process, url, _folder: folder }
    }
}

/// Lets the driver stop and start the gateway; returns where.
async fn control(gateway: Arc<Mutex<Merit>>) -> String {
    type Gateway = State<Arc<Mutex<Merit>>>;
    let routes = Router::new()
        .route("/stop", post(async |State(merit): Gateway| merit.lock().await.terminate().await))
        .route("/start", post(async |State(merit): Gateway| merit.lock().await.restart().await))
        .route(
            "/streams",
            get(async |State(merit): Gateway| {
                let streams = merit.lock().await.metric("merit_events_streams").await;
                streams.unwrap_or_default().to_string()
            }),
        )
        .with_state(gateway);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
    format!("http://{address}")
}

#[tokio::test]
async fn a_rating_changes_the_card_once_through_a_restart_whatever_ids_hold() {
    let redis = Redis::start(Persistence::EveryWrite).await;
    let page_port = ports::free();
    let page_url = format!("http://127.0.0.1:{page_port}");
    let settings = |role, node: &str| {
        let mut settings = Settings::new(&redis.url()).role(role).upstream(&page_url);
        settings.bus = Bus::Redis { topic: "store.ratings".to_owned(), partitions: 4 };
        // Who asked once waits 6 s: the bucket holds 40, gets 20 a second, and may be left in debt.
        settings.tables = format!(
            "[[route]]\npath = \"/hello\"\ncost = 120\n\n\
             [personalize]\nenabled = true\nnode = \"{node}\"\n\n\
             [personalize.events]\nallow_origins = [\"{page_url}\"]\n"
        );
        settings
    };
    let ingest = Merit::start(settings(Role::All, "all")).await;
    let gateway = Merit::start(settings(Role::Gateway, "gateway")).await;
    let shop = Storefront::start(page_port, &gateway.gateway(), &HOSTILE).await;
    let gateway = Arc::new(Mutex::new(gateway));
    let items: Vec<&str> = PLAIN.into_iter().chain(HOSTILE).collect();
    let token = |sub: &str, agent: &str| {
        keys::hs256(&keys::claims(&json!({"sub": sub, "agent_id": agent})))
    };
    let told = json!({
        "chromium": browser::chromium(),
        "root": browser::is_root(),
        "page": shop.url,
        "ingest": ingest.ingest(),
        "control": control(Arc::clone(&gateway)).await,
        "collector": keys::collector(),
        "viewer": VIEWER,
        "token": token(VIEWER, "agent-of-ann"),
        "hostile": token(NOBODY, NOBODY),
        "items": items,
        "ratings": RATINGS,
        "missed": MISSED,
    });
    let seen = browser::visit("storefront.mjs", &told, VISIT_DEADLINE).await;
    println!("from POST to DOM: {}", seen["post_to_dom_ms"]);

    assert_eq!(seen["complaints"], json!([]), "console, policy or dialogs");
    assert_eq!(seen["axe"], json!([]));
    assert_ne!(seen["own"]["before"], seen["own"]["after"], "the rating shows");
    assert_eq!(seen["post_to_dom_ms"]["ratings"], RATINGS);

    // The restart.
    assert_eq!(seen["waiting"], "The connection is lost; trying again.");
    assert_eq!(seen["told_while_away"], json!([]));
    for update in seen["updates"].as_array().unwrap() {
        assert_eq!(update[1], update[2], "{update}: an update was lost or came twice");
    }
    assert_eq!(seen["updates"].as_array().unwrap().len(), items.len());

    // Whatever ids hold.
    assert_eq!(seen["viewer"], VIEWER);
    assert_eq!(seen["shown"], json!({"items": items, "children": 0, "scripts": 1}));
    assert_eq!(seen["hostile"], json!([NOBODY, NOBODY]));
    assert_eq!(seen["hostile_elements"], 0);
    let refused = seen["hostile_refused"].as_str().unwrap();
    assert!(refused.starts_with("Refused (403): "), "{refused}");

    // The token is nowhere.
    assert_eq!(seen["kept"], json!([{}, {}, "", shop.url, ""]).to_string());
    assert_eq!(seen["address"], shop.url);

    // What moves, and what does not.
    let [width, window] = [0, 1].map(|n| seen["narrow"][n].as_u64().unwrap());
    assert!(width <= window, "{width} px wide on a screen of {window}");
    assert_eq!(seen["highlight"][1], "changed");
    assert_eq!(seen["still"][1], "none");
    assert_ne!(seen["still"][2], seen["background"], "it is seen without motion, too");

    // The agent's wait.
    assert_eq!(seen["answer"], "Hello, agent-of-ann.");
    assert!(
        seen["refused"].as_str().unwrap().starts_with("Refused (429): "),
        "{}",
        seen["refused"]
    );
    let waits = seen["waits"].as_array().unwrap();
    for shown in ["Ask again in 6 s.", "Ask again in 1 s."] {
        assert!(waits.contains(&shown.into()), "{shown} is not in {waits:?}");
    }
    assert_eq!(waits.last().unwrap(), "You may ask again.");

    assert_eq!(seen["streams"], json!([1, 0]), "who leaves the page leaves the stream");
    gateway.lock().await.terminate().await;
    let mut ingest = ingest;
    ingest.terminate().await;
}

#[test]
fn the_configuration_of_the_example_is_valid_and_names_its_page() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/storefront/merit.toml");
    let output = Command::new(binary())
        .args(["check-config", "--config"])
        .arg(&file)
        .env(SECRET_ENV, SECRET)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"http://127.0.0.1:3000\""), "where the storefront listens");
}
