//! A collector of spans: the gRPC service that OpenTelemetry generates, and a list.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1,
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// A span as it was exported.
#[derive(Clone, Debug)]
pub struct Span {
    /// The id of its trace, in 32 hexadecimal digits.
    pub trace: String,
    /// Its own, in 16.
    pub id: String,
    /// That of the span above it; empty at the top.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// Its kind, as OTLP numbers it: 2 is a server, 3 a client, 4 a producer, 5 a consumer.
    pub kind: i32,
    /// Whether it failed.
    pub failed: bool,
    /// When it began and ended, in Unix nanoseconds.
    pub time: (u64, u64),
    /// Its attributes and those of its process, as text.
    pub attributes: HashMap<String, String>,
}

/// A running collector, which ends with the runtime of the test.
#[derive(Clone, Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Spans,
}

#[derive(Clone, Debug, Default)]
struct Spans(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Starts one on a free loopback port.
    ///
    /// # Panics
    ///
    /// When no port can be opened.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let spans = Spans::default();
        let service = TraceServiceServer::new(spans.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { address, spans }
    }

    /// Returns the `[trace]` table that sends it spans, with further lines.
    #[must_use]
    pub fn table(&self, lines: &str) -> String {
        format!("[trace]\nendpoint = \"http://{}\"\n{lines}\n", self.address)
    }

    /// Returns the spans that came, of one trace.
    #[must_use]
    pub fn of(&self, trace: &str) -> Vec<Span> {
        self.all().into_iter().filter(|span| span.trace == trace).collect()
    }

    /// Returns the spans that came.
    #[must_use]
    pub fn all(&self) -> Vec<Span> {
        self.spans.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for process in request.into_inner().resource_spans {
            let resource = process.resource.map_or_else(Vec::new, |resource| resource.attributes);
            for span in process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(read(span, &resource));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn read(span: v1::Span, resource: &[KeyValue]) -> Span {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let attributes = span.attributes.iter().chain(resource);
    Span {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        kind: span.kind,
        failed: span.status.is_some_and(|status| status.code == 2),
        time: (span.start_time_unix_nano, span.end_time_unix_nano),
        attributes: attributes.map(|pair| (pair.key.clone(), text(pair))).collect(),
    }
}

fn text(pair: &KeyValue) -> String {
    match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    }
}
