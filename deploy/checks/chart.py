"""Holds the chart deploy/helm/merit to what a cluster and the real binary take.

Renders every values file of ci/ with a real helm; checks each object against the schemas of Kubernetes and of the operators'
own definitions; pods against the restricted level of Pod Security; merit.toml against `merit check-config` of every role
that gets it; and every file of ci/bad must be refused for the reason that it names.

  chart.py check HELM CRDS     all of it
  chart.py readme              prints the README with the table of the values as they are
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

from processes import ROOT, binary, fail

CHART = ROOT / "deploy" / "helm" / "merit"
VERSIONS = ("1.30", "1.33", "1.37")
RLS_PORT = 8084
README = CHART / "README.md"
BEGIN, END = "<!-- values: written by deploy/check --write -->", "<!-- end of values -->"


# YAML 1.1 gives a lone `=` a meaning of its own; the operator's definitions have one in a list.
yaml.SafeLoader.add_constructor("tag:yaml.org,2002:value", yaml.SafeLoader.construct_yaml_str)


def rows():
    """Yields (path, default, description) of the values, and demands that each has a description."""
    text = (CHART / "values.yaml").read_text()
    values, path, comment, covered = yaml.safe_load(text), [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = [stripped[5:]]
        elif stripped.startswith("#"):
            comment = [*comment, stripped[1:].strip()] if comment else []
        elif not stripped:
            comment = []
        elif (found := re.match(r"( *)(\w+):", line)) and not stripped.startswith("- "):
            depth = len(found.group(1)) // 2
            path = [*path[:depth], found.group(2)]
            here = ".".join(path)
            if any(here.startswith(above + ".") for above in covered):
                continue
            value = values
            for key in path:
                value = value[key]
            if comment:
                covered.append(here)
                default = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
                yield here, default, " ".join(comment).replace("|", "\\|")
            elif not isinstance(value, dict):
                fail(f"{CHART}/values.yaml:{number}: {here} has no description: add a line `# -- …` above it")
            comment = []


def readme():
    """Returns the README as it must be."""
    table = ["| value | default | |", "| --- | --- | --- |"]
    table += [f"| `{path}` | `{default}` | {text} |" for path, default, text in rows()]
    before, rest = README.read_text().split(BEGIN)
    return f"{before}{BEGIN}\n\n" + "\n".join(table) + f"\n\n{END}{rest.split(END)[1]}"


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def render(helm, values):
    code, out, error = run(helm, "template", "release", CHART, "--namespace", "agents", "-f", values)
    if code:
        fail(f"{values.name}: helm template: {error}")
    return [document for document in yaml.safe_load_all(out) if document]


def definitions(folder):
    """Returns {(apiVersion, kind): schema} of custom resources."""
    found = {}
    used = [file for file in Path(folder).glob("*.yaml")
            if re.search(r"_(podmonitors|servicemonitors|prometheusrules|httproutes)\.yaml$", file.name)]
    for file in used:
        for document in yaml.safe_load_all(file.read_text()):
            if document and document["kind"] == "CustomResourceDefinition":
                spec = document["spec"]
                for version in spec["versions"]:
                    schema = closed(version["schema"]["openAPIV3Schema"])
                    found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def closed(schema, top=True):
    """Returns the schema so that unknown fields are faults, as the API server's strict mode has it."""
    if isinstance(schema, list):
        return [closed(part, False) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value, False) if key != "properties" else {name: closed(inner, False) for name, inner in value.items()}
              for key, value in schema.items()}
    if top:
        schema["properties"]["metadata"] = {"type": "object"}
    if "properties" in schema and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    if schema.pop("nullable", False) and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    return schema


def validate(where, document, custom):
    kind = document["apiVersion"], document["kind"]
    if kind in custom:
        faults = [f"{'/'.join(map(str, error.path))}: {error.message}"
                  for error in jsonschema.Draft202012Validator(custom[kind]).iter_errors(document)]
        if faults:
            fail(f"{where}: {'/'.join(kind)}: " + "; ".join(faults))
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            fail(f"{where}: {'/'.join(kind)} in Kubernetes {version}: {error}")


def restricted(where, pod):
    """Demands what the restricted level of Pod Security does."""
    faults = []
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            faults.append(f"{key} is set")
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= {"configMap", "emptyDir", "projected", "persistentVolumeClaim", "secret", "downwardAPI"}:
            faults.append(f"volume {volume['name']} is {kinds}")
    own = pod.get("securityContext", {})
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        security = {**own, **container.get("securityContext", {})}
        wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True}
        for key, value in wanted.items():
            if security.get(key) is not value:
                faults.append(f"{container['name']}: {key} must be {value}")
        if security.get("capabilities", {}) != {"drop": ["ALL"]}:
            faults.append(f"{container['name']}: capabilities must be dropped")
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            faults.append(f"{container['name']}: seccompProfile must be RuntimeDefault")
        if security.get("runAsUser") == 0:
            faults.append(f"{container['name']}: runs as root")
    if faults:
        fail(f"{where}: not restricted:\n  " + "\n  ".join(faults))


def pods(documents):
    """Yields (name, pod's spec) of everything that runs, the patch of `inject` put into somebody's Deployment too."""
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] == "Deployment":
            yield name, document["spec"]["template"]["spec"]
        elif document["kind"] == "Pod":
            yield name, document["spec"]
        elif "patch.yaml" in document.get("data", {}):
            patch = yaml.safe_load(document["data"]["patch.yaml"])["spec"]["template"]["spec"]
            yield name, patched(patch)


def patched(patch):
    """Returns a pod of somebody else's with the patch put in as a strategic merge does: lists by their names."""
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}
    api = {"name": "api", "image": "registry.example.com/api:1", "securityContext": security}
    return {**patch, "containers": [api, *patch["containers"]], "volumes": [{"name": "own", "emptyDir": {}}, *patch["volumes"]]}


def check_config(where, documents, folder):
    """Puts the rendered merit.toml to the real binary, for each role with its variables and files."""
    toml = next(document["data"]["merit.toml"] for document in documents if "merit.toml" in document.get("data", {}))
    files = folder / "files"
    if not files.exists():
        files.mkdir()
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=test",
                        "-keyout", folder / "key.pem", "-out", files / "store-ca.pem"], check=True, capture_output=True)
        shutil.copy(files / "store-ca.pem", files / "bus-ca.pem")
        (files / "agent-keys").write_text(f"agent-1:{hashlib.sha256(b'the key of agent 1').hexdigest()}\n")
    (folder / "merit.toml").write_text(toml.replace("/etc/merit-files", str(files)))
    seen = []
    for name, pod in pods(documents):
        for container in pod["containers"]:
            arguments = container.get("args", [])
            if arguments[:1] != ["run"]:
                continue
            role = arguments[arguments.index("--role") + 1]
            env = {"PATH": os.environ["PATH"]}
            for variable in container.get("env", []):
                secret = variable["name"] in ("RECEIPT_KEYS", "INGEST_API_KEYS")
                value = ("one:" if secret else "") + "0123456789abcdef0123456789abcdef0123456789"
                if variable["name"] == "REDIS_URL":
                    value = "redis://redis:6379"
                env[variable["name"]] = variable.get("value", value)
            done = subprocess.run([binary("merit"), "check-config", "--config", str(folder / "merit.toml"), "--role", role],
                                  env=env, capture_output=True, text=True)
            if done.returncode:
                fail(f"{where}: {name}: merit check-config --role {role}:\n{done.stderr}\n{toml}")
            seen.append(role)
    if not seen:
        fail(f"{where}: nothing runs merit")
    return seen


def names_are_known(where, documents):
    """Every claim, ConfigMap and ServiceAccount that a pod names is made here or is the user's own by a value."""
    made = {(document["kind"], document["metadata"]["name"]) for document in documents}
    for name, pod in pods(documents):
        for volume in pod.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            config = volume.get("configMap", {}).get("name")
            for kind, wanted in (("PersistentVolumeClaim", claim), ("ConfigMap", config)):
                if wanted and (kind, wanted) not in made:
                    fail(f"{where}: {name} mounts {kind} {wanted}, which nothing makes")
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    fail(f"{where}: {name}: {container['name']} mounts {mount['name']}, which is no volume")


def selectors_match(where, documents):
    """Every Service, budget, policy and monitor selects pods that are there, and only ports that they have."""
    templates = [document["spec"]["template"] for document in documents if document["kind"] == "Deployment"]
    services = {d["metadata"]["name"]: d for d in documents if d["kind"] == "Service"}
    if not templates:
        return
    for document in documents:
        kind, name, spec = document["kind"], document["metadata"]["name"], document.get("spec", {})
        if kind == "Service":
            selector = spec["selector"]
        elif kind in ("PodDisruptionBudget", "PodMonitor"):
            selector = spec["selector"]["matchLabels"]
        elif kind == "NetworkPolicy":
            selector = spec["podSelector"]["matchLabels"]
        elif kind == "ServiceMonitor":
            wanted = spec["selector"]["matchLabels"]
            if not any(wanted.items() <= s["metadata"]["labels"].items() for s in services.values()):
                fail(f"{where}: {kind}/{name} selects no Service")
            continue
        else:
            continue
        chosen = [t for t in templates if selector.items() <= t["metadata"]["labels"].items()]
        if not chosen:
            fail(f"{where}: {kind}/{name} selects no pod: {selector}")
        if kind == "Service":
            ports = {port["containerPort"] for t in chosen for c in t["spec"]["containers"] for port in c.get("ports", [])}
            for port in spec["ports"]:
                if port["targetPort"] not in ports:
                    fail(f"{where}: Service/{name}: no pod has port {port['targetPort']}")


def only_proxies_reach_rls(where, documents):
    """Who reaches `rls` is believed: its pods have a policy, and no rule of it lets others than the named peers to that port."""
    asked = [d for d in documents if d["kind"] == "Deployment" and d["metadata"]["labels"]["app.kubernetes.io/component"] == "rls"]
    policies = [d["spec"] for d in documents if d["kind"] == "NetworkPolicy"]
    named = yaml.safe_load((CHART / "ci" / where).read_text()).get("networkPolicy", {}).get("rlsFrom")
    for deployment in asked:
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        rules = [rule for spec in policies if spec["podSelector"]["matchLabels"].items() <= labels.items() for rule in spec["ingress"]
                 if any(port["port"] == RLS_PORT or "endPort" in port for port in rule.get("ports", [{"port": RLS_PORT}]))]
        if [rule.get("from") for rule in rules] != [named]:
            fail(f"{where}: port {RLS_PORT} is open to {[rule.get('from') for rule in rules]}, must be to {named}")
    for name, pod in pods(documents):
        ports = [port["containerPort"] for container in pod["containers"] for port in container.get("ports", [])]
        if (RLS_PORT in ports) != (name in [f"Deployment/{d['metadata']['name']}" for d in asked]):
            fail(f"{where}: {name} has the ports {ports}: {RLS_PORT} is that of rls, and of nobody else")


def check(helm, crds):
    for copy, original in (("merit.rules.yml", "prometheus/merit.rules.yml"), ("merit.json", "grafana/merit.json")):
        if (CHART / "files" / copy).read_bytes() != (ROOT / "deploy" / original).read_bytes():
            fail(f"deploy/helm/merit/files/{copy} is not deploy/{original}: deploy/check --write copies it")
    if README.read_text() != readme():
        fail("deploy/helm/merit/README.md has another table than values.yaml: deploy/check --write writes it")
    custom = definitions(crds)
    examples = sorted((CHART / "ci").glob("*-values.yaml"))
    with tempfile.TemporaryDirectory() as name:
        for values in examples:
            code, out, error = run(helm, "lint", "--strict", CHART, "-f", values)
            if code:
                fail(f"{values.name}: helm lint --strict: {out}{error}")
            documents = render(helm, values)
            for document in documents:
                validate(values.name, document, custom)
            for pod_name, pod in pods(documents):
                restricted(f"{values.name}: {pod_name}", pod)
                whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}
                validate(f"{values.name}: {pod_name}", whole, custom)
            names_are_known(values.name, documents)
            selectors_match(values.name, documents)
            only_proxies_reach_rls(values.name, documents)
            roles = check_config(values.name, documents, Path(name))
            kinds = sorted({document["kind"] for document in documents})
            print(f"{values.name}: {len(documents)} objects ({', '.join(kinds)}); merit.toml for {', '.join(roles)}")
    bad = sorted((CHART / "ci" / "bad").glob("*.yaml"))
    for values in bad:
        expected = re.match(r"# expects: (.+)", values.read_text()).group(1)
        code, out, error = run(helm, "template", "release", CHART, "-f", values)
        if code == 0:
            fail(f"bad/{values.name} is taken")
        said = error.replace(".", "/")
        if expected not in error and expected not in said:
            fail(f"bad/{values.name}: must be refused for {expected}, was for:\n{error}")
    print(f"{len(bad)} faulty values files are refused, each for what is wrong in it")


if __name__ == "__main__":
    if sys.argv[1] == "readme":
        sys.stdout.write(readme())
    else:
        check(*sys.argv[2:4])
