//! Lesson 2: a plain hyper service. The layer is made once and worn by every connection: it still
//! limits, because clones share their state.
//!
//! ```text
//! cargo run -p merit-examples --bin protect_hyper
//! ```
//!
//! Each `curl` below opens a connection of its own, and they draw on one bucket.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use merit_examples::{SECRET, listen, token};
use tower::ServiceBuilder;
use tower_merit::{AdmissionLayer, AgentId, Bucket, JwtIdentity, MemoryStore};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let admission = AdmissionLayer::builder(MemoryStore::new())
        .identity(JwtIdentity::hs256(SECRET).claim("agent_id"))
        .bucket(Bucket::per_second(0.5).capacity(2))
        .build()?;

    let listener = listen(3001).await?;
    let address = listener.local_addr()?;
    println!("Three requests, each over its own connection; the third is 429:");
    println!("  T='{}'", token("alice")?);
    println!(
        "  for i in 1 2 3; do curl -i -H \"Authorization: Bearer $T\" http://{address}/; done"
    );

    loop {
        let (stream, _) = listener.accept().await?;
        let service = ServiceBuilder::new().layer(admission.clone()).service_fn(hello);
        tokio::spawn(async move {
            let service = TowerToHyperService::new(service);
            let server = auto::Builder::new(TokioExecutor::new());
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                eprintln!("connection ended: {error}");
            }
        });
    }
}

/// The layer leaves the agent in the request's extensions.
async fn hello(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let agent = request.extensions().get::<AgentId>().map_or("nobody", AgentId::as_str);
    Ok(Response::new(Full::from(format!("hello, {agent}\n"))))
}
