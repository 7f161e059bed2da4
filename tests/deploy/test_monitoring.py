"""Rules and dashboard ask for nothing that no node tells, and promtool finds them in order."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from deploy.grafana.generate import TARGET, dashboard

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())
PROMTOOL = shutil.which("promtool")
SCRAPED = {"job", "instance", "le"}
"""Labels that Prometheus itself adds, and a histogram's own."""
OF_ALERTS = {"ALERTS": {"alertname", "alertstate"}}
VARIABLES = {"$__rate_interval": "5m", "$job": ".+"}
ROW = re.compile(
    r"^\| `(?P<name>[a-z_:]+)` \| (?P<type>\w+) \| [^|]* \| (?P<labels>[^|]*) \|", re.M
)

Catalogue = dict[str, set[str]]


def catalogue() -> Catalogue:
    """The labels of every series, by docs/metrics.md, which another test holds to the code."""
    found: Catalogue = {}
    for row in ROW.finditer((ROOT / "docs" / "metrics.md").read_text()):
        labels = set(re.findall(r"`(\w+)`", row["labels"]))
        parts = ("_bucket", "_sum", "_count") if row["type"] == "histogram" else ("",)
        found |= {row["name"] + part: labels for part in parts}
    return found


def rules() -> Iterator[dict[str, Any]]:
    for group in RULES["groups"]:
        yield from group["rules"]


def known() -> Catalogue:
    recorded = {
        rule["record"]: set(_grouping(promql.parse(rule["expr"])))
        for rule in rules()
        if "record" in rule
    }
    return catalogue() | recorded | OF_ALERTS


def queries() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    board = dashboard()
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (one["expr"] for one in board["annotations"]["list"])


def unknown(query: str) -> list[str]:
    """Series and labels of a query that nobody tells. Raises ValueError when it is no PromQL."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    told, missing = known(), []

    def visit(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            if node.name not in told:
                missing.append(str(node.name))
                return
            labels = {matcher.name for matcher in node.matchers.matchers}
            missing.extend(f"{node.name}.{one}" for one in labels - told[node.name] - SCRAPED)
        if isinstance(node, promql.AggregateExpr):
            within = [told[name] for name in _names(node.expr) if name in told]
            some = set().union(*within) | SCRAPED
            missing.extend(f"by {one}" for one in set(_grouping(node)) - some)

    promql.walk(promql.parse(query), visit)
    return missing


def _names(node: Any) -> list[str]:
    found: list[str] = []

    def visit(one: Any) -> None:
        if isinstance(one, promql.VectorSelector):
            found.append(str(one.name))

    promql.walk(node, visit)
    return found


def _grouping(node: Any) -> list[str]:
    while isinstance(node, promql.BinaryExpr):
        node = node.lhs
    if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        return list(node.modifier.labels)
    return []


def test_every_series_and_label_that_rules_and_panels_name_is_one_that_nodes_tell() -> None:
    asked = list(queries())
    assert len(asked) > 40
    assert {query: missing for query in asked if (missing := unknown(query))} == {}


@pytest.mark.parametrize(
    ("query", "missing"),
    [
        ("rate(lorapool_requests_totl[5m])", ["lorapool_requests_totl"]),
        ('lorapool_evictions_total{teir="device"}', ["lorapool_evictions_total.teir"]),
        ("sum by (adaptor) (lorapool_adapter_generation)", ["by adaptor"]),
        ("lorapool_queue_seconds > 1", ["lorapool_queue_seconds"]),
    ],
)
def test_a_name_that_nobody_tells_is_found(query: str, missing: list[str]) -> None:
    assert unknown(query) == missing


def test_what_is_no_promql_is_found() -> None:
    with pytest.raises(ValueError, match="parenthesis"):
        unknown("sum by (job) (rate(lorapool_swaps_total[5m]")


def test_there_is_an_alert_for_each_trouble_that_was_promised_one() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {
        "LorapoolVersionSkew",
        "LorapoolStale",
        "LorapoolEvictionsUnderLeasePressure",
        "LorapoolQueueOld",
        "LorapoolAdaptersRefused",
    } <= alerts
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"info", "warning", "critical"}
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["description"]


def test_every_alert_is_seen_to_fire_in_the_rules_own_test() -> None:
    text = (PROMETHEUS / "rules_test.yaml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", text))
    fired |= set(re.findall(r'\{alertname="(\w+)"\}', text))
    assert {rule["alert"] for rule in rules() if "alert" in rule} == fired


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: it comes with Prometheus")
@pytest.mark.parametrize(
    "check",
    [
        ["check", "rules", "--lint-fatal", "rules.yaml"],
        ["check", "config", "prometheus.yaml"],
        ["test", "rules", "rules_test.yaml"],
    ],
    ids=lambda check: " ".join(check[:2]),
)
def test_promtool_finds_them_in_order(check: list[str]) -> None:
    ran = subprocess.run(
        [str(PROMTOOL), *check],
        cwd=PROMETHEUS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_dashboard_is_what_its_generator_says() -> None:
    assert json.loads(TARGET.read_text()) == dashboard()


def test_no_two_panels_overlap_and_all_read_the_chosen_source_and_job() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'job=~"$job"' in target["expr"]
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
