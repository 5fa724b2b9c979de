use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use tokio::sync::watch;
use tower::ServiceExt;
use tower_merit::{
    MemoryStore,
    store::{Change, Written},
};

use super::*;
use crate::policy::{self, Config, Policy, Vote};

const START: (f64, u64) = (20.0, 40);

struct Desk {
    store: MemoryStore,
    router: Router,
    operator: Operator<MemoryStore>,
}

fn rules() -> Arc<[BucketRule]> {
    let rule = |name, is_default, (rate, capacity)| BucketRule {
        name: BucketName::new(name).unwrap(),
        is_default,
        limits: Limits::per_second(rate, capacity).unwrap(),
        shadow: false,
    };
    [rule("main", true, START), rule("writes", false, (2.0, 10))].into()
}

fn desk(config: Config, audit_log: Option<&std::path::Path>) -> Desk {
    let store = MemoryStore::new();
    let start = Limits::per_second(START.0, START.1).unwrap();
    let (_, aim) = watch::channel(tuner::Aim::new(config, start));
    let operator = Operator::new(store.clone(), aim);
    let (_, buckets) = watch::channel(rules());
    let console = Console { operator: operator.clone(), buckets, insight: None, role: "all" };
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let audit = Arc::new(Audit::open(audit_log).unwrap());
    let (router, keeping) = console.routes(audit, Health::new(), metrics);
    tokio::spawn(keeping);
    Desk { store, router, operator }
}

fn price() -> Config {
    Config { kind: Kind::Price, service_capacity: Some(100.0), ..Config::default() }
}

impl Desk {
    async fn ask(&self, request: Request<Body>) -> (u16, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.ask(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        self.ask(Request::post(path).body(Body::from(body.to_owned())).unwrap()).await
    }

    /// Rates an agent as the tuner would; returns what the store said.
    async fn rate(&self, agent: &str, scores: &[f64]) -> Written {
        let agent = AgentId::new(agent).unwrap();
        let policy: Policy = self.operator.policy();
        if self.store.life().await.unwrap().epoch.is_none() {
            self.store.begin_epoch("e").await.unwrap();
        }
        let record = self.operator.record(&agent).await.unwrap();
        let mut state = tuner::state_of(&record).unwrap_or_else(|| policy.begin());
        for (at, score) in scores.iter().enumerate() {
            let at_ms = 1_800_000_000_000 + 10_000 * at as u64;
            let vote = Vote { score: *score, rater: at as u64, at_ms, weight: 1.0 };
            policy::Policy::vote(&policy, &mut state, vote);
        }
        let change = Change {
            agent,
            rev: record.rev,
            limits: state.limits(),
            named: Vec::new(),
            adopts: record.limits.filter(|_| record.operator),
            state: json!({"epoch": "e", "state": state}).to_string(),
            applied: vec![("log/0".to_owned(), record.rev + 1)],
            seen: vec![("0".to_owned(), "ids".to_owned())],
        };
        self.store.write(&[change]).await.unwrap().remove(0).unwrap()
    }
}

#[tokio::test]
async fn agents_are_searched_sorted_and_paged() {
    let desk = desk(price(), None);
    for index in 0..30 {
        desk.rate(&format!("agent-{index:02}"), &vec![5.0; index % 7]).await;
    }
    let (status, page) = desk.get("/agents?page_size=10&sort=agent_id&page=2").await;
    assert_eq!(status, 200, "{page}");
    assert_eq!(
        (&page["total"], &page["matching"], &page["pages"]),
        (&json!(30), &json!(30), &json!(3))
    );
    assert_eq!(page["agents"][0]["agent_id"], "agent-10");
    assert_eq!(page["agents"].as_array().unwrap().len(), 10);
    let (_, page) = desk.get("/agents?q=NT-1&page_size=500").await;
    assert_eq!(page["matching"], 10);
    let rates: Vec<f64> = page["agents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["refill_rate"].as_f64().unwrap())
        .collect();
    assert!(rates.is_sorted_by(|a, b| a >= b), "{rates:?}");
    // All pages together are all agents, once, in order, whichever member they are sorted by.
    for sort in [
        "agent_id",
        "-agent_id",
        "refill_rate",
        "-quality",
        "ratings",
        "-admitted",
        "denied",
        "capacity",
    ] {
        let mut found = Vec::new();
        for page in 1..=8 {
            let (_, page) = desk.get(&format!("/agents?sort={sort}&page_size=4&page={page}")).await;
            found.extend(
                page["agents"].as_array().unwrap().iter().map(|row| row["agent_id"].to_string()),
            );
        }
        let mut unique = found.clone();
        unique.sort();
        unique.dedup();
        assert_eq!((found.len(), unique.len()), (30, 30), "{sort}");
    }
    for bad in ["sort=speed", "page=0", "page_size=501", "page_size=0", "only=good", "colour=red"] {
        let (status, problem) = desk.get(&format!("/agents?{bad}")).await;
        assert_eq!(status, 400, "{bad}: {problem}");
    }
    // The last page is empty behind the end, and no error.
    let (_, page) = desk.get("/agents?page=99").await;
    assert_eq!(page["agents"], json!([]));
}

#[tokio::test]
async fn an_agent_is_told_with_its_buckets_and_reasons() {
    let desk = desk(price(), None);
    let (status, fresh) = desk.get("/agents/nobody-yet").await;
    assert_eq!(status, 200);
    assert_eq!((&fresh["known"], &fresh["refill_rate"]), (&json!(false), &json!(20.0)));
    desk.rate("good", &[5.0; 20]).await;
    let (_, good) = desk.get("/agents/good").await;
    assert_eq!(
        (&good["known"], &good["rev"], &good["policy"]),
        (&json!(true), &json!(1), &json!("price"))
    );
    assert!(good["quality"].as_f64().unwrap() > 4.0, "{good}");
    assert_eq!(good["buckets"][0]["bucket_name"], "main");
    assert_eq!(
        (&good["buckets"][0]["own"], &good["buckets"][1]["own"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(good["buckets"][1]["level"], 10.0);
    assert_eq!(good["moves"], Value::Null, "there is no tuner here");
    assert!(!good["why"]["sentences"].as_array().unwrap().is_empty());
    for bad in
        ["/agents/-x", "/agents/a%20b", "/agents/%3Cb%3E", &format!("/agents/{}", "a".repeat(129))]
    {
        let (status, problem) = desk.get(bad).await;
        assert_eq!(status, 400, "{bad}");
        assert!(problem["detail"].as_str().unwrap().starts_with("agent_id: "), "{problem}");
    }
}

#[tokio::test]
async fn a_frozen_agent_stays_where_it_is_and_counts_its_ratings_all_the_same() {
    for config in [price(), Config::default()] {
        let desk = desk(config, None);
        desk.rate("a", &[5.0; 10]).await;
        let (_, before) = desk.get("/agents/a").await;
        let (status, frozen) = desk.post("/agents/a/freeze", "").await;
        assert_eq!((status, &frozen["held"]), (200, &json!("frozen")), "{frozen}");
        // The tuner's own write, from what it had in memory, finds that it is not the newest.
        let record = desk.operator.record(&AgentId::new("a").unwrap()).await.unwrap();
        assert_eq!(record.rev, 2);
        assert_eq!(record.applied, [("log/0".to_owned(), 1)], "what was counted stays counted");
        assert_eq!(record.seen.len(), 1);
        assert!(matches!(desk.rate("a", &[1.0; 30]).await, Written::Done { .. }));
        let (_, after) = desk.get("/agents/a").await;
        assert_eq!(before["refill_rate"], after["refill_rate"]);
        let (_, thawed) = desk.post("/agents/a/unfreeze", "{}").await;
        assert_eq!(thawed["held"], "none");
        desk.rate("a", &[1.0; 30]).await;
        let (_, after) = desk.get("/agents/a").await;
        assert!(after["refill_rate"].as_f64() < before["refill_rate"].as_f64(), "{after}");
    }
}

#[tokio::test]
async fn limits_set_by_hand_are_a_new_start_also_of_a_frozen_agent() {
    let desk = desk(Config::default(), None);
    desk.rate("a", &[5.0; 10]).await;
    let (status, set) = desk.post("/agents/a/set", r#"{"refill_rate":30}"#).await;
    assert_eq!(
        (status, &set["refill_rate"], &set["operator"]),
        (200, &json!(30.0), &json!(true)),
        "{set}"
    );
    desk.post("/agents/a/freeze", "").await;
    let (_, frozen) = desk.get("/agents/a").await;
    assert_eq!((&frozen["refill_rate"], &frozen["operator"]), (&json!(30.0), &json!(false)));
    let (_, set) = desk.post("/agents/a/set", r#"{"capacity":5,"bucket_name":"writes"}"#).await;
    assert_eq!(
        (&set["buckets"][1]["capacity"], &set["buckets"][1]["refill_rate"]),
        (&json!(5), &json!(2.0))
    );
    for (body, field) in [
        ("{}", "refill_rate"),
        (r#"{"refill_rate":-1}"#, "refill_rate"),
        (r#"{"refill_rate":"fast"}"#, "body"),
        (r#"{"capacity":9000000000}"#, "capacity"),
        (r#"{"refill_rate":1,"bucket_name":"none"}"#, "bucket_name"),
        (r#"{"rate":1}"#, "body"),
        ("", "body"),
    ] {
        let (status, problem) = desk.post("/agents/a/set", body).await;
        assert_eq!(status, 422, "{body}");
        assert!(problem["detail"].as_str().unwrap().starts_with(field), "{body}: {problem}");
    }
    let (_, after) = desk.get("/agents/a").await;
    assert_eq!(after["refill_rate"], 30.0);
}

#[tokio::test]
async fn a_ban_ends_and_a_reset_forgets_what_ratings_said() {
    let desk = desk(Config::default(), None);
    desk.rate("a", &[5.0; 10]).await;
    let (status, banned) = desk.post("/agents/a/ban", r#"{"for":"1h"}"#).await;
    assert_eq!(status, 200, "{banned}");
    let left = banned["banned_until_ms"].as_u64().unwrap() - unix_ms();
    assert!((3_500_000..=3_600_000).contains(&left), "{left}");
    let bucket = &banned["buckets"][0];
    assert_eq!((&bucket["level"], &bucket["own"]), (&Value::Null, &json!(true)));
    assert_eq!(
        bucket["refill_rate"], banned["refill_rate"],
        "what ratings earned is still on record"
    );
    assert!(banned["why"]["sentences"][0].as_str().unwrap().contains("banned"));
    let (_, lifted) = desk.post("/agents/a/unban", "").await;
    assert_eq!(lifted["banned_until_ms"], Value::Null);
    for body in [
        "{}",
        r#"{"for":"soon"}"#,
        r#"{"for":"0s"}"#,
        r#"{"until_ms":5}"#,
        r#"{"for":"4000d"}"#,
        r#"{"for":"1h","until_ms":1}"#,
    ] {
        assert_eq!(desk.post("/agents/a/ban", body).await.0, 422, "{body}");
    }
    let (status, reset) = desk.post("/agents/a/reset", "").await;
    assert_eq!(
        (status, &reset["refill_rate"], &reset["capacity"]),
        (200, &json!(20.0), &json!(40))
    );
    let record = desk.operator.record(&AgentId::new("a").unwrap()).await.unwrap();
    assert_eq!(record.applied.len(), 1, "no rating counts twice after it");
    assert_eq!(desk.post("/agents/a/reset", r#"{"all":true}"#).await.0, 422);
    assert_eq!(desk.post("/agents/a/delete", "").await.0, 404);
}

#[tokio::test]
async fn a_record_of_another_life_is_not_written_over() {
    let desk = desk(Config::default(), None);
    desk.rate("a", &[5.0]).await;
    let stale = Change {
        agent: AgentId::new("a").unwrap(),
        rev: 1,
        limits: Limits::per_second(21.0, 42).unwrap(),
        named: Vec::new(),
        adopts: None,
        state: r#"{"epoch":"earlier","state":{}}"#.to_owned(),
        applied: Vec::new(),
        seen: Vec::new(),
    };
    desk.store.write(&[stale]).await.unwrap();
    for action in ["freeze", "reset"] {
        let (status, problem) = desk.post(&format!("/agents/a/{action}"), "").await;
        assert_eq!(status, 409, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("earlier life"), "{problem}");
    }
    assert_eq!(desk.post("/agents/a/ban", r#"{"for":"1m"}"#).await.0, 200);
}

#[tokio::test]
async fn every_deed_is_noted_before_and_after_and_none_is_done_that_cannot_be() {
    let folder = std::env::temp_dir().join(format!("merit-audit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("audit.ndjson");
    let desk_with = desk(Config::default(), Some(&path));
    desk_with.post("/agents/a/set", r#"{"refill_rate":3}"#).await;
    desk_with.post("/agents/a/set", r#"{"refill_rate":-3}"#).await;
    desk_with.post("/agents/a/freeze", "").await;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| (line["action"].as_str().unwrap(), line["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("set", "begun"), ("set", "done"), ("freeze", "begun"), ("freeze", "done")]);
    assert_eq!(lines[0]["detail"]["refill_rate"], 3.0);
    let (_, newest) = desk_with.get("/audit?limit=1").await;
    assert_eq!(newest["entries"][0]["action"], "freeze");
    assert_eq!(desk_with.get("/audit?limit=0").await.0, 400);

    // A disk that takes nothing.
    let full = desk(Config::default(), Some(std::path::Path::new("/dev/full")));
    let (status, problem) = full.post("/agents/a/ban", r#"{"for":"1h"}"#).await;
    assert_eq!(status, 503, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("admin.audit_log"), "{problem}");
    assert_eq!(full.get("/agents/a").await.1["banned_until_ms"], Value::Null);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn the_overview_tells_what_is_known_here_and_nothing_else() {
    let desk = desk(price(), None);
    let (status, overview) = desk.get("/overview").await;
    assert_eq!(status, 200);
    assert_eq!(overview["policy"]["kind"], "price");
    assert_eq!((&overview["role"], &overview["ready"]), (&json!("all"), &json!(true)));
    for absent in
        ["market", "ratings_total", "events", "bus_lag_ratings", "rating_to_limit_seconds"]
    {
        assert_eq!(overview[absent], Value::Null, "{absent}");
    }
    let (_, policy) = desk.get("/policy").await;
    assert_eq!(policy["config"]["service_capacity"], 100.0);
}
