use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    http::{HeaderMap, Request, Response, StatusCode, Uri},
    response::IntoResponse,
    routing::{any, post},
};
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};
use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, MemoryStore, Route};

use super::*;

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

fn token() -> String {
    token_of("a1")
}

fn token_of(agent: &str) -> String {
    let claims = json!({"agent_id": agent, "exp": 4_000_000_000_u64});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    address
}

/// A gateway with a bucket of `capacity` before `upstream`.
async fn gateway(config: Config, capacity: u64, tee: Option<Tee>) -> SocketAddr {
    let admission = AdmissionLayer::builder(MemoryStore::new())
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Bucket::per_second(0.001).capacity(capacity))
        .build()
        .unwrap();
    serve(router(&config, admission, tee).unwrap()).await
}

fn to(upstream: SocketAddr) -> Config {
    Config { upstream: format!("http://{upstream}"), ..Config::default() }
}

async fn send(address: SocketAddr, request: Request<Body>) -> Response<Incoming> {
    let (mut head, body) = request.into_parts();
    head.uri = format!("http://{address}{}", head.uri).parse().unwrap();
    let token = format!("Bearer {}", token()).parse().unwrap();
    head.headers.entry("authorization").or_insert(token);
    let client = Client::builder(TokioExecutor::new()).build_http();
    client.request(Request::from_parts(head, body)).await.unwrap()
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

async fn json_of(response: Response<Incoming>) -> Value {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

/// Answers with what arrived.
async fn mirror(uri: Uri, headers: HeaderMap, body: Bytes) -> Json<Value> {
    let mut fields = serde_json::Map::new();
    for name in headers.keys() {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        fields.insert(name.to_string(), values.join(", ").into());
    }
    Json(json!({"uri": uri.to_string(), "fields": fields, "bytes": body.len()}))
}

async fn mirroring() -> SocketAddr {
    serve(Router::new().fallback(mirror)).await
}

#[tokio::test]
async fn the_request_reaches_the_upstream_without_the_fields_of_the_hop() {
    let gateway = gateway(to(mirroring().await), 9, None).await;
    let request = Request::post("/a/b?c=d%20e")
        .header("connection", "x-secret, x-merit-agent")
        .header("x-secret", "1")
        .header("proxy-authorization", "Basic x")
        .header("x-merit-agent", "root")
        .header("x-forwarded-for", "203.0.113.9")
        .header("x-kept", "yes")
        .header("host", "api.example:8080")
        .body(Body::from("four"))
        .unwrap();
    let seen = json_of(send(gateway, request).await).await;
    let fields = &seen["fields"];
    assert_eq!((&seen["uri"], &seen["bytes"]), (&json!("/a/b?c=d%20e"), &json!(4)));
    assert_eq!(fields["connection"], "te", "of the gateway's own hop, nothing of the client's");
    for name in ["x-secret", "proxy-authorization", "transfer-encoding"] {
        assert_eq!(fields.get(name), None, "{name}");
    }
    assert_eq!(fields["x-kept"], "yes");
    assert_eq!(fields["x-merit-agent"], "a1");
    assert_eq!(fields["host"], "api.example:8080");
    assert_eq!(fields["x-forwarded-host"], "api.example:8080");
    assert_eq!(fields["x-forwarded-for"], "127.0.0.1");
    assert_eq!(fields["via"], "1.1 merit");
}

#[tokio::test]
async fn a_prefix_and_the_upstreams_own_host_are_used_when_configured() {
    let upstream = mirroring().await;
    let config = Config {
        upstream: format!("http://{upstream}/api/"),
        preserve_host: false,
        ..Config::default()
    };
    let gateway = gateway(config, 9, None).await;
    let seen = json_of(send(gateway, get("/x?y")).await).await;
    assert_eq!(seen["uri"], "/api/x?y");
    assert_eq!(seen["fields"]["host"], upstream.to_string());
    assert_eq!(seen["fields"]["x-forwarded-host"], gateway.to_string());
}

#[tokio::test]
async fn bodies_stream_both_ways_before_either_has_ended() {
    let echo = |body: Body| async { Response::new(body) };
    let upstream = serve(Router::new().route("/echo", post(echo))).await;
    let gateway = gateway(to(upstream), 9, None).await;
    let (pieces, receiver) = mpsc::channel::<Result<Bytes, std::convert::Infallible>>(1);
    let body = stream::unfold(receiver, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    });
    pieces.send(Ok("first".into())).await.unwrap();
    let request = Request::post("/echo").body(Body::from_stream(body)).unwrap();
    let mut answer = send(gateway, request).await.into_body();
    // The request's body is still open here.
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    pieces.send(Ok("second".into())).await.unwrap();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "second");
    drop(pieces);
    assert!(answer.frame().await.is_none());
}

#[tokio::test]
async fn a_large_body_passes_whole() {
    let gateway = gateway(to(mirroring().await), 9, None).await;
    let pieces =
        stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![7; 90_000]))));
    let request = Request::post("/").body(Body::from_stream(pieces)).unwrap();
    assert_eq!(json_of(send(gateway, request).await).await["bytes"], 1_800_000);
    let get_with_body = Request::get("/")
        .header("transfer-encoding", "chunked")
        .body(Body::from_stream(stream::iter([Ok::<_, std::io::Error>("abc")])))
        .unwrap();
    assert_eq!(json_of(send(gateway, get_with_body).await).await["bytes"], 3);
}

#[tokio::test]
async fn fields_of_the_upstreams_hop_end_and_its_ratelimit_stays_before_ours() {
    let answer = || async {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("ratelimit", "\"upstream\";r=7"),
            ("ratelimit-policy", "\"upstream\";q=9;w=1"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=9"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        (StatusCode::IM_A_TEAPOT, headers, "tea")
    };
    let upstream = serve(Router::new().route("/", any(answer))).await;
    let gateway = gateway(to(upstream), 9, None).await;
    let response = send(gateway, get("/")).await;
    assert_eq!(response.status(), 418);
    let values = |name| {
        let values = response.headers().get_all(name).iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(values("x-hop"), [""; 0]);
    assert_eq!(values("keep-alive"), [""; 0]);
    let limits = values("ratelimit");
    assert_eq!((limits.len(), &*limits[0]), (2, "\"upstream\";r=7"));
    assert!(limits[1].starts_with("\"default\";r=8"), "{limits:?}");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "tea");
}

#[tokio::test]
async fn a_head_answer_keeps_its_length_and_trailers_arrive() {
    let trailing = || async {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "42".parse().unwrap());
        let frames = [
            Ok::<_, std::io::Error>(Frame::data(Bytes::from("data"))),
            Ok(Frame::trailers(trailers)),
        ];
        Response::builder()
            .header("trailer", "x-sum")
            .body(Body::new(StreamBody::new(stream::iter(frames))))
            .unwrap()
    };
    let sized = || async { "12345" };
    let upstream = serve(
        Router::new().route("/trailers", any(trailing)).route("/sized", axum::routing::get(sized)),
    )
    .await;
    let gateway = gateway(to(upstream), 9, None).await;
    let head = Request::head("/sized").body(Body::empty()).unwrap();
    assert_eq!(send(gateway, head).await.headers()["content-length"], "5");
    let mut request = get("/trailers");
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let body = send(gateway, request).await.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "42");
}

#[tokio::test]
async fn beyond_the_bucket_the_answer_is_429_and_the_upstream_hears_nothing() {
    let reached = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&reached);
    let answer = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        async { "served" }
    };
    let gateway = gateway(to(serve(Router::new().fallback(answer)).await), 2, None).await;
    let statuses = [(); 4].map(|()| send(gateway, get("/")));
    let statuses: Vec<u16> = stream::iter(statuses)
        .then(|response| async { response.await.status().as_u16() })
        .collect()
        .await;
    assert_eq!(statuses, [200, 200, 429, 429]);
    let mut nobody = get("/");
    nobody.headers_mut().insert("authorization", "Bearer garbage".parse().unwrap());
    assert_eq!(send(gateway, nobody).await.status(), 401);
    assert_eq!(reached.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_upstream_that_is_away_is_502_and_a_silent_one_504() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let response = send(gateway(to(address), 9, None).await, get("/")).await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["content-type"], "application/problem+json");

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config =
        Config { response_timeout: Duration::from_millis(50), ..to(silent.local_addr().unwrap()) };
    let response = send(gateway(config, 9, None).await, get("/")).await;
    assert_eq!(response.status(), 504);
    assert_eq!(json_of(response).await["detail"], "the upstream did not answer in time");
}

#[tokio::test]
async fn a_body_that_stops_coming_is_the_clients_silence_and_not_the_upstreams() {
    let upstream = serve(Router::new().fallback(async |body: Bytes| body)).await;
    let config = Config { response_timeout: Duration::from_secs(2), ..to(upstream) };
    let gateway = gateway(config, 9, None).await;
    let half = stream::once(async { Ok::<_, std::convert::Infallible>("half") });
    let request = |body| {
        let mut request = get("/");
        *request.method_mut() = http::Method::POST;
        request.headers_mut().insert("content-length", "8".parse().unwrap());
        *request.body_mut() = body;
        request
    };
    let response = send(gateway, request(Body::from_stream(half.chain(stream::pending())))).await;
    assert_eq!(response.status(), 408);
    assert_eq!(json_of(response).await["detail"], "the request's body did not go on in time");
    assert_eq!(send(gateway, request(Body::from("whole: 8"))).await.status(), 200);

    // An upstream that takes the body and stops reading is silent itself.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config =
        Config { response_timeout: Duration::from_millis(200), ..to(deaf.local_addr().unwrap()) };
    let gateway = self::gateway(config, 9, None).await;
    let endless =
        stream::repeat_with(|| Ok::<_, std::convert::Infallible>(Bytes::from(vec![0; 1 << 16])));
    let mut request = request(Body::from_stream(endless));
    request.headers_mut().remove("content-length");
    assert_eq!(send(gateway, request).await.status(), 504);
}

#[tokio::test]
async fn an_upstream_that_breaks_off_breaks_the_answer_off() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut connection, _) = upstream.accept().await.unwrap();
        let mut request = [0; 2048];
        let _ = connection.read(&mut request).await.unwrap();
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
        connection.write_all(half).await.unwrap();
    });
    let response = send(gateway(to(address), 9, None).await, get("/")).await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err(), "a cut body passed for a whole one");
}

/// Upgrades to anything, and sends back what it reads.
async fn upgrading(mut request: Request<Body>) -> Response<Body> {
    let protocol = request.headers().get("upgrade").cloned();
    let Some(protocol) = protocol else { return "plain".into_response() };
    assert_eq!(request.headers()["connection"], "upgrade, te");
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            stream.write_all(&bytes[..count]).await.unwrap();
        }
    });
    Response::builder()
        .status(101)
        .header("connection", "upgrade")
        .header("upgrade", protocol)
        .header("sec-websocket-accept", "x")
        .body(Body::empty())
        .unwrap()
}

/// Sends a handshake by hand; returns the connection and the answer's head.
async fn handshake(gateway: SocketAddr, protocol: &str) -> (TcpStream, String) {
    handshake_of("a1", gateway, protocol).await
}

async fn handshake_of(agent: &str, gateway: SocketAddr, protocol: &str) -> (TcpStream, String) {
    let mut connection = TcpStream::connect(gateway).await.unwrap();
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: {protocol}\r\n\
         authorization: Bearer {}\r\n\r\n",
        token_of(agent)
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    (connection, String::from_utf8(head).unwrap())
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let upstream = serve(Router::new().fallback(upgrading)).await;
    let gateway = gateway(to(upstream), 9, None).await;
    let (mut connection, head) = handshake(gateway, "websocket").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("upgrade: websocket\r\n"), "{head}");
    assert!(head.contains("sec-websocket-accept: x\r\n"), "{head}");
    for message in [&b"hello"[..], b"\x00\xff\x81"] {
        connection.write_all(message).await.unwrap();
        let mut back = vec![0; message.len()];
        connection.read_exact(&mut back).await.unwrap();
        assert_eq!(back, message);
    }
}

#[tokio::test]
async fn an_upgrade_to_http_2_is_not_passed_on() {
    let upstream = serve(Router::new().fallback(upgrading)).await;
    let gateway = gateway(to(upstream), 9, None).await;
    for protocol in ["h2c", "websocket, H2C", "HTTP/2.0"] {
        let (_, head) = handshake(gateway, protocol).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{protocol}: {head}");
    }
}

#[tokio::test]
async fn beyond_the_places_for_upgrades_the_answer_is_503() {
    let upstream = serve(Router::new().fallback(upgrading)).await;
    let gateway = gateway(Config { max_tunnels: 1, ..to(upstream) }, 9, None).await;
    let (_open, head) = handshake(gateway, "websocket").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (_, second) = handshake(gateway, "websocket").await;
    assert!(second.starts_with("HTTP/1.1 503 "), "{second}");
    assert!(second.contains("retry-after: "), "{second}");
}

#[tokio::test]
async fn beyond_one_agents_places_for_upgrades_it_gets_429_and_others_get_theirs() {
    let upstream = serve(Router::new().fallback(upgrading)).await;
    let config = Config { max_tunnels: 3, max_tunnels_per_agent: 1, ..to(upstream) };
    let gateway = gateway(config, 9, None).await;
    let (_open, head) = handshake(gateway, "websocket").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (_, second) = handshake(gateway, "websocket").await;
    assert!(second.starts_with("HTTP/1.1 429 "), "{second}");
    assert!(second.contains("retry-after: "), "{second}");
    assert!(second.contains("content-type: application/problem+json"), "{second}");
    let (_, other) = handshake_of("a2", gateway, "websocket").await;
    assert!(other.starts_with("HTTP/1.1 101 "), "{other}");
}

/// An API that accepts bodies that begin with `{`.
async fn rating_api(body: Bytes) -> (StatusCode, &'static str) {
    match body.starts_with(b"{") {
        true => (StatusCode::CREATED, "thank you"),
        false => (StatusCode::BAD_REQUEST, "no"),
    }
}

struct TeeEdge {
    gateway: SocketAddr,
    taken: Arc<Mutex<Vec<Request<Bytes>>>>,
}

async fn tee_edge(outcome: Result<(), &'static str>) -> TeeEdge {
    let upstream = serve(Router::new().fallback(post(rating_api))).await;
    let taken = Arc::new(Mutex::new(Vec::new()));
    let receiver = Arc::clone(&taken);
    let tee = Tee::new(move |request| {
        receiver.lock().unwrap().push(request);
        async move { outcome }
    });
    let config = Config { tee_ratings: Some("/v1/rating".to_owned()), ..to(upstream) };
    TeeEdge { gateway: gateway(config, 99, Some(tee)).await, taken }
}

fn rating(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("idempotency-key", "e1").body(body.into()).unwrap()
}

#[tokio::test]
async fn a_rating_that_the_upstream_accepts_is_handed_on_with_its_head() {
    let edge = tee_edge(Ok(())).await;
    let response = send(edge.gateway, rating("/v1/rating?x=1", "{\"score\":5}")).await;
    assert_eq!(response.status(), 201);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "thank you");
    let pieces = stream::iter(["{\"sc", "ore\":4}"].map(Ok::<_, std::io::Error>));
    assert_eq!(
        send(edge.gateway, rating("/v1/rating", Body::from_stream(pieces))).await.status(),
        201
    );
    let taken = edge.taken.lock().unwrap();
    assert_eq!(taken[0].body(), "{\"score\":5}");
    assert_eq!(taken[0].headers()["idempotency-key"], "e1");
    assert_eq!(taken[0].headers()["authorization"], format!("Bearer {}", token()));
    assert_eq!(taken[1].body(), "{\"score\":4}", "in pieces of unknown length");
}

#[tokio::test]
async fn what_the_upstream_refuses_and_other_paths_are_not_handed_on() {
    let edge = tee_edge(Ok(())).await;
    assert_eq!(send(edge.gateway, rating("/v1/rating", "no rating")).await.status(), 400);
    assert_eq!(send(edge.gateway, rating("/v1/rating/", "{}")).await.status(), 201);
    assert_eq!(send(edge.gateway, rating("/v1/ratings", "{}")).await.status(), 201);
    assert_eq!(edge.taken.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn the_upstreams_answer_passes_whatever_becomes_of_the_rating() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let edge = tee_edge(Err("bus_unavailable")).await;
    for body in ["{}".to_owned(), format!("{{{}}}", " ".repeat(TEE_BODY_MAX))] {
        let response = send(edge.gateway, rating("/v1/rating", body)).await;
        assert_eq!(response.status(), 201);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "thank you");
    }
    assert_eq!(edge.taken.lock().unwrap().len(), 1);
    let text = recorder.handle().render();
    for outcome in ["bus_unavailable", "too_large"] {
        let line = format!("merit_tee_total{{outcome=\"{outcome}\"}} 1");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn the_answer_does_not_wait_longer_for_the_rating_than_configured() {
    let upstream = serve(Router::new().fallback(post(rating_api))).await;
    let (finish, finished) = oneshot::channel::<()>();
    let (done, taken) = oneshot::channel::<()>();
    let ends = Mutex::new(Some((finished, done)));
    let tee = Tee::new(move |_| {
        let (finished, done) = ends.lock().unwrap().take().unwrap();
        async move {
            finished.await.unwrap();
            done.send(()).unwrap();
            Ok(())
        }
    });
    let config = Config {
        tee_ratings: Some("/v1/rating".to_owned()),
        tee_timeout: Duration::from_millis(10),
        ..to(upstream)
    };
    let gateway = gateway(config, 9, Some(tee)).await;
    assert_eq!(send(gateway, rating("/v1/rating", "{}")).await.status(), 201);
    finish.send(()).unwrap();
    taken.await.unwrap();
}

/// A gateway that answers a rating long before `receiver` has taken it.
async fn hasty_gateway(tee: Tee) -> SocketAddr {
    let upstream = serve(Router::new().fallback(post(rating_api))).await;
    let config = Config {
        tee_ratings: Some("/v1/rating".to_owned()),
        tee_timeout: Duration::from_millis(10),
        ..to(upstream)
    };
    gateway(config, 9, Some(tee)).await
}

#[tokio::test]
async fn who_stops_waits_for_a_rating_that_outlives_its_answer() {
    let (taking, taken) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gate, count) = (Arc::clone(&taking), Arc::clone(&taken));
    let tee = Tee::new(move |_| {
        let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
        async move {
            gate.acquire().await.unwrap().forget();
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let handing_on = tee.handing_on();
    let gateway = hasty_gateway(tee).await;
    assert_eq!(send(gateway, rating("/v1/rating", "{}")).await.status(), 201);
    let mut finishing = std::pin::pin!(async { handing_on.finish(Duration::from_secs(60)).await });
    assert!(futures_util::poll!(&mut finishing).is_pending(), "the rating is on its way");
    taking.add_permits(1);
    assert_eq!((finishing.await, taken.load(Ordering::SeqCst)), (0, 1));
}

#[tokio::test]
async fn a_rating_that_is_given_up_at_the_end_is_counted() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let tee = Tee::new(|_| std::future::pending());
    let handing_on = tee.handing_on();
    let gateway = hasty_gateway(tee).await;
    assert_eq!(send(gateway, rating("/v1/rating", "{}")).await.status(), 201);
    assert_eq!(handing_on.finish(Duration::from_millis(10)).await, 1);
    let text = recorder.handle().render();
    assert!(text.contains("merit_tee_total{outcome=\"stopped\"} 1"), "{text}");
}

#[tokio::test]
async fn a_path_without_receiver_or_a_receiver_without_path_is_an_error() {
    let admission = || {
        AdmissionLayer::builder(MemoryStore::new())
            .identity(JwtIdentity::hs256(SECRET))
            .bucket(Bucket::per_second(1.0))
            .build()
            .unwrap()
    };
    let plain = Config { upstream: "http://127.0.0.1:1".to_owned(), ..Config::default() };
    let path = Config { tee_ratings: Some("/v1/rating".to_owned()), ..plain.clone() };
    assert!(matches!(router(&path, admission(), None), Err(GatewayError::Tee)));
    let tee = Tee::new(|_| async { Ok(()) });
    assert!(matches!(router(&plain, admission(), Some(tee)), Err(GatewayError::Tee)));
}

/// Streams an answer that says at its end what it cost.
async fn metered() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-tokens-used", "7".parse().unwrap());
    let frames = [Frame::data(Bytes::from("words")), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, std::io::Error>)));
    Response::builder().header("trailer", "x-tokens-used").body(Body::new(body)).unwrap()
}

#[tokio::test]
async fn what_the_upstream_says_at_the_end_of_an_answer_is_what_it_cost() {
    let upstream = serve(Router::new().fallback(metered)).await;
    let admission = AdmissionLayer::builder(MemoryStore::new())
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Bucket::per_second(0.001).capacity(100))
        .route(Route::path("/chat").cost(60).settle_from("x-tokens-used".parse().unwrap()))
        .route(Route::path("/look").cost(0))
        .build()
        .unwrap();
    let gateway = serve(router(&to(upstream), admission, None).unwrap()).await;
    let response = send(gateway, get("/chat")).await;
    assert!(response.headers()["ratelimit"].to_str().unwrap().contains("r=40;"));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "words");
    let left = send(gateway, get("/look")).await;
    assert!(left.headers()["ratelimit"].to_str().unwrap().contains("r=93;"), "{left:?}");
}

#[tokio::test]
async fn an_upstream_that_is_away_costs_nothing_where_that_is_wanted() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let admission = AdmissionLayer::builder(MemoryStore::new())
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Bucket::per_second(0.001).capacity(2))
        .refund_on_5xx(true)
        .build()
        .unwrap();
    let gateway = serve(router(&to(closed), admission, None).unwrap()).await;
    for _ in 0..5 {
        assert_eq!(send(gateway, get("/")).await.status(), StatusCode::BAD_GATEWAY);
    }
}

#[tokio::test]
async fn nothing_leaves_the_path_of_the_upstream() {
    let upstream = format!("http://{}/api", mirroring().await);
    let gateway = gateway(Config { upstream, ..Config::default() }, 100, None).await;
    for path in ["/../admin", "/a/%2e%2E/b", "/a%2f..%5cb", "/..;x=1/a", "/%252e%252e/a", "/a/.."] {
        assert_eq!(send(gateway, get(path)).await.status(), 400, "{path}");
    }
    for path in ["/a..b", "/...", "/.well-known/x", "/a?b=/../c"] {
        let answer = json_of(send(gateway, get(path)).await).await;
        assert_eq!(answer["uri"], format!("/api{path}"));
    }
}
