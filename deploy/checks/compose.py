"""Runs the services of deploy/compose.yaml as processes, without a container engine, and proves the loop.

Every command, variable, file, user, volume, name and health check comes from compose.yaml. Each service has a network of
its own on a bridge (10.89.0.0/24), a root file system that is read-only where compose says so, and its own user, by
namespaces of the kernel: nothing of the machine is touched and nothing is left. Needs bubblewrap, iproute2, redis-server,
prometheus, Java, and the Kafka jars (`integration/kafka-local.sh jars`).

What differs from containers: images are not built or pulled. Redis, Prometheus and Java are this machine's; Kafka's
`server.properties` is made of its environment by the rule of the image's documentation; Grafana is not started;
`networks`, `ports` and `restart` are not looked at.

  deploy/run-without-containers             starts everything, and stops at Ctrl-C
  deploy/run-without-containers --prove     shows the loop, Prometheus' view of it, the dashboard's queries; then stops
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

import yaml

import queries
from processes import ROOT, Programs, ask, binary, fail, until

DEPLOY = ROOT / "deploy"
NETWORK = "10.89.0"
JARS = Path(os.environ.get("KAFKA_JARS", Path.home() / ".cache" / "kafka-jars"))
NOT_RUN = {"grafana": "no Grafana is installed here; its dashboard's queries are put to Prometheus below"}


def interpolated(value, env, path="compose.yaml"):
    """Fills in ${NAME}, ${NAME:-default} and ${NAME:?message} as compose does."""
    if isinstance(value, dict):
        return {key: interpolated(inner, env, f"{path}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, env, f"{path}[{n}]") for n, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(found):
        name, kind, rest = found.group(1), found.group(2), found.group(3)
        if env.get(name):
            return env[name]
        if kind == ":-":
            return rest
        fail(f"{path}: {name} is not set: {rest or 'add it to .env.example'}")

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", fill, value)


def read():
    """Returns compose.yaml with the environment of .env.example, its empty secrets filled in."""
    env = {"SERVICE_CAPACITY": "30"}
    for line in (DEPLOY / ".env.example").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            env.setdefault(name, value or secrets.token_urlsafe(36))
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return interpolated({"services": compose["services"], "volumes": compose["volumes"]}, env), env


def ordered(services):
    """Returns the names so that each comes after those that it depends on."""
    order = []

    def add(name, above):
        if name in above:
            fail(f"compose.yaml: {name} depends on itself")
        for other in services[name].get("depends_on", {}):
            add(other, above | {name})
        if name not in order:
            order.append(name)

    for name in services:
        add(name, frozenset())
    return order


def run(*command):
    subprocess.run([str(part) for part in command], check=True)


class Node:
    """The services on their bridge."""

    def __init__(self, folder, programs, change=lambda services, volumes: None):
        self.folder, self.programs = Path(folder), programs
        self.compose, self.env = read()
        self.services = self.compose["services"]
        change(self.services, self.compose["volumes"])
        self.started, self.home = {}, {}
        entry = re.search(r"^ENTRYPOINT (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M)
        self.entry = json.loads(entry.group(1))
        own = [name for name in self.services if "network_mode" not in self.services[name]]
        self.address = {name: f"{NETWORK}.{n}" for n, name in enumerate(own, 10)}
        hosts = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in self.address.items())
        (self.folder / "hosts").write_text(hosts)
        run("mount", "-t", "tmpfs", "tmpfs", "/run")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "merit0", "type", "bridge")
        run("ip", "address", "add", f"{NETWORK}.1/24", "dev", "merit0")
        run("ip", "link", "set", "merit0", "up")
        for n, name in enumerate(own, 10):
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"v{n}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"v{n}", "master", "merit0", "up")
            run("ip", "-n", name, "address", "add", f"{self.address[name]}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")

    def sandbox(self, name):
        """Returns what puts a command into the place of service `name`."""
        service = self.services[name]
        net = service.get("network_mode", f"service:{name}").removeprefix("service:")
        uid, _, gid = service.get("user", "0:0").partition(":")
        inside = ["nsenter", f"--net=/run/netns/{net}", "bwrap", "--die-with-parent", "--new-session", "--clearenv",
                  "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--uid", uid, "--gid", gid or uid,
                  "--hostname", service.get("hostname", name), "--tmpfs", "/", "--proc", "/proc", "--dev", "/dev"]
        for folder in ("/usr", "/etc/ssl", "/etc/ld.so.cache", "/etc/alternatives", "/etc/java-17-openjdk",
                       "/etc/java-21-openjdk"):
            inside += ["--ro-bind-try", folder, folder]
        inside += ["--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
                   "--ro-bind", str(self.folder / "hosts"), "/etc/hosts", "--tmpfs", "/usr/local/bin"]
        for program in ("merit", "openclaw_api", "feed_server"):
            inside += ["--ro-bind", os.path.realpath(binary(program)), f"/usr/local/bin/{program}"]
        if service["image"].startswith("apache/kafka"):
            inside += ["--ro-bind", str(JARS), str(JARS), "--ro-bind", str(self.kafka(name)), "/opt/kafka/bin"]
            inside += ["--tmpfs", "/tmp"]
        for volume in service.get("volumes", []):
            source, target, *options = volume.split(":")
            if source.startswith("."):
                inside += ["--ro-bind", str(DEPLOY / source), target]
                if options != ["ro"]:
                    fail(f"compose.yaml: {name}: {volume}: a file of the repository must be :ro")
            else:
                if source not in self.compose["volumes"]:
                    fail(f"compose.yaml: {name}: volume {source} is not declared")
                kept = self.folder / "volumes" / source
                kept.mkdir(parents=True, exist_ok=True)
                inside += ["--bind", str(kept), target]
        for target in service.get("tmpfs", []):
            inside += ["--tmpfs", target]
        if service.get("read_only"):
            inside += ["--remount-ro", "/", "--remount-ro", "/usr/local/bin"]
        inside += ["--chdir", "/", "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin"]
        for key, value in service.get("environment", {}).items():
            inside += ["--setenv", key, str(value)]
        return inside + ["--"]

    def kafka(self, name):
        """Makes what /opt/kafka/bin of the image has, of the jars; returns the folder."""
        folder = self.folder / "kafka-bin"
        if folder.exists():
            return folder
        folder.mkdir()
        versions = sorted(JARS.glob("*/.complete"))
        if not versions:
            fail("the Kafka jars are missing: integration/kafka-local.sh jars")
        # KAFKA_A_B is a.b; two underscores are one, three are a dash.
        env, lines = self.services[name]["environment"], []
        for key, value in env.items():
            if key.startswith("KAFKA_") and key not in ("KAFKA_HEAP_OPTS", "KAFKA_OPTS"):
                key = key[6:].lower().replace("___", "-").replace("__", "\0").replace("_", ".").replace("\0", "_")
                lines.append(f"{key}={value}")
        (folder / "server.properties").write_text("\n".join(lines) + "\n")
        java = f'exec java $KAFKA_HEAP_OPTS -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "{versions[-1].parent}/*"'
        scripts = {
            "kafka-broker-api-versions.sh": f'{java} org.apache.kafka.tools.BrokerApiVersionsCommand "$@"',
            "start": f'({java} kafka.tools.StorageTool format --ignore-formatted -t "$CLUSTER_ID" '
                     f'-c /opt/kafka/bin/server.properties) && {java} kafka.Kafka /opt/kafka/bin/server.properties',
        }
        for script, text in scripts.items():
            (folder / script).write_text(f"#!/bin/sh\n{text}\n")
            (folder / script).chmod(0o755)
        return folder

    def command(self, name):
        service = self.services[name]
        if service["image"].startswith("apache/kafka"):
            return ["/opt/kafka/bin/start"]
        if service["image"].startswith("prom/prometheus"):
            return ["/usr/bin/prometheus", *service["command"]]
        if service.get("build", {}).get("target") == "merit":
            return [*self.entry, *service["command"]]
        return service["command"]

    def start(self, name):
        self.started[name] = self.programs.start(name, [*self.sandbox(name), *self.command(name)])

    def healthy(self, name):
        test = self.services[name]["healthcheck"]["test"]
        if test[0] != "CMD":
            fail(f"compose.yaml: {name}: healthcheck must be CMD")
        return subprocess.run([*self.sandbox(name), *test[1:]], capture_output=True, timeout=60).returncode == 0

    def start_all(self):
        for name in ordered(self.services):
            if name in NOT_RUN:
                print(f"{name}: not run: {NOT_RUN[name]}", flush=True)
                continue
            for other, how in self.services[name].get("depends_on", {}).items():
                if how["condition"] == "service_healthy" and other not in NOT_RUN:
                    self.wait(other)
            self.start(name)
        for name, service in self.services.items():
            if name not in NOT_RUN and "healthcheck" in service:
                self.wait(name)
        print(f"healthy: {', '.join(self.started)}", flush=True)

    def wait(self, name):
        def looked():
            if self.started[name].poll() is not None:
                self.programs.check()
            return self.healthy(name)
        until(f"{name} is healthy", 90, looked)

    def merit(self, *arguments):
        """Runs merit beside the gateway, with its environment and configuration."""
        command = [*self.sandbox("gateway"), *self.entry, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            fail(f"merit {' '.join(arguments)}: {done.stderr}")
        return done.stdout.strip()

    def token(self, *arguments):
        token = self.merit("token", "--config", "/etc/merit/merit.toml", *arguments)
        return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def redis(self, *arguments):
        done = subprocess.run([*self.sandbox("redis"), "redis-cli", *arguments], capture_output=True, text=True)
        return done.stdout.split()


def prove_the_loop(node):
    """A rating in, limits moved, 429s that differ."""
    gateway = f"http://{node.address['gateway']}:8080"
    ingest = f"http://{node.address['ingest']}:8081"
    collector = node.token("--sub", "collector", "--scope", "ratings:write:any")
    agents = {"good": 5, "bad": 1}
    tokens = {agent: node.token("--agent", agent, "--sub", f"user-of-{agent}", "--scope", "ratings:write")
              for agent in agents}

    def ask_often(agent, times):
        return [ask(f"{gateway}/v1/items/1", headers=tokens[agent])[0] for _ in range(times)]

    before = {agent: ask_often(agent, 5) for agent in agents}
    if any(set(answers) != {200} for answers in before.values()):
        fail(f"fresh agents are refused: {before}")

    # One rating through the API that is there already, teed by the gateway: the other agent is rated.
    status, text = ask(f"{gateway}/v1/rating", headers=tokens["good"], method="POST",
                       body=b'{"agent_id":"bad","user_id":"user-of-good","score":1}')
    if (status, json.loads(text)) != (201, {"score": 1.0}):
        fail(f"a rating through the gateway was answered {status}: {text}")
    until("a teed rating moves its agent", 15, lambda: node.redis("HGET", "tb:bad", "refill_rate"))

    # Then raters say what they think, while both agents ask for more than there is.
    def rates():
        return {agent: float((node.redis("HGET", f"tb:{agent}", "refill_rate") or ["20"])[0]) for agent in agents}

    for round_ in range(20):
        batch = [{"agent_id": agent, "user_id": f"user-{n}", "score": score, "id": f"{round_}-{agent}-{n}-{secrets.token_hex(4)}"}
                 for agent, score in agents.items() for n in range(10)]
        status, text = ask(f"{ingest}/v1/ratings", headers=collector, method="POST", body=json.dumps(batch).encode())
        if status not in (200, 202, 207):
            fail(f"ingest answered {status}: {text}")
        for agent in agents:
            ask_often(agent, 40)
        if rates()["bad"] * 2 < rates()["good"]:
            break
    found = rates()
    if not found["bad"] * 2 < found["good"]:
        fail(f"ratings moved nothing apart: {found}")
    for agent in agents:
        ask_often(agent, 150)  # what they have saved
    refused = dict.fromkeys(agents, 0)
    for _ in range(100):  # each asks 20 times a second
        for agent in agents:
            refused[agent] += ask_often(agent, 1).count(429)
        time.sleep(0.05)
    if not refused["bad"] > refused["good"] + 20:
        fail(f"the worse agent is not refused more often: {refused} at {found}")
    print(f"ratings moved limits: {found} tokens a second; of 100 requests refused: {refused}", flush=True)
    fed = node.redis("--scan", "--pattern", "tb:molt-agent-*")
    if not fed:
        fail("the sample feed has moved nobody")
    print(f"the sample feed has moved {len(fed)} agents", flush=True)


def prove_the_view(node):
    """Prometheus scrapes everything, and evaluates every rule and every query of the dashboard."""
    prometheus = f"http://{node.address['prometheus']}:9090"

    def api(path):
        status, text = ask(f"{prometheus}/api/v1/{path}", timeout=30)
        if status != 200:
            fail(f"Prometheus answered {status} to {path}: {text}")
        return json.loads(text)["data"]

    def targets():
        active = api("targets?state=active")["activeTargets"]
        return active and all(target["health"] == "up" for target in active) and active
    print(f"{len(until('all targets are up', 30, targets))} targets are scraped", flush=True)

    def evaluated():
        groups = api("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        bad = [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] == "err"]
        if bad:
            fail("rules that do not evaluate:\n  " + "\n  ".join(bad))
        return all(rule["health"] == "ok" for rule in rules) and rules
    rules = until("all rules are evaluated", 60, evaluated)
    firing = [rule["name"] for rule in rules if rule.get("state") == "firing"]
    print(f"{len(rules)} rules evaluate; firing: {', '.join(firing) or 'none'}", flush=True)
    if set(firing) & {"MeritDown", "MeritRoleGone", "MeritLoopStalled", "MeritRedisOutagePolicyInForce", "MeritPartitionsStopped"}:
        fail(f"a healthy node alarms: {firing}")

    asked = list(queries.of_dashboard())
    empty, told = [], 0

    def shown():
        nonlocal empty, told
        exported = set(api("label/__name__/values"))
        empty, told = [], 0
        for title, query in asked:
            data = api("query?" + urllib.parse.urlencode({"query": queries.filled_in(query)}))["result"]
            told += bool(data)
            # What is only watched, and what stops for an operator, has nothing to show on a healthy node.
            there = queries.names(query) <= exported and "> 0" not in query
            if not data and there:
                empty.append(f"{title}: {query}")
        return not empty

    deadline = time.monotonic() + 60  # a rate needs two scrapes
    while not shown() and time.monotonic() < deadline:
        time.sleep(2)
    if empty:
        fail("queries of the dashboard that find nothing, though their metrics are there:\n  " + "\n  ".join(empty))
    print(f"{len(asked)} queries of the dashboard evaluate, {told} have something to show", flush=True)


def inside():
    """Goes on in a network, with users, mounts and processes of our own: all of it ends with this program."""
    if "MERIT_INSIDE" in os.environ:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        return
    for tool in ("bwrap", "ip", "nsenter", "unshare", "redis-server", "redis-cli", "prometheus", "java"):
        if not shutil.which(tool):
            fail(f"{tool} is missing: apt-get install bubblewrap iproute2 util-linux redis-server prometheus default-jre-headless")
    for name in ("merit", "openclaw_api", "feed_server"):
        binary(name)
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL",
               "--mount-proc", sys.executable, *sys.argv]
    os.execvpe(unshare[0], unshare, {**os.environ, "MERIT_INSIDE": "1"})


def show_logs(folder):
    print("the logs' ends:", file=sys.stderr)
    for log in sorted(Path(folder).glob("*.log")):
        text = log.read_text(errors="replace")
        if text.strip():
            print(f"--- {log.name}\n{text[-1500:]}", file=sys.stderr)


def main():
    inside()
    with tempfile.TemporaryDirectory(prefix="merit-compose-") as folder, Programs(folder) as programs:
        try:
            node = Node(folder, programs)
            node.start_all()
            if "--prove" in sys.argv:
                prove_the_loop(node)
                prove_the_view(node)
                programs.check()
                return
            print("gateway: " + node.address["gateway"] + ":8080, inside this network only; logs in " + folder, flush=True)
            for agent in ("good", "bad"):
                print(f"token of {agent}: {node.token('--agent', agent)['Authorization']}", flush=True)
            signal.pause()
        except KeyboardInterrupt:
            pass
        except SystemExit as end:
            if end.code:
                show_logs(folder)
            raise


if __name__ == "__main__":
    main()
