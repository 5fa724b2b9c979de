//! The Kafka bus against a real broker: Kafka 4, started here on a free port and stopped again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use futures_util::FutureExt;
use merit_sidecar::{
    bus::{
        BusConfig, BusError, Consumer, Delivery, Event, Partition, PublishError, Publisher,
        kafka::config::{Config, Security},
    },
    rating::{Poster, Rating, RatingRequest, partition_for},
    secret::File,
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    message::{Headers, OwnedMessage},
    producer::{FutureProducer, FutureRecord},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    num::NonZeroU32,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::Notify, time::timeout};

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);
const PARTITIONS: u32 = 12;

/// A broker of its own, stopped when dropped.
struct Kafka {
    folder: PathBuf,
    port: u16,
    tls: bool,
}

impl Kafka {
    fn start(tls: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("merit-bus-{}-{count}", std::process::id());
        let kafka = Self { folder: std::env::temp_dir().join(name), port: free_port(), tls };
        kafka.start_again();
        kafka
    }

    /// Returns the broker that the tests share which do not kill it.
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Kafka>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let kafka = Arc::new(Self::start(false));
            *shared = Arc::downgrade(&kafka);
            kafka
        })
    }

    fn script(&self, arguments: &[&str]) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/kafka-local.sh");
        let mut command = Command::new(script);
        command.args(arguments);
        if self.tls {
            command.env("KAFKA_TLS", "1");
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kafka-local.sh {arguments:?}: {said}");
    }

    fn start_again(&self) {
        self.script(&["start", self.folder.to_str().unwrap(), &self.port.to_string()]);
    }

    fn kill(&self) {
        let pid = fs::read_to_string(self.folder.join("kafka.pid")).unwrap();
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
        // The port is closed when the process is gone.
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "broker {pid} does not die");
        }
    }

    fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns a configuration with a topic and a group of its own.
    fn config(&self) -> Config {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Config {
            brokers: self.brokers(),
            topic: format!("ratings-{count}"),
            group: format!("tuners-{count}"),
            ..Config::default()
        }
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers());
        client
    }

    /// Puts a record on the topic as a foreign producer would.
    async fn produce(&self, topic: &str, partition: i32, key: &str, value: Option<&[u8]>) {
        let producer: FutureProducer = self.client().create().unwrap();
        let record = FutureRecord::<str, [u8]>::to(topic).partition(partition).key(key);
        let record = match value {
            Some(value) => record.payload(value),
            None => record,
        };
        producer.send(record, PATIENCE).await.unwrap();
    }

    /// Returns the first `count` records of a partition as they lie there.
    fn raw(&self, topic: &str, partition: i32, count: usize) -> Vec<OwnedMessage> {
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

fn now_us() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn rating(agent: &str, id: &str) -> Rating {
    let body = format!(r#"{{"agent_id":"{agent}","user_id":"u","score":4.5,"id":"{id}"}}"#);
    let request = RatingRequest::from_json(body.as_bytes()).unwrap();
    request.into_rating(Poster::new("tests").unwrap(), now_us()).unwrap()
}

fn partition_of(agent: &str) -> Partition {
    Partition(partition_for(agent, NonZeroU32::new(PARTITIONS).unwrap()))
}

async fn publisher(config: &Config) -> Publisher {
    BusConfig::Kafka(config.clone()).publisher().await.unwrap()
}

async fn consumer(config: &Config) -> Consumer {
    BusConfig::Kafka(config.clone()).consumer().await.unwrap()
}

async fn next(consumer: &mut Consumer) -> Event {
    timeout(PATIENCE, consumer.next()).await.expect("an event in time").unwrap()
}

/// Returns the next `count` deliveries and the positions after them.
async fn deliveries(
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

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.rating.id().as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rating_arrives_whole_on_its_agents_partition_under_its_key() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    publisher.check().await.unwrap();
    let rating = rating("a-1", "one");
    publisher.publish(&rating).await.unwrap();
    let Event::Assigned(assigned) = next(&mut consumer).await else { panic!("not assigned first") };
    let numbers: BTreeSet<u32> = assigned.iter().map(|a| a.partition.0).collect();
    assert_eq!(numbers, (0..PARTITIONS).collect());
    let ends: u64 = assigned.iter().map(|a| a.log_end - a.log_start).sum();
    assert_eq!(ends, 1, "the log ends after the one rating");
    let (found, after) = deliveries(&mut consumer, 1).await;
    assert_eq!(found[0].rating, rating);
    assert_eq!((found[0].partition, found[0].offset), (partition_of("a-1"), 0));
    assert_eq!(after, BTreeMap::from([(partition_of("a-1"), 1)]));
    assert!(consumer.durable());
    assert_eq!(consumer.source(), "kafka-1");
    let number = i32::try_from(partition_of("a-1").0).unwrap();
    let raw = kafka.raw(&config.topic, number, 1);
    assert_eq!(raw[0].key(), Some(b"u|a-1".as_slice()));
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_created_compacted_after_seven_days() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    publisher(&config).await;
    let admin: AdminClient<DefaultClientContext> = kafka.client().create().unwrap();
    let dead = config.dead_topic();
    let asked = [ResourceSpecifier::Topic(&config.topic), ResourceSpecifier::Topic(&dead)];
    let found = admin.describe_configs(&asked, &AdminOptions::new()).await.unwrap();
    let value =
        |index: usize, key| found[index].as_ref().unwrap().get(key).unwrap().value.clone().unwrap();
    assert_eq!(value(0, "cleanup.policy"), "compact");
    assert_eq!(value(0, "min.compaction.lag.ms"), "604800000");
    assert_eq!(value(1, "cleanup.policy"), "delete");
    let partitions = |topic: &str| {
        admin.inner().fetch_metadata(Some(topic), PATIENCE).unwrap().topics()[0].partitions().len()
    };
    assert_eq!((partitions(&config.topic), partitions(&dead)), (12, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_goes_to_the_dead_letters_and_what_follows_still_comes() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    let place = partition_of("a");
    let number = i32::try_from(place.0).unwrap();
    publisher.publish(&rating("a", "before")).await.unwrap();
    let poison = br#"{"agent_id":"a","user_id":"u","score":"5"}"#;
    kafka.produce(&config.topic, number, "the-key", Some(poison)).await;
    kafka.produce(&config.topic, number, "u|a", None).await; // a tombstone is no poison
    kafka.produce(&config.topic, number, "k", Some(b"\xff\xfe")).await;
    kafka
        .produce(&config.topic, number, "k", Some(br#"{"agentId":"a","userId":"u","score":2}"#))
        .await;
    publisher.publish(&rating("a", "after")).await.unwrap();
    let mut consumer = consumer(&config).await;
    let (found, after) = deliveries(&mut consumer, 3).await;
    assert_eq!(after[&place], 6, "the position is past poison and tombstone");
    assert_eq!(found.iter().map(|d| d.offset).collect::<Vec<_>>(), [0, 4, 5]);
    assert_eq!((ids(&found)[0], ids(&found)[2]), ("before", "after"));
    assert_eq!(found[1].rating.poster().as_str(), "bus", "a foreign producer's plain rating");
    let letters = kafka.raw(&config.dead_topic(), 0, 2);
    assert_eq!(letters[0].key(), Some(b"the-key".as_slice()));
    assert_eq!(letters[0].payload(), Some(poison.as_slice()));
    let header = |letter: usize, key: &str| {
        let headers = letters[letter].headers().unwrap();
        let found = headers.iter().find(|header| header.key == key).unwrap();
        String::from_utf8(found.value.unwrap().to_vec()).unwrap()
    };
    assert_eq!(header(0, "merit-partition"), number.to_string());
    assert_eq!(header(0, "merit-offset"), "1");
    assert_eq!(header(0, "merit-topic"), config.topic);
    assert!(header(0, "merit-reason").starts_with("score \"5\" is a string"));
    assert_eq!(
        (header(1, "merit-offset").as_str(), letters[1].payload()),
        ("3", Some(b"\xff\xfe".as_slice()))
    );
}

/// Puts a record on the topic that is as large as the broker takes: up to 1,048,588 bytes.
async fn produce_large(kafka: &Kafka, topic: &str, partition: Partition, key: &str, value: &[u8]) {
    let large: FutureProducer =
        kafka.client().set("message.max.bytes", "2000000").create().unwrap();
    let number = i32::try_from(partition.0).unwrap();
    let record = FutureRecord::to(topic).partition(number).key(key).payload(value);
    large.send(record, PATIENCE).await.unwrap();
}

fn has_header(letter: &OwnedMessage, key: &str) -> bool {
    letter.headers().unwrap().iter().any(|header| header.key == key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_record_is_put_aside_whole_where_the_broker_takes_it_and_cut_where_not() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    let place = partition_of("a");
    // Below librdkafka's default of 1,000,000 bytes alone, above it with headers …
    produce_large(&kafka, &config.topic, place, "k", &vec![b'x'; 1_020_000]).await;
    // … too large for the broker with headers: because of the value, and because of the key.
    produce_large(&kafka, &config.topic, place, "k", &vec![b'x'; 1_048_450]).await;
    let key = "k".repeat(1_048_450);
    produce_large(&kafka, &config.topic, place, &key, b"poison").await;
    publisher.publish(&rating("a", "after")).await.unwrap();
    let mut consumer = consumer(&config).await;
    let (found, after) = deliveries(&mut consumer, 1).await;
    assert_eq!((ids(&found), after[&place]), (vec!["after"], 4));
    let mut letters = kafka.raw(&config.dead_topic(), 0, 3);
    letters.sort_by_key(|letter| {
        let headers = letter.headers().unwrap();
        let offset = headers.iter().find(|header| header.key == "merit-offset").unwrap();
        offset.value.unwrap().to_vec()
    });
    let length = |letter: &OwnedMessage| letter.payload().unwrap().len();
    let cut = |letter| (has_header(letter, "merit-value-cut"), has_header(letter, "merit-key-cut"));
    assert_eq!((length(&letters[0]), cut(&letters[0])), (1_020_000, (false, false)));
    assert_eq!((length(&letters[1]), cut(&letters[1])), (64 * 1024, (true, false)));
    assert_eq!(letters[2].payload(), Some(b"poison".as_slice()));
    assert_eq!(letters[2].key(), Some(&key.as_bytes()[..1024]));
    assert_eq!(cut(&letters[2]), (false, true));
}

/// Gives the topic of dead letters a bound of `bytes` for one record.
async fn bound_dead_letters(kafka: &Kafka, config: &Config, bytes: &str) {
    let admin: AdminClient<DefaultClientContext> = kafka.client().create().unwrap();
    let dead = config.dead_topic();
    let bound = AlterConfig::new(ResourceSpecifier::Topic(&dead)).set("max.message.bytes", bytes);
    let altered = admin.alter_configs(&[bound], &AdminOptions::new()).await.unwrap();
    assert!(altered.iter().all(Result::is_ok), "{altered:?}");
}

/// Takes events until one is `enough`.
async fn follow(consumer: &mut Consumer, mut enough: impl FnMut(&Event) -> bool) {
    let begun = Instant::now();
    while !enough(&next(consumer).await) {
        assert!(begun.elapsed() < PATIENCE, "it does not come");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_nobody_takes_holds_its_own_partition_alone() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    bound_dead_letters(&kafka, &config, "100").await; // less than the headers alone
    let place = partition_of("a");
    let other =
        (0..).map(|n| format!("b{n}")).find(|b| partition_of(b) != partition_of("a")).unwrap();
    publisher.publish(&rating("a", "held-1")).await.unwrap();
    let number = i32::try_from(place.0).unwrap();
    kafka.produce(&config.topic, number, "k", Some(b"poison")).await;
    let mut first = consumer(&config).await;
    assert!(matches!(next(&mut first).await, Event::Assigned(_)));
    for id in ["passes-1", "passes-2"] {
        publisher.publish(&rating(&other, id)).await.unwrap();
        follow(&mut first, |event| {
            let Event::Batch { deliveries, positions } = event else { panic!("{event:?}") };
            assert!(positions.iter().all(|(p, next)| *p != place || *next == 1), "{event:?}");
            ids(deliveries).contains(&id)
        })
        .await;
    }
    publisher.publish(&rating("a", "held-2")).await.unwrap();
    // The poison does not keep the group from sharing the partitions anew, twice.
    let joining = consumer(&config).await;
    let second = tokio::spawn(async move {
        let mut second = joining;
        follow(&mut second, |event| matches!(event, Event::Assigned(a) if !a.is_empty())).await;
        second
    });
    let mut owned: BTreeSet<Partition> = (0..PARTITIONS).map(Partition).collect();
    let mut share = |event: &Event| {
        match event {
            Event::Revoked(revoked) => owned.retain(|p| !revoked.contains(p)),
            Event::Assigned(assigned) => owned.extend(assigned.iter().map(|a| a.partition)),
            _ => {}
        }
        owned.len()
    };
    follow(&mut first, |event| share(event) < PARTITIONS as usize).await;
    // It goes on being asked while the second waits for what it gave up.
    let second = {
        let asked = async {
            loop {
                next(&mut first).await;
            }
        };
        tokio::select! {
            second = second => second.unwrap(),
            () = asked => unreachable!("it has no end"),
        }
    };
    second.close().await;
    follow(&mut first, |event| share(event) == PARTITIONS as usize).await;
    bound_dead_letters(&kafka, &config, "1000000").await;
    follow(
        &mut first,
        |event| matches!(event, Event::Batch { positions, .. } if positions.contains(&(place, 3))),
    )
    .await;
    let letter = kafka.raw(&config.dead_topic(), 0, 1).remove(0);
    assert_eq!(
        (letter.key(), letter.payload()),
        (Some(b"k".as_slice()), Some(b"poison".as_slice()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_resume_from_the_commit() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    for id in 0..10 {
        publisher.publish(&rating("a", &format!("r{id}"))).await.unwrap();
    }
    let mut first = consumer(&config).await;
    deliveries(&mut first, 10).await;
    assert_eq!(first.lag().iter().map(|(_, lag)| lag).sum::<u64>(), 0);
    first.commit(&[(partition_of("a"), 7)]).unwrap();
    first.close().await;
    let mut second = consumer(&config).await;
    let (found, _) = deliveries(&mut second, 3).await;
    assert_eq!(ids(&found), ["r7", "r8", "r9"]);
    assert!(second.next().now_or_never().is_none(), "and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seek_decides_where_a_partition_goes_on() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    for id in 0..10 {
        publisher.publish(&rating("a", &format!("r{id}"))).await.unwrap();
    }
    let mut consumer = consumer(&config).await;
    assert!(matches!(next(&mut consumer).await, Event::Assigned(_)));
    consumer.seek(partition_of("a"), 8).unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 2).await.0), ["r8", "r9"], "right after Assigned");
    consumer.seek(partition_of("a"), 3).unwrap();
    assert_eq!(consumer.lag().iter().map(|(_, lag)| lag).sum::<u64>(), 7);
    let back = deliveries(&mut consumer, 7).await.0;
    assert_eq!((ids(&back)[0], ids(&back)[6]), ("r3", "r9"), "later on");
    let error = consumer.seek(Partition(99), 0).unwrap_err();
    assert!(matches!(error, BusError::Seek { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_partition_hands_out_nothing_until_it_is_resumed() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    let mut consumer = consumer(&config).await;
    let other =
        (0..).map(|n| format!("b{n}")).find(|b| partition_of(b) != partition_of("a")).unwrap();
    next(&mut consumer).await;
    consumer.pause(&[partition_of("a")]).unwrap();
    publisher.publish(&rating("a", "held")).await.unwrap();
    publisher.publish(&rating(&other, "passes")).await.unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["passes"]);
    publisher.publish(&rating(&other, "again")).await.unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["again"]);
    consumer.resume(&[partition_of("a")]).unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["held"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_instance_that_comes_back_has_its_partitions_before_its_session_ends() {
    let kafka = Kafka::shared();
    let session = Duration::from_secs(30);
    let instance = Some("tuner-0".to_owned());
    let config = Config { instance, session_timeout: session, ..kafka.config() };
    let mut first = consumer(&config).await;
    assert!(matches!(next(&mut first).await, Event::Assigned(_)));
    drop(first);
    let begun = Instant::now();
    let mut second = consumer(&config).await;
    assert!(matches!(next(&mut second).await, Event::Assigned(_)));
    assert!(begun.elapsed() < session / 2, "it took {:?}", begun.elapsed());
}

/// What one member of a group saw.
#[derive(Default)]
struct Seen {
    ids: Vec<String>,
    revoked: usize,
    owned: BTreeSet<Partition>,
}

/// Consumes and commits until `enough` says so; checks that every record is of a partition that
/// was assigned and not revoked.
async fn take_part(
    config: Config,
    all: Arc<Mutex<Vec<String>>>,
    enough: usize,
    joined: Arc<Notify>,
) -> Seen {
    let mut consumer = consumer(&config).await;
    let mut seen = Seen::default();
    let begun = Instant::now();
    while all.lock().unwrap().len() < enough {
        assert!(begun.elapsed() < PATIENCE, "{} of {enough} in time", all.lock().unwrap().len());
        let Ok(event) = timeout(Duration::from_millis(100), consumer.next()).await else {
            continue;
        };
        match event.unwrap() {
            Event::Assigned(assigned) => {
                joined.notify_one();
                for partition in assigned.iter().map(|a| a.partition) {
                    assert!(seen.owned.insert(partition), "{partition} is assigned twice");
                }
            }
            Event::Revoked(revoked) => {
                seen.revoked += revoked.len();
                for partition in revoked {
                    assert!(seen.owned.remove(&partition), "{partition} was not ours");
                }
            }
            Event::Batch { deliveries, positions } => {
                for delivery in &deliveries {
                    assert!(seen.owned.contains(&delivery.partition), "{delivery:?} is not ours");
                }
                let ids = deliveries.iter().map(|d| d.rating.id().to_string());
                seen.ids.extend(ids.clone());
                all.lock().unwrap().extend(ids);
                consumer.commit(&positions).unwrap();
            }
            Event::Closed => panic!("kafka does not end"),
        }
    }
    consumer.close().await;
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_share_the_partitions_and_between_them_deliver_everything_once() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    let all = Arc::new(Mutex::new(Vec::new()));
    let count = 1200;
    let member = |joined: &Arc<Notify>| {
        let part = take_part(config.clone(), Arc::clone(&all), count, Arc::clone(joined));
        tokio::spawn(part)
    };
    let (one, two) = (Arc::default(), Arc::default());
    let first = member(&one);
    let mut second = None;
    for id in 0..count {
        let rating = rating(&format!("agent-{}", id % 40), &format!("r{id}"));
        publisher.publish(&rating).await.unwrap();
        match id {
            0 => one.notified().await,
            // Ratings go on flowing while the first gives partitions up and the second joins …
            400 => second = Some(member(&two)),
            // … and the last of them only when it has.
            1100 => two.notified().await,
            _ => {}
        }
    }
    let (first, second) = (first.await.unwrap(), second.unwrap().await.unwrap());
    let expected: BTreeSet<String> = (0..count).map(|id| format!("r{id}")).collect();
    let all = all.lock().unwrap();
    assert_eq!(all.iter().cloned().collect::<BTreeSet<_>>(), expected, "all of it");
    assert_eq!(all.len(), count, "what was committed before it was given up comes once");
    assert!(first.revoked > 0, "the first gave partitions up");
    assert!(!second.ids.is_empty(), "the second took part");
    assert!(first.owned.is_disjoint(&second.owned), "no partition has two owners");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_is_unavailable_in_time_and_everything_goes_on_when_it_is_back() {
    let kafka = Kafka::start(false);
    let config = Config { delivery_timeout: Duration::from_secs(2), ..kafka.config() };
    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    publisher.publish(&rating("a", "before")).await.unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["before"]);
    kafka.kill();
    for id in ["lost-1", "lost-2"] {
        let begun = Instant::now();
        let error = publisher.publish(&rating("a", id)).await.unwrap_err();
        let took = begun.elapsed();
        assert!(matches!(error, PublishError::Unavailable { .. }), "{error:?}");
        assert!(error.retry_after() >= Some(Duration::from_secs(1)));
        assert!(took < Duration::from_millis(2300), "it took {took:?}");
    }
    assert!(publisher.check().await.is_err(), "and it is not ready");
    // Nobody is told of it as an error: the consumer waits, and may lose its session meanwhile.
    if let Ok(event) = timeout(Duration::from_secs(2), consumer.next()).await {
        assert!(matches!(event.unwrap(), Event::Revoked(_)));
    }
    kafka.start_again();
    let begun = Instant::now();
    while let Err(error) = publisher.publish(&rating("a", "after")).await {
        assert!(matches!(error, PublishError::Unavailable { .. }), "{error:?}");
        assert!(begun.elapsed() < PATIENCE, "publishing does not recover");
    }
    println!("publishing again {:?} after the broker was ready", begun.elapsed());
    let mut last = String::new();
    while last != "after" {
        // What the broker did not acknowledge may still have arrived.
        let (found, _) = deliveries_after_outage(&mut consumer).await;
        last = found.last().map(|d| d.rating.id().to_string()).unwrap_or_default();
    }
    println!("consuming again {:?} after the broker was ready", begun.elapsed());
    while publisher.check().await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "readiness does not recover");
    }
}

async fn deliveries_after_outage(
    consumer: &mut Consumer,
) -> (Vec<Delivery>, BTreeMap<Partition, u64>) {
    match next(consumer).await {
        Event::Batch { deliveries, positions } => (deliveries, positions.into_iter().collect()),
        _ => Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_may_start_before_the_broker() {
    let kafka = Kafka::start(false);
    kafka.kill();
    let config = Config { delivery_timeout: Duration::from_secs(1), ..kafka.config() };
    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    let error = publisher.publish(&rating("a", "early")).await.unwrap_err();
    assert!(matches!(error, PublishError::Unavailable { .. }), "{error:?}");
    assert!(publisher.check().await.is_err());
    let waiting = tokio::spawn(async move { deliveries(&mut consumer, 1).await });
    kafka.start_again();
    let begun = Instant::now();
    while publisher.publish(&rating("a", "late")).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "publishing does not begin");
    }
    assert_eq!(ids(&waiting.await.unwrap().0), ["late"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_sasl_let_in_who_knows_the_password_and_nobody_else() {
    let kafka = Kafka::start(true);
    let password = kafka.folder.join("password");
    fs::write(&password, "test-secret\n").unwrap();
    let config = Config {
        brokers: format!("localhost:{}", kafka.port + 2),
        security: Security::SaslSsl,
        ca_file: Some(kafka.folder.join("tls/ca.pem")),
        username: "test".to_owned(),
        password_file: Some(File::from(&password)),
        ..kafka.config()
    };
    let mut faults = Vec::new();
    BusConfig::Kafka(config.clone()).validate("bus", &mut faults);
    assert_eq!(faults, [""; 0]);
    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    publisher.publish(&rating("a", "secret")).await.unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["secret"]);
    consumer.close().await;
    fs::write(&password, "wrong").unwrap();
    let wrong = Config { delivery_timeout: Duration::from_secs(1), ..config.clone() };
    let outsider = BusConfig::Kafka(wrong).publisher().await.unwrap();
    assert!(
        outsider.publish(&rating("a", "outside")).await.is_err(),
        "a wrong password is refused"
    );
    let untrusting = Config { ca_file: None, delivery_timeout: Duration::from_secs(1), ..config };
    fs::write(&password, "test-secret").unwrap();
    let untrusting = BusConfig::Kafka(untrusting).publisher().await.unwrap();
    assert!(untrusting.publish(&rating("a", "x")).await.is_err(), "an unknown CA is not trusted");
}
