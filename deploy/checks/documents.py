"""What documents say about the repository and must be true of it.

- Every test that SECURITY.md names exists, under that name, in that file.
- Every alert has a page in deploy/runbooks that bears its name, and a test in which it fires; no page is left over.
- prometheus.yml scrapes every process of compose.yaml that is merit's, each under its role.
- Nothing kills a process before the longest time that the source gives it to stop.
- Every relative link of the documents that deployment is about leads somewhere.
- .dockerignore keeps nothing from the image that a crate is built from.
- Commands of merit in the midst of a document's text name subcommands and options that the real binary has. Those in blocks are
  run, by commands.py.
"""

import re
import subprocess

from pathlib import Path

import yaml

import image
import queries
from chart import DRAIN_SECONDS, STOP_SECONDS
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


def of_compose():
    """Returns the services of compose.yaml that are merit's."""
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    return {name: service for name, service in services.items() if service.get("build", {}).get("target") == "merit"}


def the_scrape_names_roles():
    wanted = {}
    for name, service in of_compose().items():
        host = service.get("network_mode", f"service:{name}").removeprefix("service:")
        wanted[f"{host}:9901"] = service["command"][service["command"].index("--role") + 1]
    found = {}
    for job in yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]:
        for group in job["static_configs"]:
            found |= dict.fromkeys(group["targets"], group.get("labels", {}).get("component"))
    if found != wanted:
        fail(f"deploy/prometheus/prometheus.yml scrapes {found}, compose.yaml has {wanted}")
    print(f"{len(found)} targets are named by their role")


def a_process_has_time_to_stop():
    """Adds up the deadlines that a process waits for one after the other."""
    app = "".join(path.read_text() for path in sorted((ROOT / "sidecar/src/app").glob("*.rs")))
    export = (ROOT / "sidecar/src/trace/export.rs").read_text()

    def seconds(source, name):
        found = re.search(rf"^(?:pub\S* )?const {name}: Duration = Duration::from_(secs|millis)\((\d+)\);", source, re.M)
        if not found:
            fail(f"documents.py: the source has no {name} any more: add up anew what a process waits for when it stops")
        return int(found.group(2)) / (1 if found.group(1) == "secs" else 1000)

    drains = sum(seconds(app, name) for name in ("BACKLOG_DEADLINE", "BACKLOG_GRACE", "DRAIN_DEADLINE"))
    # By STOP_DEADLINE the tuner is told to end; TUNER_LAST twice: for the tuner, then for the log of decisions.
    before = drains + max(seconds(app, name) for name in ("HANDING_ON_DEADLINE", "LEASES_DEADLINE"))
    after = 2 * seconds(app, "TUNER_LAST") + seconds(export, "DEADLINE")
    worst = max(before, seconds(app, "STOP_DEADLINE")) + after
    if drains > DRAIN_SECONDS or worst > STOP_SECONDS:
        fail(f"a process drains for {drains} s and stops within {worst} s: chart.py says {DRAIN_SECONDS} and {STOP_SECONDS}, and so "
             "do the chart's _helpers.tpl, compose.yaml and docs/operate.md")
    for name, service in of_compose().items():
        grace = re.fullmatch(r"(\d+)s", service.get("stop_grace_period", "10s"))
        if int(grace.group(1)) < STOP_SECONDS:
            fail(f"deploy/compose.yaml: {name} is killed after {grace.group()}, and may take {STOP_SECONDS} s to stop")
    print(f"a process stops within {worst:.1f} s, and is killed after {STOP_SECONDS} s at the earliest")


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


def the_image_gets_every_source():
    folders = ["sidecar/src", "sidecar/schema", "middleware/src", "Cargo.toml", "Cargo.lock"]
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    sources = [Path(name) for name in listed if name]
    for path in sources:
        if any(image.ignored(part) for part in [path, *path.parents][:-1]):
            fail(f".dockerignore keeps {path} from the image")
    print(f"{len(sources)} sources reach the image")


def commands_are_known():
    """`merit …` in the midst of a document's text: the subcommand and each option stand in its own help. Blocks are run: commands.py."""
    helps, seen = {}, 0

    def help_of(words):
        if words not in helps:
            done = subprocess.run([binary("merit"), *words, "--help"], capture_output=True, text=True)
            helps[words] = None if done.returncode else done.stdout
        return helps[words]

    names = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in names:
        text = re.sub(r"^ *```.*?^ *```", "", (ROOT / name).read_text(), flags=re.M | re.S)
        for command in re.findall(r"`merit ([a-z][^`\n]*)`", text):
            sub, *rest = command.replace("\\|", "|").split()
            if help_of((sub,)) is None:
                fail(f"{name}: merit has no `{sub}`: merit {command}")
            actions = rest[0].split("|") if rest and re.fullmatch(r"[a-z|]+", rest[0]) and "\nCommands:\n" in help_of((sub,)) else []
            for action in actions:
                if help_of((sub, action)) is None:
                    fail(f"{name}: merit {sub} has no `{action}`: merit {command}")
            for option in re.findall(r"(?<![\w-])--[a-z-]+", " ".join(rest)):
                if not any(f" {option}" in help_of(words) for words in [(sub,), *((sub, action) for action in actions)]):
                    fail(f"{name}: merit {sub} has no {option}: merit {command}")
            seen += 1
    print(f"{seen} commands in the midst of text are known to the binary")


if __name__ == "__main__":
    tests_exist()
    claims_have_tests()
    alerts_have_pages_and_tests()
    the_scrape_names_roles()
    a_process_has_time_to_stop()
    links_lead_somewhere()
    the_image_gets_every_source()
    commands_are_known()
