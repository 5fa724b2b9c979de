"""What documents say about the repository and must be true of it.

- Every test that SECURITY.md names exists, under that name, in that file.
- Every alert has a page in deploy/runbooks that bears its name, and a test in which it fires; no page is left over.
- Every relative link of the documents that deployment is about leads somewhere.
- .dockerignore keeps nothing from the image that a crate is built from.
- Commands of merit in the midst of a document's text name subcommands and options that the real binary has. Those in blocks are
  run, by commands.py.
"""

import re
import subprocess

from pathlib import Path

import image
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
    links_lead_somewhere()
    the_image_gets_every_source()
    commands_are_known()
