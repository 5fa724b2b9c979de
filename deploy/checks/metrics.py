"""Proves that every metric and label which the dashboard and the rules name is exported by the real binary.

Starts `merit` over a real Redis with deploy/openclaw.toml, and makes everything happen that is counted: refused
ratings, dead letters, drift, a damaged checkpoint, a feed that speaks nonsense and hangs up, a clock that is set, a
Redis that is restarted empty, a partition that stops, a key set by URL. Needs redis-server, openssl, libfaketime.
"""

import asyncio
import base64
import glob
import hashlib
import http.server
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import queries
from processes import ROOT, Programs, ask, binary, fail, free_port, until

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ", re.M)


def exposed(texts):
    """Returns {metric: [labels of each series]}."""
    found = {}
    for text in texts:
        for name, labels in SAMPLE.findall(text):
            found.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))
    return found


def missing(found):
    """Returns what queries name and nobody exports."""
    gaps = []
    for where, query in [*queries.of_dashboard(), *queries.of_rules()]:
        for name in sorted(queries.names(query)):
            if name not in found:
                gaps.append(f"{where}: {name} is not exported")
        for name, label, operator, value in queries.matchers(query):
            series = found.get(name, [])
            if series and not any(label in labels for labels in series):
                gaps.append(f"{where}: {name} has no label {label}")
            elif series and operator in ("=", "=~"):
                seen = {labels.get(label, "") for labels in series}
                # Of a choice each name must be one that the source knows: a few need faults nobody can make at will.
                for choice in value.split("|"):
                    if not any(re.fullmatch(choice, one) for one in seen) and not in_source(choice):
                        gaps.append(f"{where}: {name}: nothing has {label}={choice!r}; there are {sorted(seen)}")
        for name, label in queries.groupings(query):
            series = found.get(name, [])
            if series and label not in ("le",) and not any(label in labels for labels in series):
                gaps.append(f"{where}: {name} has no label {label}")
    return gaps


def in_source(value):
    """Returns whether a string of the source begins as `value` does, up to its first wildcard."""
    begin = re.split(r"[.*+?]", value)[0]
    return subprocess.run(["grep", "-rqF", f'"{begin}', ROOT / "sidecar/src", ROOT / "middleware/src"]).returncode == 0


def jwks(folder):
    """Makes a key pair and returns its set."""
    pem = folder / "ec.pem"
    subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", pem], check=True)
    der = subprocess.run(["openssl", "ec", "-in", pem, "-pubout", "-outform", "DER"], check=True, capture_output=True)
    point = der.stdout[-64:]
    text = lambda part: base64.urlsafe_b64encode(part).rstrip(b"=").decode()
    return json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "k1",
                                 "x": text(point[:32]), "y": text(point[32:])}]})


def servers(key_set):
    """Starts the issuer with the API in one, and the feed; returns their ports."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            if self.path == "/hang-up":
                self.close_connection = True
                return
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = (key_set if self.path == "/jwks.json" else '{"ok":true}').encode()
            self.send_response(201 if self.command == "POST" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=api.serve_forever, daemon=True).start()

    async def feed(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = re.search(r"Sec-WebSocket-Key: *(\S+)", head, re.I).group(1)
        magic = key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(magic.encode()).digest()).decode()
        writer.write((f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      f"Sec-WebSocket-Accept: {accept}\r\n\r\n").encode())
        rating = json.dumps({"agent_id": "fed", "user_id": "f1", "score": 4, "id": secrets.token_hex(8)})
        for text in (rating, "this is no rating"):
            data = text.encode()
            size = bytes([len(data)]) if len(data) < 126 else bytes([126]) + len(data).to_bytes(2, "big")
            writer.write(b"\x81" + size + data)
        await writer.drain()
        await asyncio.sleep(1)
        writer.close()

    loop = asyncio.new_event_loop()
    feeding = loop.run_until_complete(asyncio.start_server(feed, "127.0.0.1", 0))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return api.server_address[1], feeding.sockets[0].getsockname()[1]


def main():
    faketime = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not faketime:
        fail("libfaketime is missing: apt-get install libfaketime")
    merit = binary("merit")
    with tempfile.TemporaryDirectory(prefix="merit-metrics-") as name, Programs(name) as programs:
        folder = Path(name)
        api, feed = servers(jwks(folder))
        redis, gateway, ingest, metrics, admin, second, second_metrics = (free_port() for _ in range(7))
        clock = folder / "clock"
        clock.write_text("+0")
        (folder / "scores").mkdir()
        (folder / "model.chkpt").write_bytes(b"this is no checkpoint")
        (folder / "keys.toml").write_text(f"""
[identity]
algorithms = ["ES256"]
jwks_url = "http://127.0.0.1:{api}/jwks.json"
issuer = "https://id.example.com/"
audience = "openclaw"
[store]
kind = "redis"
url = "redis://127.0.0.1:{redis}"
[[bucket]]
bucket_name = "b"
refill_rate = 1
capacity = 1
[gateway]
listen = "127.0.0.1:{second}"
upstream = "http://127.0.0.1:{api}"
[metrics]
listen = "127.0.0.1:{second_metrics}"
""")
        config = str(ROOT / "deploy" / "openclaw.toml")
        env = {
            "MERIT_JWT_SECRET": secrets.token_urlsafe(48), "MERIT_ADMIN_TOKEN": secrets.token_urlsafe(24),
            "MERIT_RECEIPT_KEYS": "one:" + secrets.token_urlsafe(48),
            "MERIT__STORE__URL": f"redis://127.0.0.1:{redis}",
            "MERIT__FEED__URL": f"ws://127.0.0.1:{feed}/ratings",
            "MERIT__FEED__RESUME_QUERY": "after", "MERIT__FEED__SPOOL_DIR": str(folder / "spool"),
            "MERIT__GATEWAY__LISTEN": f"127.0.0.1:{gateway}", "MERIT__GATEWAY__UPSTREAM": f"http://127.0.0.1:{api}",
            "MERIT__INGEST__LISTEN": f"127.0.0.1:{ingest}", "MERIT__METRICS__LISTEN": f"127.0.0.1:{metrics}",
            "MERIT__ADMIN__LISTEN": f"127.0.0.1:{admin}",
            "MERIT__RATINGS__RECEIPTS": "prefer", "MERIT__RATINGS__RECEIPT_KEYS_ENV": "MERIT_RECEIPT_KEYS",
            "MERIT__POLICY__MODE": "live", "MERIT__POLICY__CHECKPOINT": str(folder / "model.chkpt"),
            "MERIT__PERSONALIZE__CHECKPOINT": str(folder / "scores" / "model"), "MERIT__PERSONALIZE__CHECKPOINT_EVERY": "1s",
        }
        faked = {"LD_PRELOAD": faketime[0], "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
                 "DONT_FAKE_MONOTONIC": "1"}

        def start_redis():
            program = programs.start("redis", ["redis-server", "--port", str(redis), "--save", "", "--bind", "127.0.0.1"])
            until("redis", 10, lambda: subprocess.run(["redis-cli", "-p", str(redis), "ping"],
                                                      capture_output=True).stdout == b"PONG\n")
            return program

        def token(*arguments):
            made = subprocess.run([merit, "token", "--config", config, *arguments], env={**os.environ, **env},
                                  capture_output=True, text=True, check=True)
            return {"Authorization": f"Bearer {made.stdout.strip()}", "Content-Type": "application/json"}

        def redis_cli(*arguments):
            subprocess.run(["redis-cli", "-p", str(redis), *arguments], check=True, capture_output=True)

        server = start_redis()
        programs.start("merit", [merit, "run", "--config", config], {**env, **faked})
        programs.start("keys", [merit, "run", "--config", str(folder / "keys.toml"), "--role", "gateway"])
        for port in (metrics, second_metrics):
            until("merit is ready", 30, lambda: ask(f"http://127.0.0.1:{port}/readyz")[0] == 200)

        agent, rater = token("--agent", "a1", "--sub", "u1", "--scope", "ratings:write"), token("--sub", "c", "--scope", "ratings:write:any")

        # A viewer listens, and hears of what is rated from now on.
        import socket
        stream = socket.create_connection(("127.0.0.1", gateway))
        viewer = token("--agent", "v1", "--sub", "u1", "--scope", "ratings:read")["Authorization"]
        stream.sendall(f"GET /events/personalized-rating?user_id=u1&item_id=i1 HTTP/1.1\r\nHost: m\r\nAuthorization: {viewer}\r\n\r\n".encode())
        time.sleep(0.5)
        ask(f"http://127.0.0.1:{gateway}/events/personalized-rating", headers={"Authorization": "Bearer x"})

        for _ in range(60):
            ask(f"http://127.0.0.1:{gateway}/v1/items/1", headers=agent)
        ask(f"http://127.0.0.1:{gateway}/v1/items/1")
        status, text = ask(f"http://127.0.0.1:{gateway}/v1/rating", headers=agent, method="POST",
                           body=b'{"agent_id":"a2","user_id":"u1","score":5}')
        if status not in (201, 429):
            fail(f"the API behind the gateway answered {status}: {text}")
        time.sleep(2)
        ask(f"http://127.0.0.1:{gateway}/v1/rating", headers=agent, method="POST",
            body=b'{"agent_id":"a2","user_id":"u1","score":5}')
        ask(f"http://127.0.0.1:{ingest}/v1/rating", headers=rater, method="POST", body=b'{"agent_id":"a1","user_id":"u1","score":9}')
        for score in (5, 5, 5, 1, 1, 1, 1, 1, 1):
            batch = [{"agent_id": "falls", "user_id": f"u{n}", "item_id": "i1", "score": score, "id": secrets.token_hex(8)} for n in range(30)]
            status, text = ask(f"http://127.0.0.1:{ingest}/v1/ratings", headers=rater, method="POST",
                               body=json.dumps(batch).encode())
            if status not in (200, 202, 207):
                fail(f"ingest answered {status}: {text}")
            time.sleep(1.1)
        redis_cli("XADD", "openclaw.ratings:{0}", "*", "rating", "this is no rating")
        ask(f"http://127.0.0.1:{gateway}/hang-up", headers=agent)
        (folder / "scores").rename(folder / "moved")
        time.sleep(1)
        clock.write_text("+30")
        time.sleep(2)

        # Redis goes, and comes back empty.
        programs.stop(server, signal.SIGKILL)
        for _ in range(40):
            ask(f"http://127.0.0.1:{gateway}/v1/items/1", headers=agent)
        start_redis()
        time.sleep(2)
        redis_cli("XADD", "openclaw.ratings:{1}", "1700000000000000000-0", "rating", "{}")

        gaps = []

        def whole():
            nonlocal gaps
            for _ in range(5):
                ask(f"http://127.0.0.1:{gateway}/v1/items/1", headers=agent)
            texts = [ask(f"http://127.0.0.1:{port}/metrics")[1] for port in (metrics, second_metrics)]
            gaps = missing(exposed(texts))
            return not gaps
        deadline = time.monotonic() + 60
        while not whole() and time.monotonic() < deadline:
            time.sleep(1)
        programs.check()
        if gaps:
            if len(sys.argv) > 1:
                for log in folder.glob("*.log"):
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")
            fail("what dashboard or rules name and the binary does not export:\n  " + "\n  ".join(gaps))
        total = {name for _, query in [*queries.of_dashboard(), *queries.of_rules()] for name in queries.names(query)}
        print(f"{len(total)} names of dashboard and rules are exported, with the labels that are asked for")


if __name__ == "__main__":
    main()
