"""What documents say about the repository and must be true of it.

- Every test that SECURITY.md names exists, under that name, in that file.
- Every alert has a page in deploy/runbooks that bears its name, and a test in which it fires; no page is left over.
- Every relative link of the documents that deployment is about leads somewhere.
- Commands in the documents' `sh` blocks name subcommands and options that the real binary has.
- docs/getting-started.md can be followed: its `sh` blocks are run in order, over a real Redis, in a network of their own.
  Lines with `cargo` are left out: the build is there already.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

import queries
from processes import ROOT, binary, fail

DOCUMENTS = ["SECURITY.md", "docs/getting-started.md", "docs/beside-openclaw.md", "docs/operate.md",
             "docs/migrate-from-tower-governor.md", "docs/migrate-from-envoy.md", "deploy/helm/merit/README.md",
             *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "deploy" / "runbooks").glob("*.md"))]


def tests_exist():
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`([\w/.-]+\.rs)::(\w+)`", text)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "::" not in line and ".rs" in line]
    if rows or not named:
        fail(f"SECURITY.md: a row names no test: {rows}")
    for path, name in named:
        file = ROOT / path
        if not file.exists():
            fail(f"SECURITY.md names {path}, which is not there")
        source = file.read_text()
        found = re.search(rf"#\[(?:tokio::)?test\b[^\n]*\n(?:\s*#\[[^\n]*\n|\s*//[^\n]*\n)*\s*(?:async )?fn {name}\(", source)
        if not found and not re.search(rf"#\[test\]\s*\n\s*fn {name}\(", source):
            fail(f"SECURITY.md names {path}::{name}, and there is no such test")
    print(f"SECURITY.md: {len(named)} tests exist")


def claims_have_tests():
    """Each line of a table whose last column is `held by` names one."""
    held = False
    for number, line in enumerate((ROOT / "SECURITY.md").read_text().splitlines(), 1):
        if line.startswith("| claim | held by"):
            held = True
        elif not line.startswith("|"):
            held = False
        elif held and not line.startswith("| ---") and "::" not in line:
            fail(f"SECURITY.md:{number}: a claim without a test")


def alerts_have_pages_and_tests():
    tests = (ROOT / "deploy/prometheus/merit.rules.test.yml").read_text()
    pages = {path.name for path in (ROOT / "deploy/runbooks").glob("*.md")} - {"README.md"}
    for rule in queries.alerts():
        name, url = rule["alert"], rule["annotations"]["runbook_url"]
        page = url.rsplit("/", 1)[1]
        if page not in pages:
            fail(f"{name}: {url} leads to no page of deploy/runbooks")
        if not (ROOT / "deploy/runbooks" / page).read_text().startswith(f"# {name}\n"):
            fail(f"deploy/runbooks/{page} is not about {name}")
        pages.discard(page)
        if f'alertname="{name}"' not in tests:
            fail(f"{name}: no test in which it fires")
        if not {"summary", "description"} <= rule["annotations"].keys() or "severity" not in rule["labels"]:
            fail(f"{name}: needs a summary, a description and a severity")
    if pages:
        fail(f"deploy/runbooks: no alert leads to {', '.join(sorted(pages))}")
    print(f"{len(queries.alerts())} alerts have a page and a test")


def links_lead_somewhere():
    count = 0
    for name in DOCUMENTS:
        path = ROOT / name
        if not path.exists():
            fail(f"{name} is missing")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            count += 1
            if not (path.parent / target).exists():
                fail(f"{name}: {target} is not there")
    print(f"{count} links lead somewhere")


def commands_are_known():
    """`merit …` in a block of the documents: the subcommand and each option stand in its own help."""
    helps, seen = {}, 0
    for name in DOCUMENTS:
        for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.findall(r"(?:^|[|(;] *|\$\()\s*(?:\w+=\S+ )*merit ([a-z-]+)([^|;)#]*)", line):
                    sub, rest = command
                    if sub not in helps:
                        done = subprocess.run([binary("merit"), sub, "--help"], capture_output=True, text=True)
                        if done.returncode:
                            fail(f"{name}: merit has no `{sub}`: {line.strip()}")
                        helps[sub] = done.stdout
                    for option in re.findall(r"(?<=\s)--[a-z-]+", rest):
                        if option not in helps[sub] and not re.match(r" *(list|show|set|freeze|unfreeze|ban|reset)\b", rest):
                            fail(f"{name}: merit {sub} has no {option}: {line.strip()}")
                    seen += 1
    print(f"{seen} commands of the documents are known to the binary")


def getting_started_can_be_followed():
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/getting-started.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if "cargo" not in line and not line.startswith("PATH=")]
    # Between a process that is started and the first who asks it there is a moment, also for a reader.
    waits = "for n in $(seq 100); do curl -sf -o /dev/null http://127.0.0.1:9901/readyz && break; sleep 0.1; done"
    script = "\n".join(["set -euo pipefail", "ip link set lo up", "redis-server --save '' >/dev/null &", "sleep 0.5", *lines])
    script = script.replace("curl -s http://127.0.0.1:9901/readyz", f"{waits}\ncurl -s http://127.0.0.1:9901/readyz")
    script = script.replace("redis-cli HMGET", "sleep 2\nredis-cli HMGET")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("merit", "openclaw_api", "feed_server"):
            os.symlink(os.path.realpath(binary(name)), Path(folder) / name)
        # `deploy/openclaw.toml` is named relative to the repository; what merit writes must not land there.
        os.symlink(ROOT / "deploy", Path(folder) / "deploy")
        env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        done = subprocess.run(["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "bash", "-c", script],
                              cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    for what in ('"ready":true', "HTTP/1.1 200 OK", "ratelimit: ", " 429\n", "\n201\n"):
        if what.lower() not in done.stdout.lower():
            fail(f"docs/getting-started.md: following it shows no {what!r}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    capacity, rate = done.stdout.split()[-2:]
    if done.returncode or (capacity, rate) != ("20", "10"):
        fail(f"docs/getting-started.md: bob's limits are {capacity} {rate}:\n{done.stderr[-3000:]}")
    print(f"docs/getting-started.md was followed: bob has {rate} tokens a second")


if __name__ == "__main__":
    tests_exist()
    claims_have_tests()
    alerts_have_pages_and_tests()
    links_lead_somewhere()
    commands_are_known()
    getting_started_can_be_followed()
