use super::*;
use tokio::time::timeout;

/// No broker is here, and librdkafka does not know the partition: it refuses every seek.
fn without_a_broker(partition: Partition) -> Consumer {
    let config = Config { brokers: "127.0.0.1:1".to_owned(), ..Config::default() };
    let mut consumer = Consumer::connect(&config).unwrap();
    consumer.creating.take().unwrap().abort();
    consumer.ours.insert(partition, 7);
    consumer
}

#[tokio::test]
async fn a_refused_seek_is_tried_until_the_partition_is_revoked() {
    let partition = Partition(3);
    let mut consumer = without_a_broker(partition);
    consumer.seek(partition, 5).unwrap();
    while consumer.seeks_refused <= 20 {
        if let Ok(ended) = timeout(Duration::from_secs(1), consumer.next()).await {
            panic!("a refused seek ends it: {ended:?}");
        }
    }
    assert_eq!(consumer.wanted[&partition], 5);
    consumer.client().context().push_step(Step::Revoke(vec![partition]));
    let event = timeout(Duration::from_secs(10), consumer.next()).await.expect("an event in time");
    assert_eq!(event.unwrap(), Event::Revoked(vec![partition]));
    assert!(consumer.wanted.is_empty(), "and the seek is forgotten");
}
