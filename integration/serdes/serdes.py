"""Confluent's serialisers and deserialisers, between a Kafka topic and lines of JSON.

    serdes.py write BROKERS REGISTRY TOPIC KIND    lines of standard input -> records on partition 0
    serdes.py read  BROKERS REGISTRY TOPIC KIND N  the first N records -> lines of standard output

KIND is one of KINDS below. Each registers under the subject <TOPIC>-<KIND>, so that one topic carries them all;
`read` does not care.
"""

import json
import pathlib
import sys

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

SCHEMA = pathlib.Path(__file__).resolve().parents[2] / "sidecar" / "schema"
V1 = SCHEMA / "merit" / "rating" / "v1"
PATIENCE = 30

# A writer of long ago: fewer fields, and a narrower score.
OLDER = {
    "type": "record",
    "name": "Rating",
    "namespace": "merit.rating.v1",
    "fields": [
        {"name": "agent_id", "type": ["null", "string"], "default": None},
        {"name": "user_id", "type": "string"},
        {"name": "score", "type": "float"},
        {"name": "id", "type": ["null", "string"], "default": None},
    ],
}
# A writer of the future: a field that is not known here, among the others.
NEWER = json.loads((V1 / "rating.v1.avsc").read_text())
NEWER["fields"].insert(2, {"name": "mood", "type": {"type": "array", "items": "string"}, "default": []})
# No rating at all.
ORDER = {"type": "record", "name": "Order", "namespace": "shop", "fields": [{"name": "n", "type": "int"}]}


def message(name):
    """The class of a message of rating.proto, from the descriptors that are committed."""
    files = descriptor_pb2.FileDescriptorSet.FromString((SCHEMA / "generated" / "merit.rating.v1.bin").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"merit.rating.v1.{name}"))


def avro(schema):
    text = schema if isinstance(schema, str) else json.dumps(schema)

    def serializer(client, settings):
        return AvroSerializer(client, text, conf=settings)

    return serializer, lambda client: AvroDeserializer(client)


def protobuf(name):
    kind = message(name)

    def serializer(client, settings):
        inner = ProtobufSerializer(kind, client, {"use.deprecated.format": False, **settings})
        return lambda value, context: inner(json_format.ParseDict(value, kind()), context)

    def deserializer(client):
        inner = ProtobufDeserializer(kind, {"use.deprecated.format": False}, client)

        def read(value, context):
            return json_format.MessageToDict(inner(value, context), preserving_proto_field_name=True)

        return read

    return serializer, deserializer


def json_schema():
    text = (V1 / "rating.v1.schema.json").read_text()
    return (
        lambda client, settings: JSONSerializer(text, client, conf=settings),
        lambda client: JSONDeserializer(text, schema_registry_client=client),
    )


KINDS = {
    "avro": lambda: avro((V1 / "rating.v1.avsc").read_text()),
    "avro-older": lambda: avro(OLDER),
    "avro-newer": lambda: avro(NEWER),
    "avro-order": lambda: avro(ORDER),
    "protobuf": lambda: protobuf("Rating"),
    # Of the same schema, but not its first message.
    "protobuf-value": lambda: protobuf("Value"),
    "json": json_schema,
}


def write(brokers, registry, topic, kind):
    serializer, _ = KINDS[kind]()
    subject = {"auto.register.schemas": True, "subject.name.strategy": lambda _context, _name: f"{topic}-{kind}"}
    serialize = serializer(SchemaRegistryClient({"url": registry}), subject)
    context = SerializationContext(topic, MessageField.VALUE)
    producer = Producer({"bootstrap.servers": brokers, "acks": "all"})
    faults = []
    for line in sys.stdin:
        value = serialize(json.loads(line), context)
        done = lambda error, _record: faults.append(error) if error else None
        producer.produce(topic, value, key="python", partition=0, on_delivery=done)
    left = producer.flush(PATIENCE)
    if left or faults:
        sys.exit(f"{left} records were not sent, {faults}")


def read(brokers, registry, topic, kind, count):
    _, deserializer = KINDS[kind]()
    deserialize = deserializer(SchemaRegistryClient({"url": registry}))
    context = SerializationContext(topic, MessageField.VALUE)
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "python", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    for _ in range(int(count)):
        record = consumer.poll(PATIENCE)
        if record is None or record.error():
            sys.exit(f"no record: {record and record.error()}")
        print(json.dumps(deserialize(record.value(), context), default=lambda when: when.isoformat()))
    consumer.close()


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
