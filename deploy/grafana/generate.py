"""Writes lorapool.json, the dashboard: `python deploy/grafana/generate.py`; a test compares.

A panel is a title, a unit and queries; where it stands follows from its place in ROWS.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent / "lorapool.json"
WIDTH, HEIGHT, PER_ROW = 8, 8, 3
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF_JOB = 'job=~"$job"'


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    what: str
    """The panel's description."""
    unit: str
    queries: tuple[Query, ...]
    stacked: bool = False


def rate(metric: str, by: str, labels: str = "") -> str:
    """Events a second."""
    return f"sum by ({by}) (rate({metric}{{{_labels(labels)}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", labels: str = "") -> str:
    """Of a histogram over all nodes."""
    buckets = rate(f"{metric}_bucket", f"le, {by}" if by else "le", labels)
    return f"histogram_quantile({share}, {buckets})"


def gauge(kind: str, metric: str, by: str, labels: str = "") -> str:
    return f"{kind} by ({by}) ({metric}{{{_labels(labels)}}})"


def _labels(labels: str) -> str:
    return f"{OF_JOB}, {labels}" if labels else OF_JOB


_VERSION = "tenant, adapter, version, generation"
_FAILED = 'outcome="failed"'
ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        Panel(
            "Requests",
            "Ended, by outcome. `failed` is the node's, the store's or an adapter's fault.",
            "reqps",
            (Query(rate("lorapool_requests_total", "outcome"), "{{outcome}}"),),
            stacked=True,
        ),
        Panel(
            "Time to first token",
            "From acceptance.",
            "s",
            tuple(
                Query(quantile(share, "lorapool_time_to_first_token_seconds"), f"p{share * 100:g}")
                for share in (0.5, 0.9, 0.99)
            ),
        ),
        Panel(
            "Between tokens, 99th percentile",
            "While adapters were being loaded, and while none was: what loading costs.",
            "s",
            (Query(quantile(0.99, "lorapool_inter_token_seconds", "adapters"), "{{adapters}}"),),
        ),
        Panel(
            "Tokens generated",
            "By node.",
            "short",
            (Query(rate("lorapool_generated_tokens_total", "instance"), "{{instance}}"),),
            stacked=True,
        ),
        Panel(
            "In progress",
            "Accepted and not ended, by phase.",
            "short",
            (Query(gauge("sum", "lorapool_requests_in_progress", "phase"), "{{phase}}"),),
            stacked=True,
        ),
        Panel(
            "Oldest request that waits",
            "For its first step, by node.",
            "s",
            (Query(gauge("max", "lorapool_queue_oldest_seconds", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Turned away",
            "By reason.",
            "reqps",
            (
                Query(
                    rate("lorapool_requests_total", "reason", 'outcome=~"refused|expired"'),
                    "{{reason}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "KV cache",
            "Blocks by state.",
            "short",
            (Query(gauge("sum", "lorapool_kv_blocks", "state"), "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Requests by node",
            "How evenly the ring spreads them.",
            "reqps",
            (Query(rate("lorapool_requests_total", "instance"), "{{instance}}"),),
        ),
    ),
    "Adapters": (
        Panel(
            "Requests that found their adapter on the device",
            "1 - loads / requests: near 1 while each node's working set fits.",
            "percentunit",
            (
                Query(
                    f"1 - {rate('lorapool_adapter_loads_total', 'instance')}"
                    f" / {rate('lorapool_requests_total', 'instance')}",
                    "{{instance}}",
                ),
            ),
        ),
        Panel(
            "Loads",
            "Versions that became resident, by where their weights were.",
            "ops",
            (Query(rate("lorapool_adapter_loads_total", "source"), "{{source}}"),),
            stacked=True,
        ),
        Panel(
            "Parts of a load, 99th percentile",
            "resolve, fetch, verify, stage (waiting for pages), promote.",
            "s",
            (Query(quantile(0.99, "lorapool_adapter_load_stage_seconds", "stage"), "{{stage}}"),),
        ),
        Panel(
            "Pool pages",
            "Of all groups and nodes, by state.",
            "short",
            (Query(gauge("sum", "lorapool_pool_pages", "state"), "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Evictions",
            "By tier; and versions taken off running requests.",
            "ops",
            (
                Query(rate("lorapool_evictions_total", "tier"), "{{tier}}"),
                Query(rate("lorapool_versions_made_way_total", "job"), "made way"),
            ),
        ),
        Panel(
            "Versions that wait for pages",
            "swap: the name is served by the version before meanwhile.",
            "short",
            (Query(gauge("sum", "lorapool_versions_waiting", "kind"), "{{kind}}"),),
        ),
        Panel(
            "Refused",
            "Versions that could not be loaded, by reason.",
            "ops",
            (Query(rate("lorapool_adapter_refusals_total", "reason"), "{{reason}}"),),
        ),
        Panel(
            "Versions by tier",
            "On all nodes.",
            "short",
            (Query(gauge("sum", "lorapool_versions", "tier"), "{{tier}}"),),
            stacked=True,
        ),
        Panel(
            "Fetched",
            "From the store or the disk cache, every digest checked.",
            "Bps",
            (Query(rate("lorapool_adapter_fetched_bytes_total", "instance"), "{{instance}}"),),
        ),
    ),
    "Versions and canaries": (
        Panel(
            "Generations apart",
            "Newest less oldest generation of an adapter among nodes: 0 but after a publish.",
            "short",
            (
                Query(
                    f"{gauge('max', 'lorapool_adapter_generation', 'tenant, adapter')}"
                    f" - {gauge('min', 'lorapool_adapter_generation', 'tenant, adapter')} > 0",
                    "{{tenant}}/{{adapter}}",
                ),
            ),
        ),
        Panel(
            "Without the store's word",
            "The longest that a served name has gone unconfirmed.",
            "s",
            (Query(gauge("max", "lorapool_staleness_seconds", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Swaps",
            "Names that went on to another version, by node.",
            "ops",
            (Query(rate("lorapool_swaps_total", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Failures by version",
            "Share of its requests.",
            "percentunit",
            (
                Query(
                    f"{rate('lorapool_version_requests_total', _VERSION, _FAILED)}"
                    f" / {rate('lorapool_version_requests_total', _VERSION)}",
                    "{{adapter}} {{version}} ({{generation}})",
                ),
            ),
        ),
        Panel(
            "Time to first token by version, 95th percentile",
            "A canary beside what it would replace.",
            "s",
            (
                Query(
                    quantile(0.95, "lorapool_version_time_to_first_token_seconds", _VERSION),
                    "{{adapter}} {{version}} ({{generation}})",
                ),
            ),
        ),
        Panel(
            "Time per token by version, median",
            "Decoding alone.",
            "s",
            (
                Query(
                    quantile(0.5, "lorapool_version_time_per_token_seconds", _VERSION),
                    "{{adapter}} {{version}} ({{generation}})",
                ),
            ),
        ),
    ),
    "Health": (
        Panel(
            "Engines",
            "1 while a node can serve.",
            "short",
            (Query(gauge("min", "lorapool_engine_up", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Store away",
            "1 while a node leaves the store alone.",
            "short",
            (Query(gauge("max", "lorapool_store_away", "instance"), "{{instance}}"),),
        ),
        Panel(
            "News through Redis",
            "1 while it comes; without, nodes poll.",
            "short",
            (Query(gauge("min", "lorapool_hints_healthy", "instance"), "{{instance}}"),),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for name, row in ROWS.items():
        panels.append(_heading(len(panels) + 1, name, top))
        top += 1
        for place, panel in enumerate(row):
            x, y = WIDTH * (place % PER_ROW), top + HEIGHT * (place // PER_ROW)
            panels.append(_panel(len(panels) + 1, panel, x=x, y=y))
        top += HEIGHT * -(-len(row) // PER_ROW)
    return {
        "uid": "lorapool",
        "title": "lorapool",
        "tags": ["lorapool", "inference"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_sources(), _jobs()]},
        "annotations": {"list": [_alerts()]},
        "panels": panels,
    }


def _heading(number: int, title: str, y: int) -> dict[str, Any]:
    place = {"h": 1, "w": WIDTH * PER_ROW, "x": 0, "y": y}
    return {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}


def _panel(number: int, panel: Panel, *, x: int, y: int) -> dict[str, Any]:
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 30 if panel.stacked else 0}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.what,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": custom},
            "overrides": [],
        },
        "options": {
            "tooltip": {"mode": "multi", "sort": "desc"},
            "legend": {"displayMode": "list"},
        },
        "targets": [
            {
                "refId": chr(65 + i),
                "datasource": SOURCE,
                "expr": one.expr,
                "legendFormat": one.legend,
            }
            for i, one in enumerate(panel.queries)
        ],
    }


def _sources() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}}


def _jobs() -> dict[str, Any]:
    query = "label_values(lorapool_node_info, job)"
    return {
        "name": "job",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "jobs"},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "enable": True,
        "datasource": SOURCE,
        "expr": 'ALERTS{alertname=~"Lorapool.+", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}}",
        "iconColor": "red",
    }


def main() -> None:
    TARGET.write_text(json.dumps(dashboard(), indent=1) + "\n")


if __name__ == "__main__":
    main()
