//! Lesson 8: an API to put Merit beside, when yours is not at hand: it knows nothing of Merit.
//!
//! ```text
//! cargo run -p merit-examples --bin openclaw_api                    # 127.0.0.1:3000
//! merit run --config deploy/openclaw.toml                           # in another terminal: the gateway, 8080
//! curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8080/v1/items/42
//! ```
//!
//! Items are read, orders are placed and ratings are taken; nothing is kept. The rating that it accepts is
//! the one that the gateway's `tee_ratings` hands to Merit as well.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::Path,
    http::StatusCode,
    middleware::{Next, from_fn},
    routing::{get, post},
};
use clap::Parser;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};

/// A stand-in for the OpenClaw API.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Milliseconds that every answer takes, at most a minute
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=60_000))]
    delay_ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { listen, delay_ms } = Options::parse();
    let listener = TcpListener::bind(listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {listen}: use --listen"))?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, api(Duration::from_millis(delay_ms))).await?;
    Ok(())
}

fn api(delay: Duration) -> Router {
    Router::new()
        .route("/v1/items/{item}", get(item))
        .route("/v1/orders", post(order))
        .route("/v1/orders/{order}", post(order).put(order).delete(order))
        .route("/v1/rating", post(rating))
        .layer(from_fn(move |request, next: Next| async move {
            sleep(delay).await;
            next.run(request).await
        }))
        .route("/healthz", get(async || "ok"))
}

async fn item(Path(item): Path<String>) -> Json<Value> {
    Json(json!({ "item_id": item, "price": 42 }))
}

async fn order() -> (StatusCode, Json<Value>) {
    (StatusCode::CREATED, Json(json!({ "placed": true })))
}

/// Takes a score from 1 to 5, and answers what the caller may read out of it.
async fn rating(Json(rating): Json<Value>) -> (StatusCode, Json<Value>) {
    let score = rating.get("score").or(rating.get("rating")).and_then(Value::as_f64);
    match score.filter(|score| (1.0..=5.0).contains(score)) {
        Some(score) => (StatusCode::CREATED, Json(json!({ "score": score }))),
        None => (
            StatusCode::UNPROCESSABLE_ENTITY,
            Json(json!({ "error": "score: must be a number from 1 to 5" })),
        ),
    }
}
