"""Replaces two gateways and two tuners one by one while requests and ratings flow: not one request fails, and not one rating
is lost or counted twice.

The services are those of compose.yaml (see compose.py), the gateway and the tuner twice. A gateway is taken from its callers a
second before it is told to stop, as an endpoint of a Service is (the chart: `preStopSeconds`): a connection that it has not
accepted by then would be reset. Requests take longer than that second, so some are on their way when it stops. The policy is `additive`, under which an
agent's rate is 20 + 0.1 · Σ(score − 3): what was acknowledged can be added up here and compared, number by number.
"""

import copy
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time

from compose import Node, inside, show_logs
from processes import Programs, ask, fail, until

AGENTS = 20
CALLERS = 40
PAUSE_SECONDS = 1.0
ALPHA = 0.1


def twice(services, volumes):
    """Puts a second gateway and a second tuner beside the first, each with a volume of its own."""
    services["tuner"]["environment"]["MERIT__POLICY__KIND"] = "additive"
    services["tuner"]["environment"]["MERIT__POLICY__ALPHA"] = str(ALPHA)
    services["gateway"]["environment"]["MERIT__STORE__EXPECTED_NODES"] = "2"
    # Long enough that requests are on their way when a gateway stops.
    services["openclaw-api"]["command"] += ["--delay-ms", "1500"]
    for name in ("gateway", "tuner"):
        second = copy.deepcopy(services[name])
        second["hostname"] = f"{name}-2"
        second["volumes"] = [volume.replace(f"{name}:/", f"{name}-2:/") for volume in second["volumes"]]
        volumes[f"{name}-2"] = {}
        services[f"{name}-2"] = second
    for name in ("feed", "feed-sample", "prometheus", "grafana"):  # nothing to do here
        del services[name]


class Load:
    """Requests through the gateways that are in service, and ratings; what was answered, by its status."""

    def __init__(self, node):
        self.node, self.lock, self.ended = node, threading.Lock(), False
        self.serving = ["gateway", "gateway-2"]
        self.in_flight = dict.fromkeys(self.serving, 0)
        self.answers, self.rated, self.posts = {}, {}, 0
        self.tokens = [node.token("--agent", f"caller-{n}", "--sub", "u1", "--scope", "ratings:write:any") for n in range(4)]
        self.collector = node.token("--sub", "collector", "--scope", "ratings:write:any")
        self.threads = [threading.Thread(target=self.requests, daemon=True) for _ in range(CALLERS)]
        self.threads += [threading.Thread(target=self.ratings, args=(seed,), daemon=True) for seed in range(2)]
        self.threads += [threading.Thread(target=self.teed, args=(seed,), daemon=True) for seed in range(4)]

    def through_a_gateway(self, path, **how):
        with self.lock:
            gateway, token = random.choice(self.serving), random.choice(self.tokens)
            self.in_flight[gateway] += 1
        status, text = ask(f"http://{self.node.address[gateway]}:8080{path}", headers=token, timeout=20, **how)
        with self.lock:
            self.in_flight[gateway] -= 1
            self.answers[status] = self.answers.get(status, 0) + 1
            if status not in (200, 201, 429):
                self.answers.setdefault("first fault", f"{gateway}: {status} {text}")
        return status

    def requests(self):
        time.sleep(random.uniform(0, 1.5))  # not all at once, for ever
        while not self.ended:
            self.through_a_gateway("/v1/items/1")

    def teed(self, seed):
        """Ratings through the gateway: the API takes them, and so does Merit, under an id."""
        number = 0
        while not self.ended:
            number += 1
            agent, score = f"teed-{number % AGENTS}", number % 5 + 1
            body = {"agent_id": agent, "user_id": "u1", "score": score, "id": f"teed-{seed}-{number}"}
            status = self.through_a_gateway("/v1/rating", method="POST", body=json.dumps(body).encode())
            if status == 201:
                with self.lock:
                    self.rated[agent] = self.rated.get(agent, 0) + score - 3
            time.sleep(0.05)

    def ratings(self, seed):
        chance, number = random.Random(seed), 0
        ingest = f"http://{self.node.address['ingest']}:8081/v1/ratings"
        while not self.ended:
            batch = []
            for _ in range(20):
                number += 1
                batch.append({"agent_id": f"rated-{chance.randrange(AGENTS)}", "user_id": f"u{number}", "score": chance.randint(1, 5),
                              "id": f"{seed}-{number}"})
            status, text = ask(ingest, headers=self.collector, method="POST", body=json.dumps(batch).encode(), timeout=20)
            with self.lock:
                self.posts += 1
                if status != 202:
                    self.answers.setdefault("first fault", f"ingest: {status} {text}")
                for rating in batch if status == 202 else ():
                    self.rated[rating["agent_id"]] = self.rated.get(rating["agent_id"], 0) + rating["score"] - 3
            time.sleep(0.05)

    def take_out(self, gateway):
        with self.lock:
            self.serving.remove(gateway)

    def put_in(self, gateway):
        with self.lock:
            self.serving.append(gateway)


def replace(node, name):
    program = node.started[name]
    # The sandbox's own process ends with what runs inside it: the signal is for that.
    inner = until(f"{name}'s process", 5, lambda: inner_process(program.pid))
    os.kill(inner, signal.SIGTERM)
    program.wait(30)
    node.programs.running = [(other, p) for other, p in node.programs.running if p is not program]
    node.start(name)
    node.wait(name)


def inner_process(pid):
    """Returns the youngest descendant of `pid`, which is the service itself."""
    while True:
        try:
            children = open(f"/proc/{pid}/task/{pid}/children").read().split()
        except FileNotFoundError:
            return None
        if not children:
            return pid
        pid = int(children[-1])


def main():
    inside()
    with tempfile.TemporaryDirectory(prefix="merit-upgrade-") as folder, Programs(folder) as programs:
        try:
            node = Node(folder, programs, twice)
            node.start_all()
            # What the ratings are added to must not be cut off at a bound, nor the caller refused all the time.
            load = Load(node)
            for thread in load.threads:
                thread.start()
            time.sleep(2)
            for name in ("gateway", "gateway-2"):
                load.take_out(name)
                time.sleep(PAUSE_SECONDS)
                # Requests that were sent before are still on their way: they are what must not fail.
                busy = load.in_flight[name]
                replace(node, name)
                load.put_in(name)
                if not busy:
                    fail(f"{name} had nothing to do when it was replaced: nothing is shown")
                print(f"{name} was replaced with {busy} requests on their way", flush=True)
                time.sleep(1)
            for name in ("tuner", "tuner-2"):
                before = load.posts
                replace(node, name)
                print(f"{name} was replaced while {20 * (load.posts - before)} ratings came", flush=True)
                time.sleep(1)
            load.ended = True
            for thread in load.threads:
                thread.join()
            if "first fault" in load.answers:
                fail(f"a request failed: {load.answers}")

            def told():
                rates = {agent: node.redis("HGET", f"tb:{agent}", "refill_rate") for agent in load.rated}
                wrong = {agent: (rate, 20 + ALPHA * load.rated[agent]) for agent, rate in rates.items()
                         if not rate or abs(float(rate[0]) - (20 + ALPHA * load.rated[agent])) > 1e-6}
                told.wrong = wrong
                return not wrong
            deadline = time.monotonic() + 30
            while not told() and time.monotonic() < deadline:
                time.sleep(1)
            if told.wrong:
                fail(f"rates that are not what was acknowledged (found, expected): {told.wrong}")
            print(f"answers: {load.answers}; {20 * load.posts} ratings posted to ingest: "
                  f"{len(load.rated)} agents have exactly the rate of what was acknowledged", flush=True)
            programs.check()
        except SystemExit as end:
            if end.code:
                show_logs(folder)
            raise


if __name__ == "__main__":
    sys.exit(main())
