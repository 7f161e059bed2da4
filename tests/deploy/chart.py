"""The chart as Helm itself renders it, and how to find something in that."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = pytest.importorskip("helm_python", reason="Helm's wheel is not made for this platform")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "lorapool"
EVERYTHING: dict[str, Any] = {
    "autoscaling": {"enabled": True},
    "gpu": {"enabled": True, "runtimeClassName": "nvidia"},
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True},
        "dashboards": {"enabled": True},
    },
    "store": {"endpoint": "https://s3.example", "existingSecret": "store"},
    "redis": {"url": "redis://redis:6379/0", "existingSecret": "redis"},
    "node": {
        "env": {"LORAPOOL_POOL_MB": 1024},
        "envFromSecret": "more",
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "baseModel": "/models/base",
    },
    "gateway": {"tlsSecret": "tls", "service": {"type": "LoadBalancer", "annotations": {"a": "b"}}},
    "networkPolicy": {"clients": [{"namespaceSelector": {}}], "scrapers": [{"podSelector": {}}]},
}
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "everything on": EVERYTHING,
    "no gateway": {"gateway": {"enabled": False}},
    "nothing optional": {
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
    },
}

Objects = list[dict[str, Any]]


def rendered(values: dict[str, Any]) -> Objects:
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name="blue", namespace="models")
    texts = [text for name, text in files.items() if not name.endswith(".txt")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


@cache
def as_rendered() -> dict[str, Objects]:
    return {way: rendered(values) for way, values in WAYS.items()}


def all_on() -> Objects:
    """With everything that is optional, for a test to break."""
    return copy.deepcopy(as_rendered()["everything on"])


def of_kind(objects: Objects, kind: str) -> Objects:
    return [found for found in objects if found["kind"] == kind]


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    return next(found for found in of_kind(objects, kind) if found["metadata"]["name"] == name)


def gateway_config(objects: Objects) -> dict[str, Any]:
    """What its Envoy reads."""
    text = named(objects, "ConfigMap", "blue-lorapool-gateway")["data"]["envoy.yaml"]
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def pods(objects: Objects) -> Iterator[dict[str, Any]]:
    for found in of_kind(objects, "Deployment"):
        yield found["spec"]["template"]


def containers(objects: Objects) -> Iterator[dict[str, Any]]:
    for pod in pods(objects):
        yield from pod["spec"].get("initContainers", [])
        yield from pod["spec"]["containers"]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container.get("env", [])}
