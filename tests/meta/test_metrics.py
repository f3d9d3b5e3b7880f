"""docs/metrics.md names every family, with its labels, and no other; dashboard and alerts ask for what there is."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from documents import ROOT, read
from prometheus_client.metrics import MetricWrapperBase

from covey.telemetry.metrics import Metrics

PAGE = read("docs/metrics.md")
DASHBOARD: dict[str, Any] = json.loads(read("deploy/grafana/covey.json"))
RULES = read("deploy/prometheus/covey.rules.yml")
SUFFIXES = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
TARGET_LABELS = {"instance", "job"}
"""What a scrape adds to every series."""
FUNCTIONS = {"rate", "increase", "sum", "min", "max", "histogram_quantile", "group_left"}


def families() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every family of ours and of the process: its name, type and labels."""
    registry = Metrics().registry
    for collector in registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            labels = ("version", "roles") if collector._type == "info" else tuple(collector._labelnames)
            yield collector._name, collector._type, labels
        else:
            for family in collector.collect():
                yield family.name, family.type, tuple(getattr(family, "_labelnames", ()))


FAMILIES = {name: (kind, labels) for name, kind, labels in families()}
SERIES = {
    name + suffix: {*labels, *(("le",) if suffix == "_bucket" else ())}
    for name, (kind, labels) in FAMILIES.items()
    for suffix in SUFFIXES[kind]
}


def test_every_family_is_documented_with_its_labels() -> None:
    documented = dict(re.findall(r"^\| `(covey_\w+)` \| ([\w, ]*) ?\|", PAGE, re.MULTILINE))
    exported = {
        name + ("" if kind == "histogram" else SUFFIXES[kind][0]): ", ".join(labels)
        for name, (kind, labels) in FAMILIES.items()
        if name.startswith("covey_")
    }
    assert {name: labels.strip() for name, labels in documented.items()} == exported


def test_labels_never_tell_who_asked_or_what() -> None:
    labels = {label for name, (_, labels) in FAMILIES.items() if name.startswith("covey_") for label in labels}
    assert labels <= {
        "backend", "method", "model", "node", "outcome", "reason", "roles", "route", "state", "status", "upstream",
        "version",
    }  # fmt: skip


def questions(panels: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Every question of the dashboard, with what its legend shows."""
    for panel in panels:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]
        yield from questions(panel.get("panels", ()))


DASHBOARD_QUESTIONS = list(questions(DASHBOARD["panels"]))
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
ALERTS = re.findall(r"- alert: (\w+)\n\s+expr: (?:>-\n)?((?:.|\n)*?)\n\s+(?:for|labels):", RULES)


def asked(question: str) -> Iterator[tuple[str, str]]:
    """The series that a question names, each with its selector."""
    without_texts = re.sub(r'"[^"]*"', '""', question)
    without_lists = re.sub(r"\b(by|ignoring) \([^)]*\)", "", without_texts)
    for name, selector in re.findall(r"\b([a-z]\w*)\b(\{[^}]*\})?", re.sub(r"\[[^\]]*\]", "", without_lists)):
        if name not in FUNCTIONS and name != "up":
            yield name, selector


def _labels_of(question: str) -> set[str]:
    return set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", question))


def check(question: str, legend: str = "") -> None:
    """Whether every series and every label of a question is ours."""
    found = list(asked(question))
    labels: set[str] = set()
    for name, selector in found:
        assert name in SERIES, f"{name} is no series of ours: {question}"
        assert _labels_of(selector) <= SERIES[name] | TARGET_LABELS, question
        labels |= SERIES[name]
    grouped = re.findall(r"\b(?:by|ignoring) \(([^)]*)\)", question)
    for label in {one.strip() for group in grouped for one in group.split(",")}:
        assert label in labels | TARGET_LABELS, f"{label}: {question}"
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels | TARGET_LABELS, legend
    assert question.count("(") == question.count(")")
    assert question.count("{") == question.count("}")


@pytest.mark.parametrize(("question", "legend"), DASHBOARD_QUESTIONS)
def test_the_dashboard_asks_for_what_there_is(question: str, legend: str) -> None:
    check(question, legend)
    shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
    assert any(shown <= {one.strip() for one in group.split(",")} for group in re.findall(r"by \(([^)]*)\)", question))
    assert set(re.findall(r"\$(\w+)", question)) <= {*VARIABLES, "__rate_interval"}


@pytest.mark.parametrize("question", ["covey_never", 'covey_requests_total{user="a"}', "sum by (key) (covey_models)"])
def test_a_question_for_what_there_is_not_would_be_noticed(question: str) -> None:
    with pytest.raises(AssertionError):
        check(question)


def test_the_dashboard_shows_every_family() -> None:
    shown = {name for question, _ in DASHBOARD_QUESTIONS for name, _ in asked(question)}
    ours = {name for name in FAMILIES if name.startswith("covey_")}
    missing = {
        name
        for name in ours
        if not shown & {name + suffix for suffix in SUFFIXES[FAMILIES[name][0]]} and name != "covey_store_files"
    }
    assert missing == set()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    assert VARIABLES["datasource"]["type"] == "datasource"
    for name in ("instance", "model"):
        (asked_for,) = re.findall(r"label_values\((\w+), (\w+)\)", VARIABLES[name]["definition"])
        assert asked_for[1] == name in SERIES[asked_for[0]] | TARGET_LABELS
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Traffic", "Latency", "Tokens", "Errors and limits", "Engines and queue", "Links, replication, leases",
        "Process",
    ]  # fmt: skip
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in (panel, *panel.get("targets", ())):
            if panel["type"] != "row":
                assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize(("name", "question"), ALERTS)
def test_alerts_ask_for_what_there_is(name: str, question: str) -> None:
    check(question)
    block = RULES.partition(f"- alert: {name}\n")[2].partition("- alert:")[0]
    used = set(re.findall(r"\$labels\.(\w+)", block))
    labels = {label for series, _ in asked(question) for label in SERIES[series]} | TARGET_LABELS
    assert used <= labels
    for group in re.findall(r"\bby \(([^)]*)\)", question)[:1]:
        assert used <= {one.strip() for one in group.split(",")}


def test_there_are_alerts_and_prometheus_loads_them() -> None:
    assert len(ALERTS) == RULES.count("- alert:") >= 10
    assert "- covey.rules.yml" in read("deploy/prometheus/prometheus.yml")
    assert all((ROOT / path).is_file() for path in re.findall(r"\]\(\.\./(deploy/[^)]+)\)", PAGE))
