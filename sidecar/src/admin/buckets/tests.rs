use axum::body::to_bytes;
use tower::ServiceExt as _;
use tower_merit::MemoryStore;

use super::*;

/// A stand-in for the configuration: it takes lists and refuses the name `bad`.
fn check(found: &Value) -> Result<String, Vec<String>> {
    let mut faults = Vec::new();
    for key in ["buckets", "routes"] {
        match found[key].as_array() {
            None => faults.push(format!("{key}: is missing")),
            Some(items) => {
                let bad = items.iter().position(|item| item["bucket_name"] == "bad");
                faults.extend(bad.map(|index| format!("bucket[{index}]: is bad")));
            }
        }
    }
    if faults.is_empty() { Ok(found.to_string()) } else { Err(faults) }
}

fn book(store: MemoryStore) -> Book<MemoryStore> {
    Book {
        store,
        file: json!({"buckets": [{"bucket_name": "file"}], "routes": []}),
        check: Arc::new(check),
        read: Arc::new(|text| serde_json::from_str(text).map_err(|error| error.to_string())),
        told: Arc::new(Notify::new()),
    }
}

async fn ask(router: &Router, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned()));
    let answer = router.clone().oneshot(request.unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let kind = if status == 200 { "application/json" } else { "application/problem+json" };
    assert_eq!(answer.headers()["content-type"], kind);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

fn body(rev: u64, name: &str) -> String {
    json!({"rev": rev, "source": "file", "buckets": [{"bucket_name": name}], "routes": []})
        .to_string()
}

#[tokio::test]
async fn who_names_the_revision_that_is_there_replaces_it_and_nobody_else_does() {
    let book = book(MemoryStore::new());
    let (told, router) = (Arc::clone(&book.told), buckets(book, Arc::default()));
    let (status, found) = ask(&router, "GET", "/buckets", "").await;
    assert_eq!((status, &found["rev"], &found["source"]), (200, &json!(0), &json!("file")));
    assert_eq!(found["buckets"][0]["bucket_name"], "file");

    assert_eq!(ask(&router, "PUT", "/buckets", &body(1, "a")).await.0, 409);
    let (status, found) = ask(&router, "PUT", "/buckets", &body(0, "a")).await;
    assert_eq!((status, &found["rev"], &found["source"]), (200, &json!(1), &json!("store")));
    told.notified().await;
    assert_eq!(ask(&router, "GET", "/buckets", "").await.1, found);
    let (status, problem) = ask(&router, "PUT", "/buckets", &body(0, "b")).await;
    assert_eq!((status, &problem["rev"]), (409, &json!(1)));

    assert_eq!(ask(&router, "GET", "/buckets/a", "").await.1, json!({"bucket_name": "a"}));
    assert_eq!(ask(&router, "GET", "/buckets/file", "").await.0, 404);

    assert_eq!(ask(&router, "DELETE", "/buckets?rev=7", "").await.0, 409);
    assert_eq!(ask(&router, "DELETE", "/buckets?rev=one", "").await.0, 400);
    assert_eq!(ask(&router, "DELETE", "/buckets?revision=1", "").await.0, 400);
    let (status, found) = ask(&router, "DELETE", "/buckets", "").await;
    assert_eq!((status, &found["rev"], &found["source"]), (200, &json!(0), &json!("file")));
    told.notified().await;
    // Whoever still holds revision 1 cannot replace what comes after it.
    let (_, found) = ask(&router, "PUT", "/buckets", &body(0, "c")).await;
    assert_eq!(found["rev"], 3);
    assert_eq!(ask(&router, "PUT", "/buckets", &body(1, "d")).await.0, 409);
    assert_eq!(ask(&router, "DELETE", "/buckets?rev=3", "").await.0, 200);
}

#[tokio::test]
async fn what_is_faulty_is_told_in_full_and_not_stored() {
    let store = MemoryStore::new();
    let router = buckets(book(store.clone()), Arc::default());
    let (status, problem) = ask(&router, "PUT", "/buckets", &body(0, "bad")).await;
    assert_eq!((status, &problem["faults"]), (422, &json!(["bucket[0]: is bad"])));
    let (status, problem) = ask(&router, "PUT", "/buckets", r#"{"rev":"1","buckets":[]}"#).await;
    let told = problem["faults"].as_array().unwrap();
    assert_eq!((status, told.len()), (422, 2), "{told:?}");
    assert!(told[0].as_str().unwrap().starts_with("rev: must be a whole number"));
    for odd in ["", "[]", "{", "7"] {
        assert_eq!(ask(&router, "PUT", "/buckets", odd).await.0, 400, "{odd:?}");
    }
    assert_eq!(ask(&router, "PUT", "/buckets", &" ".repeat(BODY_MAX + 1)).await.0, 413);
    let long = body(0, &"x".repeat(DOCUMENT_MAX));
    let (status, problem) = ask(&router, "PUT", "/buckets", &long).await;
    assert_eq!(status, 422, "{problem}");
    assert_eq!(store.document().await.unwrap(), Document::default());
}

#[tokio::test]
async fn a_write_is_noted_with_what_became_of_it_and_one_that_cannot_be_is_not_done() {
    let audit = Arc::new(Audit::default());
    let router = buckets(book(MemoryStore::new()), Arc::clone(&audit));
    ask(&router, "PUT", "/buckets", &body(0, "a")).await;
    ask(&router, "PUT", "/buckets", &body(0, "b")).await;
    ask(&router, "DELETE", "/buckets", "").await;
    let noted: Vec<_> =
        audit.newest(9).into_iter().map(|e| (e.action, e.detail, e.outcome)).collect();
    let limits = json!([{"bucket_name": "a", "refill_rate": null, "capacity": null}]);
    let put = json!({"rev": 0, "buckets": limits, "more": 0, "routes": 0});
    let done = || "done".to_owned();
    assert_eq!(
        noted,
        [("remove_buckets", json!({"rev": 1}), done()), ("put_buckets", put, done())],
        "what was refused as too late was no write"
    );

    // No disk takes the first line.
    let full = Arc::new(Audit::open(Some(std::path::Path::new("/dev/full"))).unwrap());
    let store = MemoryStore::new();
    let router = buckets(book(store.clone()), full);
    let (status, problem) = ask(&router, "PUT", "/buckets", &body(0, "a")).await;
    assert_eq!(status, 503);
    assert!(problem["detail"].as_str().unwrap().contains("admin.audit_log"), "{problem}");
    assert_eq!(store.document().await.unwrap(), Document::default());
}

#[tokio::test]
async fn what_another_version_wrote_is_told_with_its_revision_and_can_be_replaced() {
    let store = MemoryStore::new();
    store.keep_document(0, Some("of tomorrow")).await.unwrap();
    let router = buckets(book(store), Arc::default());
    let (status, problem) = ask(&router, "GET", "/buckets", "").await;
    assert_eq!((status, &problem["rev"]), (500, &json!(1)));
    assert_eq!(ask(&router, "PUT", "/buckets", &body(1, "a")).await.0, 200);
}
