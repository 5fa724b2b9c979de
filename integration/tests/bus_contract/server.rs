//! The buses, each over a real server that the tests of this binary share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream;
use futures_util::StreamExt as _;
use merit_integration::{Kafka, Nats, Persistence, Redis};
use merit_sidecar::{
    bus::{BusConfig, in_process, kafka, nats, redis_streams},
    rating::partition_for,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    message::{Headers as _, Message as _},
    producer::{FutureProducer, FutureRecord},
};
use tokio::sync::OnceCell;

use crate::contract::PATIENCE;

/// Partitions of every log here, until a test adds some.
pub(crate) const PARTITIONS: u32 = 4;
/// How long a member that crashed keeps its partitions.
pub(crate) const LEASE: Duration = Duration::from_secs(6);

/// A bus under test.
pub(crate) enum Server {
    InProcess,
    Redis(Arc<Redis>),
    Kafka(Arc<Kafka>),
    Nats(Arc<Nats>),
}

pub(crate) async fn in_process() -> Server {
    Server::InProcess
}

pub(crate) async fn redis() -> Server {
    static SHARED: OnceCell<Arc<Redis>> = OnceCell::const_new();
    let start = || async { Arc::new(Redis::start(Persistence::EveryWrite).await) };
    Server::Redis(SHARED.get_or_init(start).await.clone())
}

pub(crate) async fn kafka() -> Server {
    Server::Kafka(Kafka::shared().await)
}

pub(crate) async fn nats() -> Server {
    static SHARED: OnceCell<Arc<Nats>> = OnceCell::const_new();
    let start = || async { Arc::new(Nats::start().await) };
    Server::Nats(SHARED.get_or_init(start).await.clone())
}

/// A log of its own on a server.
pub(crate) struct Log {
    pub(crate) config: BusConfig,
    pub(crate) topic: String,
}

impl Server {
    /// Returns a log that nobody else uses, with room for `room` ratings in each of its queues.
    pub(crate) fn log(&self, room: usize, batch_max: usize) -> Log {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let topic = format!("contract.{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let config = match self {
            Self::InProcess => {
                BusConfig::InProcess(in_process::Config { capacity: room, batch_max })
            }
            Self::Redis(redis) => BusConfig::Redis(redis_streams::config::Config {
                url: Some(redis.url().as_str().into()),
                topic: topic.clone(),
                partitions: PARTITIONS,
                lease: LEASE,
                length_max: room,
                batch_max,
                ..Default::default()
            }),
            Self::Kafka(kafka) => BusConfig::Kafka(kafka::config::Config {
                brokers: kafka.brokers(),
                topic: topic.clone(),
                group: format!("{topic}-tuners"),
                partitions: PARTITIONS,
                session_timeout: LEASE,
                // Kafka keeps what it has; what is bounded is the producer's queue.
                queue_max: room,
                linger: Duration::from_millis(50),
                batch_max,
                ..Default::default()
            }),
            Self::Nats(nats) => BusConfig::Nats(nats::config::Config {
                url: nats.url().as_str().into(),
                topic: topic.clone(),
                partitions: PARTITIONS,
                lease: LEASE,
                length_max: room,
                batch_max,
                ..Default::default()
            }),
        };
        Log { config, topic }
    }

    /// Puts `payload` beside the ratings of `agent`, as a foreign producer would.
    pub(crate) async fn put(&self, log: &Log, agent: &str, payload: &[u8]) {
        let partitions = PARTITIONS.try_into().expect("not zero");
        let partition = partition_for(agent, partitions);
        match self {
            Self::InProcess => unreachable!("it takes ratings only"),
            Self::Redis(redis) => {
                let mut link = redis.connect().await;
                let mut add = redis::cmd("XADD");
                add.arg(format!("{}:{{{partition}}}", log.topic)).arg("*");
                let added = add.arg("rating").arg(payload).query_async::<String>(&mut link).await;
                added.expect("it is added");
            }
            Self::Kafka(kafka) => {
                let producer: FutureProducer =
                    client(kafka).create().expect("the settings are sound");
                let number = i32::try_from(partition).expect("a small number");
                let record = FutureRecord::<str, [u8]>::to(&log.topic).key("k"); // it is compacted
                let sent = producer.send(record.partition(number).payload(payload), PATIENCE).await;
                sent.expect("the broker takes it");
            }
            Self::Nats(nats) => {
                let client = async_nats::connect(nats.url()).await.expect("the server answers");
                let stream = jetstream::new(client);
                let sent =
                    stream.publish(format!("{}.{partition}", log.topic), payload.to_vec().into());
                sent.await.expect("sent").await.expect("acknowledged");
            }
        }
    }

    /// Returns the dead letters with their reasons, once there is one.
    pub(crate) async fn dead_letters(&self, log: &Log) -> Vec<(Vec<u8>, String)> {
        match self {
            Self::InProcess => unreachable!("it takes ratings only"),
            Self::Redis(redis) => {
                type Entry = (String, std::collections::HashMap<String, Vec<u8>>);
                let dead = format!("{}:dead", log.topic);
                let entries: Vec<Entry> = redis.ask(&["XRANGE", &dead, "-", "+"]).await;
                let letter = |(_, mut fields): Entry| {
                    let reason = fields.remove("reason").expect("it has a reason");
                    let reason = String::from_utf8(reason).expect("text");
                    (fields.remove("rating").expect("it has the record"), reason)
                };
                entries.into_iter().map(letter).collect()
            }
            Self::Kafka(kafka) => {
                let mut settings = client(kafka);
                settings.set("group.id", "letters").set("enable.auto.commit", "false");
                let reader: BaseConsumer = settings.create().expect("the settings are sound");
                let mut from = TopicPartitionList::new();
                from.add_partition_offset(&format!("{}.dead", log.topic), 0, Offset::Beginning)
                    .expect("a valid place");
                reader.assign(&from).expect("it is there");
                let letter = reader.poll(PATIENCE).expect("a letter in time").expect("no error");
                let headers = letter.headers().expect("it has headers");
                let reason = headers.iter().find(|header| header.key == "merit-reason");
                let reason = reason.and_then(|header| header.value).expect("it has a reason");
                let reason = String::from_utf8(reason.to_vec()).expect("text");
                vec![(letter.payload().unwrap_or_default().to_vec(), reason)]
            }
            Self::Nats(nats) => {
                let client = async_nats::connect(nats.url()).await.expect("the server answers");
                let name = format!("{}_dead", log.topic.replace('.', "_"));
                let stream = jetstream::new(client).get_stream(name).await.expect("it is there");
                let consumer = stream
                    .create_consumer(jetstream::consumer::pull::OrderedConfig::default())
                    .await
                    .expect("it can be read");
                let mut letters = consumer.messages().await.expect("it can be read");
                let letter = letters.next().await.expect("a letter").expect("no error");
                let headers = letter.headers.as_ref().expect("it has headers");
                let reason = headers.get("Merit-Reason").expect("it has a reason");
                vec![(letter.payload.to_vec(), reason.to_string())]
            }
        }
    }

    /// Makes the log's partitions `count`, and returns how it is used from then on.
    pub(crate) async fn grow(&self, log: &Log, count: u32) -> BusConfig {
        let mut config = log.config.clone();
        match (self, &mut config) {
            (Self::Redis(_), BusConfig::Redis(config)) => config.partitions = count,
            (Self::Nats(_), BusConfig::Nats(config)) => config.partitions = count,
            (Self::Kafka(kafka), BusConfig::Kafka(_)) => {
                let admin: AdminClient<DefaultClientContext> =
                    client(kafka).create().expect("the settings are sound");
                let count = usize::try_from(count).expect("a small number");
                let wish = [NewPartitions::new(&log.topic, count)];
                let made = admin.create_partitions(&wish, &AdminOptions::new()).await;
                assert!(made.expect("it answers").iter().all(Result::is_ok));
            }
            _ => unreachable!("it has one partition"),
        }
        config
    }
}

fn client(kafka: &Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", kafka.brokers());
    client
}
