"""Writes golden.json: the bytes that other stacks make of ratings, beside their JSON form.

    python3 -m venv venv && venv/bin/pip install fastavro grpcio-tools
    venv/bin/python sidecar/src/rating/encoding/golden.py > golden.json

Protobuf is google.protobuf's, Avro is fastavro's.
"""

import importlib.util
import io
import json
import pathlib
import sys
import tempfile

import fastavro
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[3] / "schema"
PROTO = "merit/rating/v1/rating.proto"
AVRO = "merit/rating/v1/rating.v1.avsc"

RATINGS = {
    "plain": {
        "id": "r-1",
        "agent_id": "agent-1",
        "user_id": "u1",
        "score": 4.5,
        "timestamp_ms": 1700000000123,
        "context": {},
        "poster": "collector",
        "accepted_at_us": 1700000000456789,
    },
    "item": {
        "id": "c-0123456789abcdef0123456789abcdef",
        "user_id": "Zoë Müller",
        "item_id": "用户/7",
        "score": 1.0,
        "timestamp_ms": 0,
        "context": {"channel": "web"},
        "poster": "key-feed",
        "accepted_at_us": 1700000000000001,
    },
    "whole": {
        "id": "~",
        "agent_id": "a",
        "user_id": "u",
        "item_id": "i",
        "score": 3.3333333333333335,
        "timestamp_ms": 199999999999999,
        "context": {"b": True, "i": -9223372036854775808, "n": 0.1, "t": ""},
        "receipt": "eyJhbGciOiJIUzI1NiJ9.e30.x",
        "poster": "u",
        "accepted_at_us": 200000000000000000,
        "receipt_id": "00112233445566778899aabbccddeeff",
    },
}


def messages():
    with tempfile.TemporaryDirectory() as folder:
        assert protoc.main(["protoc", f"-I{ROOT}", f"--python_out={folder}", PROTO]) == 0
        path = pathlib.Path(folder) / PROTO.replace(".proto", "_pb2.py")
        spec = importlib.util.spec_from_file_location("rating_pb2", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def protobuf(pb, rating):
    message = pb.Rating()
    for name, value in rating.items():
        if name != "context":
            setattr(message, name, value)
    for key, value in rating["context"].items():
        # bool before int: Python's True is an int.
        kinds = [(bool, "boolean"), (int, "integer"), (float, "number"), (str, "text")]
        kind = next(name for python, name in kinds if isinstance(value, python))
        setattr(message.context[key], kind, value)
    return message.SerializeToString(deterministic=True)


def avro(schema, rating):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, rating)
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    fingerprint = fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")
    return b"\xc3\x01" + bytes.fromhex(fingerprint) + body.getvalue()


def main():
    pb = messages()
    schema = json.loads((ROOT / AVRO).read_text())
    parsed = fastavro.parse_schema(schema)
    vectors = []
    for name, rating in RATINGS.items():
        as_json = {("timestamp" if k == "timestamp_ms" else k): v for k, v in rating.items()}
        if rating["timestamp_ms"] < 100_000_000_000:
            as_json["timestamp"] = rating["timestamp_ms"] / 1000
        vectors.append(
            {
                "name": name,
                "json": as_json,
                "protobuf": protobuf(pb, rating).hex(),
                "avro": avro(parsed, rating).hex(),
            }
        )
    json.dump(vectors, sys.stdout, indent=2, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
