"""Rules, their tests, their runbooks and the dashboard fit each other, and ask for metrics that exist."""

import json
import re
from pathlib import Path

import pytest
import typer
import yaml

from mirror.cli import app
from tests.support.families import FAMILIES, PROCESS

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def _rules(name):
    return [rule for group in yaml.safe_load((MONITORING / name).read_text())["groups"] for rule in group["rules"]]


def _tests(*names):
    return [test for name in names for test in yaml.safe_load((MONITORING / "tests" / name).read_text())["tests"]]


ALERTS, RECORDED = _rules("alerts.yaml"), _rules("recording.yaml")
ALERT_TESTS = {
    test["name"]: test["promql_expr_test"] for test in _tests("alerts.yaml", "slow_alerts.yaml") if "promql_expr_test" in test
}
ALERT_NAMES = [rule["alert"] for rule in ALERTS]


def _queries():
    """Every query of this directory, by where it stands."""
    rules = {rule.get("alert") or rule["record"]: rule["expr"] for rule in (*ALERTS, *RECORDED)}
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }
    return rules | panels


QUERIES = _queries()


@pytest.mark.parametrize("where", QUERIES)
def test_queries_name_metrics_that_exist(where):
    """A metric of a query is one of the mirror's, or of Prometheus's own about a target, or is recorded."""
    families = {f"registry_mirror_{name}": kind for name, (kind, _) in FAMILIES.items()} | PROCESS
    existing = {family + suffix for family, kind in families.items() for suffix in SUFFIXES[kind]}
    existing |= {rule["record"] for rule in RECORDED} | {"up"}

    named = set(re.findall(r"[a-z_:0-9]*registry_mirror_[a-z_:0-9]+|process_[a-z_]+|\bup\b", QUERIES[where]))

    assert named
    assert named <= existing


@pytest.mark.parametrize("where", QUERIES)
def test_queries_name_labels_that_exist(where):
    """A label by which a query selects or groups is one that a family of it has, or Prometheus adds."""
    families = {name: labels for name, (_, labels) in FAMILIES.items()}
    asked = [name for name in families if re.search(rf"registry_mirror_{name}(_|\b)", QUERIES[where])]
    known = {"job", "instance", "le"}.union(*(families[name] for name in asked))
    if re.search(r"\w+:registry_mirror_", QUERIES[where]):
        known |= {"outcome", "registry", "upstream"}

    named = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", QUERIES[where]))
    for group in re.findall(r"\b(?:by|on|without|ignoring|group_left)\s*\(([^)]*)\)", QUERIES[where]):
        named |= {label.strip() for label in group.split(",")}

    assert named <= known


@pytest.mark.parametrize("alert", ALERT_NAMES)
def test_every_alert_has_a_test(alert):
    """The test of this name first expects silence, then this alert and no other."""
    before, after = ALERT_TESTS[alert]

    assert before["expr"] == after["expr"] == 'count by (alertname) (ALERTS{alertstate="firing"})'
    assert before["exp_samples"] == []
    assert after["exp_samples"] == [{"labels": f'{{alertname="{alert}"}}', "value": 1}]


def test_every_recording_rule_has_a_test():
    """A test expects a figure of each series that is recorded."""
    (figures,) = (test["promql_expr_test"] for test in _tests("recording.yaml") if test["name"] == "figures")
    tried = {name for case in figures if case["exp_samples"] for name in re.findall(r"\w+:\w+:\w+", case["expr"])}

    assert tried == {rule["record"] for rule in RECORDED}


@pytest.mark.parametrize("rule", ALERTS, ids=ALERT_NAMES)
def test_every_alert_tells_what_to_do(rule):
    """It has a severity, texts, a link to its runbook, and says which mirror it is about."""
    notes = rule["annotations"]

    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(notes) == {"summary", "description", "runbook", "runbook_url"}
    assert notes["runbook_url"] == f"{{{{ $externalLabels.registry_mirror_docs }}}}docs/runbooks.md#{rule['alert'].lower()}"
    assert "$labels.instance" in notes["summary"] or rule["alert"] == "RegistryMirrorNotScraped"


def test_every_alert_has_a_runbook_and_each_runbook_an_alert():
    """Each has a section with text, and the links within the page lead to sections."""
    text = (ROOT / "docs" / "runbooks.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))

    assert sorted(sections) == sorted(ALERT_NAMES)
    assert all(section.strip() for section in sections.values())
    assert set(re.findall(r"\(#([\w-]+)\)", text)) <= {name.lower() for name in sections}


def test_events_of_the_runbooks_exist():
    """Each log line that the runbooks name is one that the mirror writes."""
    text = (ROOT / "docs" / "runbooks.md").read_text()
    code = "\n".join(file.read_text() for file in (ROOT / "mirror").rglob("*.py"))
    events = set(re.findall(r"`([a-z]+_[a-z_]+)`", text))
    others = set(FAMILIES) | set(
        re.findall(r"^    ([a-z]+_[a-z_]+):", (ROOT / "mirror/config/sections.py").read_text(), re.MULTILINE)
    )

    assert {event for event in events - others if f'"{event}"' not in code} == set()


def test_commands_of_the_runbooks_exist():
    """Each command with its options, in the runbooks and in what an alert says, is one of the command line."""
    texts = [(ROOT / "docs" / "runbooks.md").read_text(), *(rule["annotations"]["runbook"] for rule in ALERTS)]
    commands = typer.main.get_command(app).commands
    text = " ".join("\n".join(texts).split())
    named = re.findall(
        r"(?<!-u )(?<!reload )(?<!restart )(?<!systemctl status )\bregistry-mirror ([a-z][a-z-]+)((?: --[a-z-]+)*)", text
    )

    assert {command for command, _ in named} >= {"status", "explain", "check-config", "verify", "sync", "images"}
    for command, options in named:
        assert command in commands, command
        known = {option for parameter in commands[command].params for option in parameter.opts}
        assert set(options.split()) <= known, (command, options)


def test_what_the_runbooks_quote_is_said():
    """Words of the screen that they quote are those of the screen."""
    text = (ROOT / "docs" / "runbooks.md").read_text()
    code = "\n".join(file.read_text() for file in (ROOT / "mirror" / "cli").glob("*.py"))
    quoted = {" ".join(words.split()) for pair in re.findall(r"\*([a-z ]+)\*|\"([a-z\s]+)\"", text) for words in pair if words}

    assert len(quoted) > 3
    assert {words for words in quoted if words not in code} == set()


def test_the_dashboard_can_be_imported():
    """Panels and rows have ids of their own, lie on no other, and those with queries have a legend and a unit or states."""
    panels = DASHBOARD["panels"]
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24
    for panel in panels:
        if panel["type"] == "row":
            continue
        defaults = panel["fieldConfig"]["defaults"]
        assert "unit" in defaults or "mappings" in defaults, panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def test_the_dashboard_has_a_row_for_each_question():
    """Rows stand for what somebody who is paged asks."""
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]

    assert rows == [
        "State",
        "Traffic",
        "Hit ratio and stale answers",
        "Upstream",
        "Downloads",
        "Store",
        "Sync",
        "Process",
        "Cluster",
    ]


def test_the_dashboard_shows_every_metric():
    """Each family is in a panel, or is a histogram whose figures another one has."""
    text = json.dumps(DASHBOARD["panels"])
    missing = {name for name in FAMILIES if not re.search(rf"registry_mirror_{name}(_total|_bucket)?\b", text)}

    assert missing == {"request_duration_seconds"}


@pytest.mark.parametrize(
    "panel", [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"], ids=lambda panel: panel["title"]
)
def test_panels_filter_by_job_and_instance(panel):
    """Each selector of a query has both variables."""
    for target in panel["targets"]:
        selectors = re.findall(r"(?:registry_mirror|process)_\w+(\{[^}]*\})?", target["expr"])
        assert selectors
        assert all('job=~"$job",instance=~"$instance"' in selector for selector in selectors), target["expr"]
