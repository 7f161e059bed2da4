"""The chart is valid by Kubernetes' own schemas, without a cluster, and says what it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from adapter_store.settings import StoreSettings
from inference_node.cli.settings import NodeSettings
from tests.deploy.chart import (
    CHART,
    EVERYTHING,
    ROOT,
    WAYS,
    Objects,
    all_on,
    as_rendered,
    containers,
    environment,
    gateway_config,
    helm,
    named,
    of_kind,
    rendered,
)

OLDEST, NEWEST = "1.30", "1.37"
OPERATORS = {"ServiceMonitor", "PrometheusRule"}
"""Their schemas are the Prometheus operator's, not Kubernetes'."""


@pytest.mark.parametrize(
    ("version", "way"), [(OLDEST, "everything on"), *((NEWEST, way) for way in WAYS)]
)
def test_what_is_rendered_is_valid_for_the_oldest_and_the_newest_kubernetes(
    version: str, way: str
) -> None:
    for found in as_rendered()[way]:
        if found["kind"] not in OPERATORS:
            kubernetes_validate.validate(found, version, strict=True)


def test_a_misspelt_field_is_not_valid() -> None:
    objects = all_on()
    broken = named(objects, "Deployment", "blue-lorapool-nodes")
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


def test_helm_s_own_linter_finds_no_fault() -> None:
    report = helm.lint(CHART, EVERYTHING, strict=True)
    assert report["errors"] == []
    assert {message["error"] for message in report["messages"]} <= {"icon is recommended"}


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"node": {"replica": 3}}, id="a_name_that_does_not_exist"),
        pytest.param({"node": {"replicas": "two"}}, id="text_for_a_number"),
        pytest.param({"node": {"env": {"LORAPOOL_LISTEN": "0.0.0.0:1"}}}, id="what_the_chart_sets"),
        pytest.param({"node": {"env": {"PATH": "/tmp"}}}, id="a_variable_of_somebody_else"),
        pytest.param({"image": {"tag": "latest"}}, id="an_image_that_moves"),
        pytest.param({"gateway": {"image": "envoyproxy/envoy:latest"}}, id="a_gateway_that_moves"),
        pytest.param({"redis": {"url": "redis://:hunter2@redis"}}, id="a_password_in_a_url"),
        pytest.param({"store": {"bucket": "A"}}, id="a_bucket_that_s3_would_refuse"),
        pytest.param({"autoscaling": {"enabled": True, "maxReplicas": 1}}, id="fewer_than_least"),
        pytest.param(
            {"node": {"env": {"LORAPOOL_TLS_CERT_FILE": "/x"}}}, id="tls_that_probes_do_not_speak"
        ),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError):
        rendered(values)


def test_every_default_is_in_the_schema_and_every_value_of_the_schema_has_a_default() -> None:
    with helm.Chart.load(CHART) as chart:
        defaults, schema = chart.values, chart.schema
    assert schema is not None
    assert list(_missing(defaults, schema)) == []
    del schema["properties"]["node"]["properties"]["env"]
    assert list(_missing(defaults, schema)) == ["node.env"]


def _missing(defaults: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Names that only one of the two has; `global` is Helm's."""
    properties = schema.get("properties")
    if properties is None:
        return
    for name in sorted({*defaults, *properties} - {"global"}):
        if name not in defaults or name not in properties:
            yield path + name
        elif isinstance(defaults[name], dict):
            yield from _missing(defaults[name], properties[name], f"{path}{name}.")


def test_the_gateway_s_nodes_are_those_of_this_release() -> None:
    objects = all_on()
    config = gateway_config(objects)
    cluster = next(one for one in config["static_resources"]["clusters"] if one["name"] == "nodes")
    [place] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = place["endpoint"]["address"]["socket_address"]
    service = named(objects, "Service", address["address"])
    assert service["spec"]["clusterIP"] == "None"
    assert address["port_value"] in [port["port"] for port in service["spec"]["ports"]]


def test_a_gateway_configuration_of_one_s_own_goes_in_as_it_is_and_renews_the_pods() -> None:
    def checksum(objects: Objects) -> str:
        gateway = named(objects, "Deployment", "blue-lorapool-gateway")
        text: str = gateway["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        return text

    own = rendered({"gateway": {"config": "admin: {}\n# lorapool-nodes\n"}})
    data = named(own, "ConfigMap", "blue-lorapool-gateway")["data"]
    assert data["envoy.yaml"].strip() == "admin: {}\n# lorapool-nodes"
    assert checksum(own) != checksum(rendered({}))


def test_more_nodes_come_when_requests_wait_by_a_metric_that_the_readme_says_how_to_make() -> None:
    objects = all_on()
    [scaler] = of_kind(objects, "HorizontalPodAutoscaler")
    assert "replicas" not in named(objects, "Deployment", "blue-lorapool-nodes")["spec"]
    [metric] = scaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    readme = (CHART / "README.md").read_text()
    rules = yaml.safe_load(readme.partition("```yaml\n")[2].partition("```")[0])
    [rule] = rules["rules"]["custom"]
    assert rule["name"]["as"] == name
    told = (ROOT / "docs" / "metrics.md").read_text()
    assert f"`{rule['seriesQuery'].partition('{')[0]}`" in told


def test_secrets_come_from_secrets_and_a_gpu_node_says_that_it_must_have_one() -> None:
    objects = all_on()
    node = next(one for one in containers(objects) if one["name"] == "node")
    secret = {one["name"] for one in node["env"] if "valueFrom" in one}
    assert secret == {"LORAPOOL_S3_ACCESS_KEY", "LORAPOOL_S3_SECRET_KEY", "LORAPOOL_REDIS_PASSWORD"}
    assert environment(node)["LORAPOOL_DEVICE"] == "cuda"
    assert node["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert node["image"].endswith("-cuda")
    plain = next(one for one in containers(rendered({})) if one["name"] == "node")
    assert not any("valueFrom" in one for one in plain["env"])
    assert environment(plain)["LORAPOOL_DEVICE"] == "cpu"


def test_only_settings_that_the_node_has_are_set() -> None:
    objects = all_on()

    known = {
        f"LORAPOOL_{name.upper()}"
        for name in (*NodeSettings.model_fields, *StoreSettings.model_fields)
    }
    node = next(one for one in containers(objects) if one["name"] == "node")
    assert {one["name"] for one in node["env"]} <= known
