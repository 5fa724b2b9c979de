//! Lesson 5: rates agents over gRPC, one at a time and many in a stream, and goes on where a stream ended.
//!
//! ```text
//! merit run --config merit.toml                    # with [ingest] grpc_listen = "127.0.0.1:8082"
//! export MERIT_TOKEN=$(merit token --config merit.toml --sub u1 --scope ratings:write)
//! cargo run -p merit-examples --bin rate_grpc
//! ```
//!
//! `MERIT_GRPC` says where Merit listens (`http://127.0.0.1:8082`). The client is what tonic generates
//! from `sidecar/schema/merit/rating/v1/rating.proto`; any other gRPC stack will do.

use std::{env, time::Duration};

use anyhow::{Context, bail};
use tokio_stream::iter;
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};
use tonic_types::StatusExt;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod rating_v1 {
    include!("../../../sidecar/schema/generated/merit.rating.v1.client.rs");
}

use rating_v1::{
    RateRequest, RateStreamRequest, Rating, rating_service_client::RatingServiceClient,
};

/// How often the rest of a stream is sent again before this gives up.
const ATTEMPTS: usize = 5;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = env::var("MERIT_GRPC").unwrap_or_else(|_| "http://127.0.0.1:8082".to_owned());
    let token = env::var("MERIT_TOKEN").context("MERIT_TOKEN: set it to a token that may rate")?;
    let user = env::var("MERIT_USER").unwrap_or_else(|_| "u1".to_owned());
    let channel = Channel::from_shared(address.clone())?.connect().await;
    let mut client = RatingServiceClient::new(channel.with_context(|| format!("no {address}"))?);

    let request = with(&token, RateRequest { rating: Some(rating(&user, "single", 0)) })?;
    match client.rate(request).await {
        Ok(answer) => println!("taken as {}", answer.into_inner().id),
        Err(status) => bail!("refused: {}", told(&status)),
    }

    let ratings: Vec<Rating> = (0..100).map(|n| rating(&user, "streamed", n)).collect();
    stream(&mut client, &token, ratings).await
}

/// Returns a rating with a name of its own: sent again, it still counts once.
fn rating(user: &str, run: &str, n: usize) -> Rating {
    Rating {
        id: Some(format!("rate_grpc-{}-{run}-{n}", std::process::id())),
        agent_id: Some(format!("agent-{}", n % 3)),
        user_id: user.to_owned(),
        score: 4.5,
        ..Rating::default()
    }
}

/// Sends all of `ratings`; what a stream did not come to is sent in the next one.
async fn stream(
    client: &mut RatingServiceClient<Channel>,
    token: &str,
    mut ratings: Vec<Rating>,
) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        let messages = ratings.clone().into_iter();
        let messages = iter(messages.map(|rating| RateStreamRequest { rating: Some(rating) }));
        let status = match client.rate_stream(with(token, messages)?).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                println!("{} taken, {} refused", answer.accepted, answer.refused);
                for refusal in answer.refusals {
                    println!("  number {}: {}", refusal.index, refusal.message);
                }
                return Ok(());
            }
            Err(status) => status,
        };
        let Some((wait, next)) = go_on(&status) else { bail!("refused: {}", told(&status)) };
        println!("{}; going on with number {next} in {wait:?}", told(&status));
        ratings.drain(..next.min(ratings.len()));
        tokio::time::sleep(wait).await;
    }
    bail!("{} ratings are left", ratings.len())
}

/// Returns how long to wait, and with which rating to go on.
fn go_on(status: &Status) -> Option<(Duration, usize)> {
    let details = status.get_error_details();
    let wait = details.retry_info()?.retry_delay?;
    let next = details.error_info()?.metadata.get("next")?.parse().ok()?;
    Some((wait, next))
}

fn told(status: &Status) -> String {
    let details = status.get_error_details();
    let fields = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    let fields: Vec<String> = fields.into_iter().map(|violation| violation.field).collect();
    match (status.code(), fields.is_empty()) {
        (Code::InvalidArgument, false) => format!("{} ({})", status.message(), fields.join(", ")),
        (code, _) => format!("{code:?}: {}", status.message()),
    }
}

fn with<T>(token: &str, message: T) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    let bearer: MetadataValue<_> = format!("Bearer {token}").parse()?;
    request.metadata_mut().insert("authorization", bearer);
    Ok(request)
}
