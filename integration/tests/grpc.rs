//! Ratings over gRPC: the real binary, called by tonic's client.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream};
use merit_integration::{
    Kafka, Merit, Persistence, Redis, Role, Settings, eventually,
    fold::Fold,
    keys,
    rating_v1::{
        RateRequest, RateStreamRequest, RateStreamResponse, Rating,
        rating_service_client::RatingServiceClient,
    },
};
use prost::Message as _;
use serde_json::json;
use tokio::sync::mpsc;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt as _;

const DEADLINE: Duration = Duration::from_secs(30);
const SERVICE: &str = "merit.rating.v1.RatingService";

type Client = RatingServiceClient<Channel>;

async fn channel(merit: &Merit) -> Channel {
    Channel::from_shared(merit.grpc()).unwrap().connect().await.expect("the listener is there")
}

async fn client(merit: &Merit) -> Client {
    RatingServiceClient::new(channel(merit).await)
}

async fn one_process() -> (Merit, Redis) {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    (Merit::start(Settings::new(&redis.url())).await, redis)
}

fn rating(agent: &str, score: f64) -> Rating {
    let (agent_id, user_id) = (Some(agent.to_owned()), "u1".to_owned());
    Rating { agent_id, user_id, score, ..Rating::default() }
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {token}").parse().expect("a token is ASCII");
    request.metadata_mut().insert("authorization", bearer);
    request
}

async fn rate(client: &Client, token: &str, rating: Rating) -> Result<String, Status> {
    let request = with_token(token, RateRequest { rating: Some(rating) });
    client.clone().rate(request).await.map(|answer| answer.into_inner().id)
}

async fn rate_all(client: &Client, ratings: Vec<Rating>) -> Result<RateStreamResponse, Status> {
    let messages = ratings.into_iter().map(|rating| RateStreamRequest { rating: Some(rating) });
    let request = with_token(&keys::collector(), stream::iter(messages));
    client.clone().rate_stream(request).await.map(tonic::Response::into_inner)
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().expect("a refusal has ErrorInfo").reason.clone()
}

fn wait(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info().and_then(|info| info.retry_delay)
}

fn count(status: &Status, name: &str) -> u64 {
    let details = status.get_error_details();
    details.error_info().unwrap().metadata[name].parse().unwrap()
}

#[tokio::test]
async fn a_single_and_a_streamed_rating_move_the_limit() {
    let (merit, redis) = one_process().await;
    let client = client(&merit).await;
    let mut fold = Fold::default();
    let named = Rating { id: Some("event-1".to_owned()), ..rating("single", 5.0) };
    for _ in 0..2 {
        let id = rate(&client, &keys::rater("u1"), named.clone()).await.unwrap();
        assert_eq!(id, "event-1");
    }
    fold.rate("single", 5.0);
    let ratings: Vec<_> = (0..500).map(|n| rating(&format!("streamed-{}", n % 7), 4.0)).collect();
    for rating in &ratings {
        fold.rate(rating.agent_id.as_deref().unwrap(), rating.score);
    }
    let answer = rate_all(&client, ratings).await.unwrap();
    assert_eq!((answer.accepted, answer.refused), (500, 0));
    fold.settles_in(&redis, DEADLINE).await;
    assert_eq!(merit.metric("merit_ratings_accepted_total").await, Some(502.0));
}

#[tokio::test]
async fn what_is_refused_moves_nothing_and_says_why() {
    let (merit, redis) = one_process().await;
    let client = client(&merit).await;
    let (any, victim) = (keys::collector(), || rating("victim", 5.0));

    let forged = rate(&client, "nonsense", victim()).await.unwrap_err();
    assert_eq!(forged.code(), Code::Unauthenticated);
    let own = json!({"sub": "u1", "scope": "ratings:write:any", "agent_id": "victim"});
    let own = rate(&client, &keys::hs256(&keys::claims(&own)), victim()).await.unwrap_err();
    assert_eq!((own.code(), reason(&own)), (Code::PermissionDenied, "OWN_AGENT".to_owned()));
    let other = Rating { user_id: "u2".to_owned(), ..victim() };
    let other = rate(&client, &keys::rater("u1"), other).await.unwrap_err();
    assert_eq!((other.code(), reason(&other)), (Code::PermissionDenied, "OTHER_USER".to_owned()));
    for (bad, field) in [
        (Rating { score: 6.0, ..victim() }, "rating.score"),
        (Rating { agent_id: Some("two words".to_owned()), ..victim() }, "rating.agent_id"),
        (Rating { timestamp_ms: Some(1_700_000_000), ..victim() }, "rating.timestamp_ms"),
    ] {
        let refused = rate(&client, &any, bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        let details = refused.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, field);
        assert_eq!(wait(&refused), None);
    }
    let bad_in_the_middle = vec![rating("good", 5.0), Rating { score: 0.0, ..victim() }];
    let answer = rate_all(&client, bad_in_the_middle).await.unwrap();
    assert_eq!((answer.accepted, answer.refused), (1, 1));
    assert_eq!((answer.refusals[0].index, answer.refusals[0].field.as_str()), (1, "score"));
    let long = Rating { user_id: "u".repeat(1 << 20), ..victim() };
    assert_eq!(rate(&client, &any, long).await.unwrap_err().code(), Code::ResourceExhausted);

    let mut fold = Fold::default();
    fold.rate("good", 5.0);
    fold.settles_in(&redis, DEADLINE).await;
    let rated: BTreeSet<String> = redis.ask(&["KEYS", "tb:*"]).await;
    assert_eq!(rated, BTreeSet::from(["tb:good".to_owned()]));
}

#[tokio::test]
async fn reflection_tells_the_services_and_the_proto() {
    let (merit, _redis) = one_process().await;
    let mut client = ServerReflectionClient::new(channel(&merit).await);
    let ask =
        |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let asked = stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(SERVICE.to_owned())),
    ]);
    let answers = client.server_reflection_info(asked).await.unwrap().into_inner();
    let answers: Vec<_> =
        answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    let MessageResponse::ListServicesResponse(listed) = &answers[0] else {
        panic!("{:?}", answers[0]);
    };
    let names: BTreeSet<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.is_superset(&BTreeSet::from([SERVICE, "grpc.health.v1.Health"])), "{names:?}");
    let MessageResponse::FileDescriptorResponse(files) = &answers[1] else {
        panic!("{:?}", answers[1]);
    };
    let file = protox::prost_reflect::prost_types::FileDescriptorProto::decode(
        &*files.file_descriptor_proto[0],
    );
    assert_eq!(file.unwrap().name(), "merit/rating/v1/rating.proto");
}

async fn serves(channel: &Channel, service: &str) -> bool {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await.expect("health answers");
    answer.into_inner().status == 1
}

#[tokio::test]
async fn a_full_bus_says_when_to_come_back_and_health_follows_the_bus() {
    let mut kafka = Kafka::start().await;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut settings =
        Settings::new(&redis.url()).kafka(&kafka.brokers(), "grpc.ratings").role(Role::Ingest);
    let bus = |key: &str, value: &str| (format!("MERIT__BUS__{key}"), value.to_owned());
    settings.environment = vec![bus("QUEUE_MAX", "1"), bus("DELIVERY_TIMEOUT", "2s")];
    let merit = Merit::start(settings).await;
    let (client, channel) = (client(&merit).await, channel(&merit).await);
    let token = keys::collector();
    rate(&client, &token, rating("before", 5.0)).await.unwrap();
    for service in ["", SERVICE] {
        eventually("health says that it serves", DEADLINE, || serves(&channel, service)).await;
    }

    kafka.kill9();
    let calls = (0..20).map(|n| {
        let named = Rating { id: Some(n.to_string()), ..rating("during", 5.0) };
        rate(&client, &token, named)
    });
    let refused: Vec<Status> = join_all(calls).await.into_iter().map(Result::unwrap_err).collect();
    for status in &refused {
        assert!(
            [Code::ResourceExhausted, Code::Unavailable].contains(&status.code()),
            "{status:?}"
        );
        assert_eq!(wait(status), Some(Duration::from_secs(1)), "{status:?}");
    }
    let full = refused.iter().filter(|status| status.code() == Code::ResourceExhausted);
    assert!(full.clone().count() > 0, "{refused:?}");
    assert!(full.clone().all(|status| reason(status) == "BUS_FULL"));
    let ratings = (0..20).map(|n| Rating { id: Some(n.to_string()), ..rating("during", 5.0) });
    let stopped = rate_all(&client, ratings.collect()).await.unwrap_err();
    assert_eq!((count(&stopped, "accepted"), count(&stopped, "next")), (0, 0));
    assert!(wait(&stopped).is_some());
    for service in ["", SERVICE] {
        let gone = || async { !serves(&channel, service).await };
        eventually("health says that it does not serve", DEADLINE, gone).await;
    }

    kafka.restart().await;
    for service in ["", SERVICE] {
        eventually("health says that it serves again", DEADLINE, || serves(&channel, service))
            .await;
    }
    let named = Rating { id: Some("0".to_owned()), ..rating("during", 5.0) };
    assert_eq!(rate(&client, &token, named).await.unwrap(), "0");
}

/// Once a stream read up to 63 ratings more, and took those for which a token had come meanwhile.
#[tokio::test]
async fn a_spent_quota_ends_a_stream_before_a_later_rating_is_taken() {
    let kafka = Kafka::start().await;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut settings =
        Settings::new(&redis.url()).kafka(&kafka.brokers(), "grpc.quota").role(Role::Ingest);
    // A token comes back sooner than the broker acknowledges.
    let ingest = |key: &str, value: &str| (format!("MERIT__INGEST__{key}"), value.to_owned());
    settings.environment = vec![ingest("RATER_RATE", "3000"), ingest("RATER_BURST", "1")];
    let merit = Merit::start(settings).await;
    let client = client(&merit).await;
    let (mut from, mut ends) = (0, 0);
    while from < 500 {
        let ratings = (from..500).map(|n| Rating { id: Some(n.to_string()), ..rating("a", 5.0) });
        let messages = ratings.map(|rating| RateStreamRequest { rating: Some(rating) });
        let messages = stream::iter(messages.collect::<Vec<_>>());
        let request = with_token(&keys::rater("u1"), messages);
        let stopped = match client.clone().rate_stream(request).await {
            Ok(answer) => {
                assert_eq!(answer.into_inner().accepted, 500 - from);
                break;
            }
            Err(stopped) => stopped,
        };
        assert_eq!((stopped.code(), reason(&stopped).as_str()), (Code::ResourceExhausted, "QUOTA"));
        assert!(wait(&stopped).is_some());
        // Every rating before `next` was taken, and none behind it.
        assert_eq!(count(&stopped, "accepted"), count(&stopped, "next"), "{stopped:?}");
        from += count(&stopped, "next");
        ends += 1;
    }
    assert!(ends > 10, "{ends} ends");
    // None was taken twice.
    assert_eq!(merit.metric("merit_ratings_accepted_total").await, Some(500.0));
}

#[tokio::test]
async fn a_process_that_stops_tells_a_stream_where_to_go_on_and_loses_nothing_of_it() {
    let (mut merit, redis) = one_process().await;
    let client = client(&merit).await;
    let mut health = HealthClient::new(channel(&merit).await);
    let watching = health.watch(HealthCheckRequest::default());
    let watching = watching.await.unwrap().into_inner();
    let (sender, messages) = mpsc::channel(1);
    let messages = stream::unfold(messages, async |mut messages| {
        let message = messages.recv().await?;
        Some((message, messages))
    });
    let request = with_token(&keys::collector(), messages);
    let mut streaming = client.clone();
    let streaming = tokio::spawn(async move { streaming.rate_stream(request).await });
    let mut fold = Fold::default();
    for n in 0..50 {
        let rating = Rating { id: Some(n.to_string()), ..rating("kept", 4.5) };
        sender.send(RateStreamRequest { rating: Some(rating) }).await.unwrap();
        fold.rate("kept", 4.5);
    }
    let accepted = || async { merit.metric("merit_ratings_accepted_total").await == Some(50.0) };
    eventually("the ratings are on the bus", DEADLINE, accepted).await;
    merit.terminate().await;
    let stopped = streaming.await.unwrap().unwrap_err();
    assert_eq!(stopped.code(), Code::Unavailable, "{stopped:?}");
    assert_eq!((count(&stopped, "accepted"), count(&stopped, "next")), (50, 50));
    assert!(wait(&stopped).is_some());
    assert_eq!(fold.differences(&redis).await, [""; 0]);
    // Watchers were let go, or the process would have waited for them.
    let told: Vec<_> = watching.collect().await;
    assert_eq!(told.last().unwrap().as_ref().unwrap().status, 2, "{told:?}");
    drop(sender);
}
