//! A real broker, and both ends of the bus on it.

use merit_integration::unix_time;
use merit_sidecar::{
    bus::{
        BusConfig, Consumer, Delivery, Event, Partition, Publisher,
        kafka::config::{Config, Security},
    },
    rating::{Poster, Rating, RatingRequest, partition_for},
    secret::File,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::OwnedMessage,
    producer::{FutureProducer, FutureRecord},
};
use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// Nothing here takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PARTITIONS: u32 = 12;

/// A broker of its own, stopped when dropped.
pub(crate) struct Kafka {
    pub(crate) folder: PathBuf,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    /// Lines of its configuration beside those of the script.
    properties: &'static str,
}

impl Kafka {
    pub(crate) fn start(tls: bool) -> Self {
        Self::start_with(tls, "")
    }

    /// Starts a broker where nobody may do anything without an access control list, but who comes without a name.
    pub(crate) fn start_guarded() -> Self {
        Self::start_with(
            true,
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS",
        )
    }

    fn start_with(tls: bool, properties: &'static str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("merit-bus-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let kafka = Self { folder, port: free_port(), tls, properties };
        kafka.start_again();
        kafka
    }

    /// Returns the broker that the tests share which do not kill it.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Kafka>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let kafka = Arc::new(Self::start(false));
            *shared = Arc::downgrade(&kafka);
            kafka
        })
    }

    pub(crate) fn script(&self, arguments: &[&str]) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/kafka-local.sh");
        let mut command = Command::new(script);
        command.args(arguments).env("KAFKA_EXTRA_PROPS", self.properties);
        if self.tls {
            command.env("KAFKA_TLS", "1");
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kafka-local.sh {arguments:?}: {said}");
    }

    pub(crate) fn start_again(&self) {
        self.script(&["start", self.folder.to_str().unwrap(), &self.port.to_string()]);
    }

    pub(crate) fn kill(&self) {
        let pid = fs::read_to_string(self.folder.join("kafka.pid")).unwrap();
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
        // The port is closed when the process is gone.
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "broker {pid} does not die");
        }
    }

    pub(crate) fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns a configuration with a topic and a group of its own.
    pub(crate) fn config(&self) -> Config {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Config {
            brokers: self.brokers(),
            topic: format!("ratings-{count}"),
            group: format!("tuners-{count}"),
            ..Config::default()
        }
    }

    /// Returns a configuration for the listener with TLS and a login; the password is in `password`.
    pub(crate) fn secured(&self, password: &Path) -> Config {
        Config {
            brokers: format!("localhost:{}", self.port + 2),
            security: Security::SaslSsl,
            ca_file: Some(self.folder.join("tls/ca.pem")),
            username: "test".to_owned(),
            password_file: Some(File::from(password)),
            ..self.config()
        }
    }

    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers());
        client
    }

    /// Puts a record on the topic as a foreign producer would.
    pub(crate) async fn produce(
        &self,
        topic: &str,
        partition: i32,
        key: &str,
        value: Option<&[u8]>,
    ) {
        let producer: FutureProducer = self.client().create().unwrap();
        let record = FutureRecord::<str, [u8]>::to(topic).partition(partition).key(key);
        let record = match value {
            Some(value) => record.payload(value),
            None => record,
        };
        producer.send(record, PATIENCE).await.unwrap();
    }

    /// Returns the first `count` records of a partition as they lie there.
    pub(crate) fn raw(&self, topic: &str, partition: i32, count: usize) -> Vec<OwnedMessage> {
        let reader: BaseConsumer = self
            .client()
            .set("group.id", "raw")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        reader.assign(&from).unwrap();
        let next = || reader.poll(PATIENCE).expect("a record in time").unwrap().detach();
        (0..count).map(|_| next()).collect()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.script(&["stop", self.folder.to_str().unwrap()]);
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// Returns a port that is free with the two above it. Not one that the system gives to clients: a
/// client that connects again and again to a dead broker's port may be given that very port.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 1000).unwrap() * 10;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) * 3;
        let free = |port| TcpListener::bind(("127.0.0.1", port));
        if (port..port + 3).map(free).collect::<Result<Vec<_>, _>>().is_ok() {
            return port;
        }
    }
}

pub(crate) fn rating(agent: &str, id: &str) -> Rating {
    let body = format!(r#"{{"agent_id":"{agent}","user_id":"u","score":4.5,"id":"{id}"}}"#);
    let request = RatingRequest::from_json(body.as_bytes()).unwrap();
    let now_us = u64::try_from(unix_time().as_micros()).unwrap();
    request.into_rating(Poster::new("tests").unwrap(), now_us).unwrap()
}

pub(crate) fn partition_of(agent: &str) -> Partition {
    Partition(partition_for(agent, NonZeroU32::new(PARTITIONS).unwrap()))
}

pub(crate) async fn publisher(config: &Config) -> Publisher {
    BusConfig::Kafka(config.clone()).publisher().await.unwrap()
}

pub(crate) async fn consumer(config: &Config) -> Consumer {
    BusConfig::Kafka(config.clone()).consumer().await.unwrap()
}

pub(crate) async fn next(consumer: &mut Consumer) -> Event {
    timeout(PATIENCE, consumer.next()).await.expect("an event in time").unwrap()
}

/// Returns the next `count` deliveries and the positions after them.
pub(crate) async fn deliveries(
    consumer: &mut Consumer,
    count: usize,
) -> (Vec<Delivery>, BTreeMap<Partition, u64>) {
    let (mut found, mut after) = (Vec::new(), BTreeMap::new());
    while found.len() < count {
        if let Event::Batch { deliveries, positions } = next(consumer).await {
            found.extend(deliveries);
            after.extend(positions);
        }
    }
    assert_eq!(found.len(), count);
    (found, after)
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.rating.id().as_str()).collect()
}
