"""Holds the chart deploy/helm/merit to what a cluster and the real binary take.

Renders every values file of ci/ with a real helm; checks each object against the schemas of Kubernetes and of the operators'
own definitions; pods against the restricted level of Pod Security; merit.toml against `merit check-config` of every role
that gets it; what a cluster would make of the objects (cluster.py) against what the chart promises; and every file of ci/bad must be
refused for the reason that it names.

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
import tomllib
import urllib.parse
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

from cluster import ANYWHERE, EVERYBODY, of_policies, patched, peers, scraped, workloads
from processes import ROOT, binary, fail

CHART = ROOT / "deploy" / "helm" / "merit"
VERSIONS = ("1.30", "1.33", "1.37")
RLS_PORT = 8084
DRAIN_SECONDS = 10.3    # for which a gateway that was told to stop may send requests on: its backlog, and DRAIN_DEADLINE
STOP_SECONDS = 40       # that a process takes at worst; documents.py holds it to the source
DATABASE_PORT = 5432    # stands for whatever an API asks that Merit does not
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


def overlaid(values, over):
    """Returns values with those of a file over them, as helm has it."""
    return {key: overlaid(values[key], over[key]) if isinstance(values.get(key), dict) and isinstance(over.get(key), dict)
            else over.get(key, values.get(key)) for key in {**values, **over}}


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


def check_config(where, documents, loads, folder):
    """Puts each rendered configuration to the real binary, for each role with its variables and files; returns the roles."""
    files = folder / "files"
    if not files.exists():
        files.mkdir()
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=test",
                        "-keyout", folder / "key.pem", "-out", files / "store-ca.pem"], check=True, capture_output=True)
        shutil.copy(files / "store-ca.pem", files / "bus-ca.pem")
        (files / "agent-keys").write_text(f"agent-1:{hashlib.sha256(b'the key of agent 1').hexdigest()}\n")
    seen = []
    for load in loads:
        for container, role, name in load.merit():
            (folder / name).write_text(configuration(documents, name).replace("/etc/merit-files", str(files)))
            env = {"PATH": os.environ["PATH"]}
            for variable in container.get("env", []):
                secret = variable["name"] in ("RECEIPT_KEYS", "INGEST_API_KEYS")
                value = ("one:" if secret else "") + "0123456789abcdef0123456789abcdef0123456789"
                if variable["name"] == "REDIS_URL":
                    value = "redis://redis:6379"
                env[variable["name"]] = variable.get("value", value)
            done = subprocess.run([binary("merit"), "check-config", "--config", str(folder / name), "--role", role],
                                  env=env, capture_output=True, text=True)
            if done.returncode:
                fail(f"{where}: {load.name}: merit check-config --role {role}:\n{done.stderr}\n{(folder / name).read_text()}")
            seen.append(role)
    if not seen:
        fail(f"{where}: nothing runs merit")
    return seen


def configuration(documents, name):
    """Returns the text of a file of the ConfigMap."""
    return next(document["data"][name] for document in documents if name in document.get("data", {}))


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


def selectors_match(where, documents, loads):
    """Every Service, budget, policy and monitor selects pods that are there, and only ports that they have."""
    services = {d["metadata"]["name"]: d for d in documents if d["kind"] == "Service"}
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
        chosen = [load for load in loads if selector.items() <= load.labels.items()]
        if not chosen:
            fail(f"{where}: {kind}/{name} selects no pod: {selector}")
        if kind == "Service":
            ports = {port["containerPort"] for load in chosen for c in load.pod["containers"] for port in c.get("ports", [])}
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


def merit_pods_reach_what_they_ask(where, values, documents, loads):
    """Merit's own pods reach the servers that their configuration names, and the gateway whatever port its upstream's pods have; no more."""
    for load in loads:
        if any(container["name"] == "api" for container in load.pod["containers"]):
            continue
        if peers(documents, load.labels, 53, "egress", "UDP") != ANYWHERE:
            fail(f"{where}: {load.name} cannot ask for names")
        for _, role, name in load.merit():
            for host, port in addresses(tomllib.loads(configuration(documents, name))):
                if peers(documents, load.labels, port, "egress") != ANYWHERE:
                    fail(f"{where}: {load.name} cannot reach {host}:{port}, which its configuration names")
            named = values["networkPolicy"]["upstreamPorts"]
            for port in named or [80, 8080, 12345]:
                if role == "gateway" and peers(documents, load.labels, port, "egress") != ANYWHERE:
                    fail(f"{where}: {load.name} cannot reach its upstream's pods at {port}")
            free = not values["networkPolicy"]["enabled"] or (role == "gateway" and not named)
            if not free and peers(documents, load.labels, DATABASE_PORT, "egress") == ANYWHERE:
                fail(f"{where}: {load.name} can reach port {DATABASE_PORT}, which it does not need")


def addresses(table):
    """Yields (host, port) of the servers that a configuration names, but for the upstream."""
    usual = {"redis": 6379, "rediss": 6379, "https": 443, "wss": 443, "http": 80, "nats": 4222, "tls": 4222}
    for key, value in table.items():
        inner = value if isinstance(value, list) else [value]
        for item in inner:
            if isinstance(item, dict):
                yield from addresses(item)
            elif key == "brokers":
                yield from ((part.rsplit(":", 1)[0], int(part.rsplit(":", 1)[1])) for part in item.split(","))
            elif isinstance(item, str) and "://" in item and key != "upstream":
                url = urllib.parse.urlsplit(item)
                yield url.hostname, url.port or usual[url.scheme]


def apis_pods_are_left_alone(where, values, documents, loads):
    """An API with Merit in its pod asks whom it likes; what of it is closed to whom is Merit's ports, and its own only by `closeApi`."""
    policy = values["networkPolicy"]
    for load in loads:
        if not any(container["name"] == "api" for container in load.pod["containers"]):
            continue
        for port, protocol in ((DATABASE_PORT, "TCP"), (53, "UDP")):
            if peers(documents, load.labels, port, "egress", protocol) != ANYWHERE:
                fail(f"{where}: {load.name}: the API cannot reach port {port}")
        if not policy["enabled"] or values["mode"] == "inject":
            if of_policies(documents, load.labels):
                fail(f"{where}: {load.name}: a NetworkPolicy holds for pods that are none of the chart's")
            continue
        own = [(values["sidecar"]["api"]["port"], "TCP"), (9464, "TCP"), (65535, "TCP"), (4433, "UDP")]
        for port, protocol in own if policy["closeApi"] else []:
            if peers(documents, load.labels, port, "ingress", protocol):
                fail(f"{where}: {load.name}: port {port} is open, and closeApi is set")
        for port, protocol in [] if policy["closeApi"] else own:
            if peers(documents, load.labels, port, "ingress", protocol) != EVERYBODY:
                fail(f"{where}: {load.name}: the API's port {port} is closed, and closeApi is not set")
        closed = [8081, 9901, *([8082] if values["ingest"]["grpc"] else []), *([8080] if policy["gatewayFrom"] else [])]
        for port in closed:
            if peers(documents, load.labels, port, "ingress") in (EVERYBODY, []):
                fail(f"{where}: {load.name}: Merit's port {port} is open to everybody or to nobody")


def there_is_one_bridge(where, values, documents, loads):
    """Two bridges would deliver each rating twice: one process has [feed], in a Deployment of one pod."""
    wanted = bool(values["feed"]["url"]) and (values["mode"] != "standalone" or values["roles"]["feed"]["enabled"])
    scaled = [d["spec"]["scaleTargetRef"]["name"] for d in documents if d["kind"] == "HorizontalPodAutoscaler"]
    bridges = []
    for load in loads:
        for _, role, name in load.merit():
            if role in ("all", "feed") and "feed" in tomllib.loads(configuration(documents, name)):
                bridges.append(load.name)
                if load.deployment.get("replicas") != 1 or load.name.split("/")[1] in scaled:
                    fail(f"{where}: {load.name} runs the bridge in more than one pod")
                if role == "feed" and load.deployment["strategy"] != {"type": "Recreate"}:
                    fail(f"{where}: {load.name} starts a second bridge before the first has ended")
    if len(bridges) != wanted:
        fail(f"{where}: {bridges} run the bridge, must be {int(wanted)}")


def proxies_before_are_told(where, values, documents, loads):
    """What values say of the proxies before the gateway stands in its configuration."""
    for load in loads:
        for _, role, name in load.merit():
            toml = tomllib.loads(configuration(documents, name))
            if toml["identity"].get("trusted_proxies", []) != values["identity"]["trustedProxies"]:
                fail(f"{where}: {load.name}: identity.trusted_proxies is not identity.trustedProxies")
            if role in ("gateway", "all") and toml["gateway"].get("trust_forwarded", False) != values["gateway"]["trustForwarded"]:
                fail(f"{where}: {load.name}: gateway.trust_forwarded is not gateway.trustForwarded")


def pods_end_in_order(where, values, loads):
    """Nobody is killed while it drains, and an API whose container is known stops after the gateway before it."""
    def waits(container):
        return container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    for load in loads:
        for merit, _, _ in load.merit():
            grace = load.pod["terminationGracePeriodSeconds"]
            if grace < waits(merit) + STOP_SECONDS:
                fail(f"{where}: {load.name} is killed after {grace} s, and takes {waits(merit) + STOP_SECONDS}")
            for other in load.pod["containers"]:
                known = values["mode"] == "sidecar" or values["inject"]["container"] == other["name"]
                if other is not merit and known and not waits(merit) + DRAIN_SECONDS <= waits(other) < grace:
                    fail(f"{where}: {load.name}: {other['name']} stops {waits(other)} s after the pod is told to end, and Merit "
                         f"sends it requests for {waits(merit) + DRAIN_SECONDS}")


def merit_reads_its_volumes(where, values, loads):
    """Files of Secrets are root's and a new claim is too: user 65532 has the pod's fsGroup, or the right that all have."""
    for load in loads:
        group = load.pod.get("securityContext", {}).get("fsGroup")
        volumes = {volume["name"]: volume for volume in load.pod["volumes"]}
        for container, _, _ in load.merit():
            for volume in [volumes[mount["name"]] for mount in container["volumeMounts"]]:
                source = volume.get("projected") or volume.get("secret") or {}
                mode = source.get("defaultMode", 0o644)
                if source and not (mode & 0o004 or (group and mode & 0o040)):
                    fail(f"{where}: {load.name}: Merit cannot read {volume['name']}: mode {mode:o}, fsGroup {group}")
                if "persistentVolumeClaim" in volume and not group and not values["checkpoint"]["existingClaim"]:
                    fail(f"{where}: {load.name}: Merit cannot write {volume['name']}: no fsGroup")


def targets_name_their_role(where, values, documents, loads):
    """Rules ask for the job, and tell by `component` which role is gone: every pod is scraped, under both."""
    found = list(scraped(documents, loads))
    for name, load, labels in found:
        for _, role, _ in load.merit():
            wanted = {"job": "merit", "component": "gateway" if role == "all" else role}
            if labels != wanted:
                fail(f"{where}: {name} gives {load.name} the labels {labels}, must be {wanted}")
    if values["monitoring"]["podMonitor"] or values["monitoring"]["serviceMonitor"]:
        missed = {load.name for load in loads} - {load.name for _, load, _ in found}
        if missed:
            fail(f"{where}: nothing scrapes {', '.join(sorted(missed))}")


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
            given = overlaid(yaml.safe_load((CHART / "values.yaml").read_text()), yaml.safe_load(values.read_text()))
            loads = list(workloads(documents, given["inject"]["selector"]))
            names_are_known(values.name, documents)
            selectors_match(values.name, documents, loads)
            only_proxies_reach_rls(values.name, documents)
            merit_pods_reach_what_they_ask(values.name, given, documents, loads)
            apis_pods_are_left_alone(values.name, given, documents, loads)
            there_is_one_bridge(values.name, given, documents, loads)
            proxies_before_are_told(values.name, given, documents, loads)
            pods_end_in_order(values.name, given, loads)
            merit_reads_its_volumes(values.name, given, loads)
            targets_name_their_role(values.name, given, documents, loads)
            roles = check_config(values.name, documents, loads, Path(name))
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
