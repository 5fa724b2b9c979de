"""Holds .github/workflows to what SECURITY.md says of them: least rights, pinned actions, nobody's words in a shell."""

import re

import yaml

from processes import ROOT, fail


def main():
    count = 0
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        text = path.read_text()
        workflow = yaml.safe_load(text)
        if workflow.get("permissions") != {}:
            fail(f"{path.name}: permissions of the whole must be {{}}")
        if re.search(r"pull_request_target|workflow_run", text):
            fail(f"{path.name}: runs strangers' code with the repository's rights")
        for name, job in workflow["jobs"].items():
            if "permissions" not in job or "timeout-minutes" not in job:
                fail(f"{path.name}: {name} needs permissions and timeout-minutes")
            for step in job["steps"]:
                uses, run = step.get("uses"), step.get("run", "")
                if uses and not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", uses):
                    fail(f"{path.name}: {name}: {uses} is not pinned to a commit")
                if "${{" in run:
                    fail(f"{path.name}: {name}: an expression in a script: pass it by `env`")
                if uses and uses.startswith("actions/checkout@") and step.get("with", {}).get("persist-credentials") is not False:
                    fail(f"{path.name}: {name}: checkout keeps the token: persist-credentials: false")
                for script in re.findall(r"(?:^|\s)((?:\.ci|deploy|integration)/[\w.-]+)(?=\s|$)", run):
                    if not (ROOT / script).exists() and not script.endswith(".env"):
                        fail(f"{path.name}: {name}: {script} is not there")
                count += 1
    print(f"{count} steps of the workflows are pinned and have the least rights")


main()
