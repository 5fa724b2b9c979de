"""The queries of the dashboard and the rules, and the names that they use: read from the files, nowhere repeated."""

import json
import re
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parent.parent
DASHBOARD = DEPLOY / "grafana" / "merit.json"
RULES = DEPLOY / "prometheus" / "merit.rules.yml"

METRIC = re.compile(r"(?<![\w:])(?:merit_\w+|rating_rate|bucket_utilization\w*|rl_update_latency\w*)")
SELECTOR = re.compile(r"(" + METRIC.pattern + r")\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
# What the scrape adds, and what a rule or the dashboard asks for without naming a value.
OF_THE_SCRAPE = {"namespace", "instance", "job", "component"}


def of_dashboard():
    """Yields (panel's title, query) of every target."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def of_rules():
    """Yields (name of the rule, query)."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]


def alerts():
    """Returns the rules that alert."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def filled_in(query):
    """Returns a query of the dashboard as Grafana would send it."""
    query = query.replace("$__rate_interval", "1m")
    return query.replace("$namespace", ".*").replace("$instance", ".*")


def names(query):
    """Returns the names of metrics in `query`, as they are exported."""
    return set(METRIC.findall(query))


def matchers(query):
    """Yields (metric, label, operator, value) for what the query asks of labels that Merit itself sets."""
    for metric, inside in SELECTOR.findall(query):
        for label, operator, value in MATCHER.findall(inside):
            if label not in OF_THE_SCRAPE:
                yield metric, label, operator, value


def groupings(query):
    """Yields (metric, label) for each `sum by (label) (rate(metric…` and its like."""
    form = r"by \(([\w, ]+)\) \((?:\w+\()?\s*(" + METRIC.pattern + ")"
    for labels, metric in re.findall(form, query):
        for label in labels.split(","):
            if label.strip() not in OF_THE_SCRAPE:
                yield metric, label.strip()
