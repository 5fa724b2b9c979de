//! Lesson 4: an agent that waits as it is told, and so gets exactly its rate and never a refusal.
//!
//! ```text
//! cargo run -p merit-examples --bin protect_axum                  # the service, in another terminal
//! cargo run -p merit-examples --bin polite_agent
//! ```
//!
//! `RetryAfterLayer` around the client is all there is to it.

use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use merit_examples::{port, token};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_merit::RetryAfterLayer;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = format!("http://127.0.0.1:{}/", port(3000)?);
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut client = ServiceBuilder::new().layer(RetryAfterLayer::new()).service(client);

    let (bearer, started) = (format!("Bearer {}", token("alice")?), Instant::now());
    for number in 1..=15 {
        let request = Request::get(&address).header("authorization", &bearer);
        let answer = client.ready().await?.call(request.body(Full::default())?).await;
        let answer = answer.with_context(|| format!("no service at {address}: start it first"))?;
        println!(
            "{:5.2} s  request {number}: {}",
            started.elapsed().as_secs_f64(),
            answer.status()
        );
        anyhow::ensure!(answer.status() == StatusCode::OK, "refused after all");
    }
    Ok(())
}
