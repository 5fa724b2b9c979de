//! What a consumer makes of records with and without a frame.

use merit_integration::SchemaRegistry;
use merit_sidecar::rating::{
    Codec, Encoding,
    confluent::{self, SchemaId, registration},
};
use rdkafka::message::{Headers as _, Message as _};

use crate::{
    broker::{Kafka, consumer, deliveries, ids, partition_of, publisher, rating},
    config,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn framed_and_unframed_records_are_read_side_by_side_and_poison_says_why() {
    let (kafka, registry) = (Kafka::shared(), SchemaRegistry::shared().await);
    let config = config(&kafka, &registry, Encoding::Protobuf);
    let publisher = publisher(&config).await;
    publisher.publish(&rating("a", "framed")).await.unwrap();
    let place = partition_of("a");
    let number = i32::try_from(place.0).unwrap();
    let put = async |value: &[u8]| kafka.produce(&config.topic, number, "k", Some(value)).await;
    for (codec, id) in [(Codec::Json, "json"), (Codec::Avro, "avro"), (Codec::Protobuf, "plain")] {
        put(&codec.encode(&rating("a", id))).await;
    }
    let unknown = SchemaId(0x7fff_fff0);
    put(&confluent::encode(Codec::Json, unknown, &rating("a", "unknown"))).await;
    put(b"\0\0\0").await;
    // A schema that the registry took, and no rating can be read with.
    let text = registry.register(&format!("{}-text", config.topic), "AVRO", "\"string\"").await;
    put(&confluent::encode(Codec::Json, SchemaId(text), &rating("a", "text"))).await;
    let json = registration(Codec::Json);
    let json = registry.register(&format!("{}-json", config.topic), json.kind, json.schema).await;
    put(&confluent::encode(Codec::Json, SchemaId(json), &rating("a", "framed-json"))).await;

    let mut consumer = consumer(&config).await;
    let (found, after) = deliveries(&mut consumer, 5).await;
    assert_eq!(ids(&found), ["framed", "json", "avro", "plain", "framed-json"]);
    assert_eq!(after[&place], 8);
    let letters = kafka.raw(&config.dead_topic(), 0, 3);
    let reasons: Vec<_> = letters
        .iter()
        .map(|letter| {
            let headers = letter.headers().unwrap();
            let reason = headers.iter().find(|header| header.key == "merit-reason").unwrap();
            String::from_utf8_lossy(reason.value.unwrap()).into_owned()
        })
        .collect();
    assert!(reasons[0].starts_with("schema 2147483632 of the registry is not known to it"));
    assert!(reasons[1].contains("breaks off before the id of its schema"), "{reasons:?}");
    assert_eq!(reasons[2], format!("schema {text} of the registry is no record"));
    assert_eq!(letters[1].payload(), Some(&b"\0\0\0"[..]), "as it was");
    consumer.close().await;
}
