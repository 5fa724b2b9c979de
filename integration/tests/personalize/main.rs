//! Personalised ratings of the real binary: learned once over every bus, told to whom they belong.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod events;
mod learning;

use std::time::Duration;

use merit_integration::{Merit, client::Client, keys, until};
use serde_json::json;

/// How long anything may take that should take a moment.
const DEADLINE: Duration = Duration::from_secs(60);

/// The table that switches personalised ratings on, with a name for the node and `more` lines.
fn table(node: &str, more: &str) -> String {
    format!("[personalize]\nenabled = true\nnode = \"{node}\"\n{more}\n")
}

/// Posts a rating of `item` by `user`, and returns when the bus has it.
async fn rate(client: &Client, merit: &Merit, user: &str, item: &str, score: f64) {
    let body = json!({"user_id": user, "item_id": item, "rating": score});
    let url = format!("{}/v1/rating", merit.ingest());
    let answer = client.post(&url, &keys::collector(), &body).await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
}

/// Waits until `item` has `count` ratings at `merit`; more than that are too many.
async fn has_ratings(client: &Client, merit: &Merit, item: &str, count: u64) {
    let url = format!("{}/v1/items/{item}", merit.ingest());
    until("the ratings are learned", DEADLINE, || async {
        let found = client.get(&url, None).await.ok()?.json()["ratings"].as_u64().unwrap();
        assert!(found <= count, "{found} ratings of {item}, {count} were given");
        (found == count).then_some(())
    })
    .await;
}
