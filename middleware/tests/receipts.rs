//! Receipts as an agent reads them on its answers.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    future::{Ready, ready},
    time::SystemTime,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_merit::{
    AdmissionLayer, AgentId, Bucket, Caller, Identify, MemoryStore, ReceiptKeys,
    admission::AdmissionBuilder,
    identity::IdentityError,
    receipt::{RATER_MAX, RECEIPT_FIELD, Receipt},
};

/// Believes what the request says: verifying is not what is tested here.
struct Believing;

impl Identify for Believing {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, request: &Request<B>) -> Self::Future {
        let mut caller = Caller::from(AgentId::new("a1").unwrap());
        let field = request.headers().get("rater");
        caller.rater = field.map(|rater| rater.to_str().unwrap().into());
        ready(Ok(caller))
    }
}

fn keys() -> ReceiptKeys {
    ReceiptKeys::new([("k1", "a secret of at least thirty-two bytes")]).unwrap()
}

type Wearing = AdmissionLayer<MemoryStore, Believing>;

fn layer() -> Wearing {
    with(|builder| builder)
}

type Builder = AdmissionBuilder<MemoryStore, Believing>;

fn with(more: impl FnOnce(Builder) -> Builder) -> Wearing {
    let builder = AdmissionLayer::builder(MemoryStore::new()).identity(Believing);
    more(builder.bucket(Bucket::per_second(0.001).capacity(2)).receipts(keys())).build().unwrap()
}

#[tokio::test]
async fn what_costs_the_agent_nothing_earns_no_receipt() {
    let banned = MemoryStore::new();
    banned.ban(&AgentId::new("a1").unwrap(), u64::MAX);
    let banned = AdmissionLayer::builder(banned).identity(Believing).shadow(true);
    for (layer, why) in [
        (with(|builder| builder.cost(0)), "a route that costs nothing"),
        (with(|builder| builder.allow([AgentId::new("a1").unwrap()])), "on the allow-list"),
        (with(|builder| builder.refund_on_5xx(true)), "refunded"),
        (banned.bucket(Bucket::per_second(1.0)).receipts(keys()).build().unwrap(), "banned"),
    ] {
        assert_eq!(answer(&layer, Some("u1")).await.1, ["of another"], "{why}");
    }
    let shadow = with(|builder| builder.shadow(true));
    for issued in [true, true, false] {
        let (status, fields) = answer(&shadow, Some("u1")).await;
        assert_eq!((status.as_u16(), fields[0] != "of another"), (500, issued));
    }
}

async fn answer(layer: &Wearing, rater: Option<&str>) -> (StatusCode, Vec<String>) {
    let mut request = Request::builder();
    if let Some(rater) = rater {
        request = request.header("rater", rater);
    }
    let service = layer.layer(service_fn(async |request: Request<()>| {
        assert!(!request.headers().contains_key(RECEIPT_FIELD));
        // As a service would that passes on what another one sent.
        let sent = (RECEIPT_FIELD, "of another");
        Ok::<_, Infallible>(
            Response::builder()
                .header(sent.0, sent.1)
                .status(500)
                .body(Full::<Bytes>::default())
                .unwrap(),
        )
    }));
    let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
    let fields = response.headers().get_all(RECEIPT_FIELD).iter();
    (response.status(), fields.map(|field| field.to_str().unwrap().to_owned()).collect())
}

fn read(receipt: &str) -> Receipt {
    keys().verify(receipt, SystemTime::now()).unwrap()
}

#[tokio::test]
async fn an_answer_for_a_user_carries_one_receipt_whatever_its_status_and_no_two_are_the_same() {
    let layer = layer();
    let (status, first) = answer(&layer, Some("u1")).await;
    let (_, second) = answer(&layer, Some("u1")).await;
    assert_eq!((status.as_u16(), first.len(), second.len()), (500, 1, 1));
    let (first, second) = (read(&first[0]), read(&second[0]));
    assert_eq!((first.agent.as_str(), &*first.rater), ("a1", "u1"));
    assert_ne!(first.request, second.request);
}

#[tokio::test]
async fn an_agent_that_acts_for_itself_or_for_nobody_gets_none() {
    let layer = layer();
    for rater in [None, Some("a1")] {
        let (_, fields) = answer(&layer, rater).await;
        assert_eq!(fields, ["of another"], "what the service sent stays, and proves nothing");
        assert!(keys().verify(&fields[0], SystemTime::now()).is_err());
    }
}

#[tokio::test]
async fn a_refusal_carries_none() {
    let layer = layer();
    for _ in 0..2 {
        answer(&layer, Some("u1")).await;
    }
    let (status, fields) = answer(&layer, Some("u1")).await;
    assert_eq!((status, fields.len()), (StatusCode::TOO_MANY_REQUESTS, 0));
}

#[tokio::test]
async fn a_user_whose_name_does_not_fit_gets_the_answer_without_a_receipt() {
    let (status, fields) = answer(&layer(), Some(&"u".repeat(RATER_MAX + 1))).await;
    assert_eq!((status.as_u16(), fields), (500, vec!["of another".to_owned()]));
}
