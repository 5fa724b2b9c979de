"""What a cluster makes of the chart's objects: a patch put into somebody's pod, labels of a scrape, who reaches whom.

Knows the rules of Kubernetes and of Prometheus, as far as the chart uses them, and nothing of the chart: what must come of
its objects is said in chart.py.
"""

import re
from dataclasses import dataclass

import yaml

EVERYBODY, ANYWHERE = "everybody", "anywhere"


@dataclass
class Workload:
    """Pods of one kind: who makes them, their labels, their spec, and the Deployment's own spec (none for the patched)."""

    name: str
    labels: dict
    pod: dict
    deployment: dict

    def merit(self):
        """Yields (container, role, file of its configuration) of those that run merit."""
        for container in self.pod["containers"]:
            arguments = container.get("args", [])
            if arguments[:1] == ["run"]:
                config = arguments[arguments.index("--config") + 1]
                yield container, arguments[arguments.index("--role") + 1], config.rsplit("/", 1)[1]


def workloads(documents, selector):
    """Yields what runs for long; the patch of `inject` put into a Deployment of somebody's whose pods have the labels `selector`."""
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]
            yield Workload(name, template["metadata"]["labels"], template["spec"], document["spec"])
        elif "patch.yaml" in document.get("data", {}):
            patch = yaml.safe_load(document["data"]["patch.yaml"])["spec"]["template"]["spec"]
            yield Workload(name, selector, patched(patch), {})


def patched(patch):
    """Returns a pod of somebody else's with the patch put in as a strategic merge does: lists by their names, objects by their keys."""
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}
    own = {"containers": [{"name": "api", "image": "registry.example.com/api:1", "securityContext": security}],
           "volumes": [{"name": "own", "emptyDir": {}}], "terminationGracePeriodSeconds": 30}
    return merged(own, patch)


def merged(own, patch):
    if isinstance(own, dict) and isinstance(patch, dict):
        return {key: merged(own[key], patch[key]) if key in own and key in patch else patch.get(key, own.get(key))
                for key in [*own, *(key for key in patch if key not in own)]}
    if isinstance(own, list) and isinstance(patch, list):
        named = {item["name"]: item for item in own}
        for item in patch:
            named[item["name"]] = merged(named.get(item["name"], {}), item)
        return list(named.values())
    return patch


def of_policies(documents, labels):
    """Returns the NetworkPolicies that hold for pods of these labels."""
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    return [spec for spec in policies if spec["podSelector"]["matchLabels"].items() <= labels.items()]


def peers(documents, labels, port, direction, protocol="TCP"):
    """Returns the peers that pods of these labels have at `port`: a list, or everybody; `direction` is `ingress` or `egress`."""
    everybody = EVERYBODY if direction == "ingress" else ANYWHERE
    limiting = [spec for spec in of_policies(documents, labels) if direction.capitalize() in spec["policyTypes"]]
    if not limiting:
        return everybody
    found = []
    for rule in [rule for spec in limiting for rule in spec.get(direction, [])]:
        if "ports" in rule and not any(lets(entry, port, protocol) for entry in rule["ports"]):
            continue
        of_rule = rule.get("from" if direction == "ingress" else "to")
        if not of_rule:
            return everybody
        found += of_rule
    return found


def lets(entry, port, protocol):
    return entry.get("protocol", "TCP") == protocol and entry["port"] <= port <= entry.get("endPort", entry["port"])


def scraped(documents, loads):
    """Yields (monitor's name, workload, labels of its targets) of all that the operator's monitors find."""
    services = [document for document in documents if document["kind"] == "Service"]
    for document in documents:
        spec, name = document.get("spec", {}), f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] == "PodMonitor":
            selectors, endpoints = [spec["selector"]["matchLabels"]], spec["podMetricsEndpoints"]
        elif document["kind"] == "ServiceMonitor":
            wanted, endpoints = spec["selector"]["matchLabels"], spec["endpoints"]
            selectors = [service["spec"]["selector"] for service in services if wanted.items() <= service["metadata"]["labels"].items()]
        else:
            continue
        for load in loads:
            if any(selector.items() <= load.labels.items() for selector in selectors):
                for endpoint in endpoints:
                    yield name, load, relabelled(load.labels, endpoint.get("relabelings", []))


def relabelled(pod_labels, relabelings):
    """Returns the labels of a target after `relabelings`, whose action is always `replace`."""
    labels = {"__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", key): value for key, value in pod_labels.items()}
    for step in relabelings:
        source = step.get("separator", ";").join(labels.get(key, "") for key in step.get("sourceLabels", []))
        found = re.fullmatch(step.get("regex", "(.*)"), source)
        if found:
            template = re.sub(r"\$\{?(\d+)\}?", r"\\\1", step.get("replacement", "$1"))
            labels[step["targetLabel"]] = found.expand(template)
    return {key: value for key, value in labels.items() if value and not key.startswith("__")}
