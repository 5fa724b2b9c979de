//! Lesson 3: a gRPC service that gives each agent 2 calls a second, 5 at once.
//!
//! ```text
//! cargo run -p merit-examples --bin protect_tonic                 # the service
//! cargo run -p merit-examples --bin protect_tonic -- call         # an agent, in another terminal
//! ```
//!
//! The service is tonic's own health service: it stands in for yours. Refusals are gRPC statuses, and
//! the agent reads from them how long to wait: `RESOURCE_EXHAUSTED` with `google.rpc.RetryInfo`.

use std::{env, time::Instant};

use anyhow::Context;
use merit_examples::{SECRET, listen, port, token};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Server},
};
use tonic_health::{
    pb::{HealthCheckRequest, health_client::HealthClient},
    server::health_reporter,
};
use tonic_types::StatusExt;
use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, MemoryStore};

const PORT: u16 = 3002;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match env::args().nth(1).as_deref() {
        None => serve().await,
        Some("call") => call().await,
        Some(other) => anyhow::bail!("{other:?}: say `call`, or nothing to serve"),
    }
}

async fn serve() -> anyhow::Result<()> {
    let admission = AdmissionLayer::builder(MemoryStore::new())
        .identity(JwtIdentity::hs256(SECRET).claim("agent_id"))
        .bucket(Bucket::per_second(2.0).capacity(5))
        .build()?;
    let (_reporter, health) = health_reporter();

    let listener = listen(PORT).await?;
    println!("Seven calls of one agent; the last two are refused first, and wait as told:");
    println!("  cargo run -p merit-examples --bin protect_tonic -- call");
    println!("Nobody is UNAUTHENTICATED:");
    println!("  MERIT_TOKEN= cargo run -p merit-examples --bin protect_tonic -- call");
    // All services of the server are limited, whichever are added.
    let server = Server::builder().layer(admission).add_service(health);
    server.serve_with_incoming(TcpListenerStream::new(listener)).await?;
    Ok(())
}

/// What an agent does: call, and wait when told to.
async fn call() -> anyhow::Result<()> {
    let address = format!("http://127.0.0.1:{}", port(PORT)?);
    let channel = Channel::from_shared(address.clone())?.connect().await;
    let channel = channel.with_context(|| format!("no service at {address}: start it first"))?;
    let token = env::var("MERIT_TOKEN").ok().map_or_else(|| token("alice"), Ok)?;
    let bearer: MetadataValue<Ascii> = format!("Bearer {token}").parse()?;
    let mut client = HealthClient::with_interceptor(channel, move |mut request: Request<()>| {
        request.metadata_mut().insert("authorization", bearer.clone());
        Ok(request)
    });
    let started = Instant::now();
    for number in 1..=7 {
        loop {
            let at = started.elapsed().as_secs_f64();
            match client.check(HealthCheckRequest::default()).await {
                Ok(_) => {
                    println!("{at:5.2} s  call {number}: answered");
                    break;
                }
                Err(status) => {
                    let Some(wait) = wait(&status) else {
                        anyhow::bail!("{:?}: {}", status.code(), status.message());
                    };
                    println!("{at:5.2} s  call {number}: {}; waiting {wait:?}", status.message());
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
    Ok(())
}

/// Returns how long a refusal asks to wait; nothing when waiting does not help.
fn wait(status: &Status) -> Option<std::time::Duration> {
    match status.code() {
        Code::ResourceExhausted | Code::Unavailable => status.get_details_retry_info()?.retry_delay,
        _ => None,
    }
}
