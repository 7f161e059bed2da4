"""The chart, rendered by Helm itself and held against Kubernetes' own schemas, without a cluster.

As in test_compose.py each promise is a function that lists its breaches: none in what is rendered,
one where the promise was broken on purpose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from adapter_store.settings import StoreSettings
from inference_node.cli.settings import NodeSettings

helm = pytest.importorskip("helm_python", reason="Helm's wheel is not made for this platform")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "lorapool"
OLDEST, NEWEST = "1.30", "1.37"
OPERATORS = {"ServiceMonitor", "PrometheusRule"}
"""Their schemas are the Prometheus operator's, not Kubernetes'."""
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


@pytest.fixture
def all_on() -> Objects:
    return copy.deepcopy(as_rendered()["everything on"])


def of_kind(objects: Objects, kind: str) -> Objects:
    return [found for found in objects if found["kind"] == kind]


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    return next(found for found in of_kind(objects, kind) if found["metadata"]["name"] == name)


def pods(objects: Objects) -> Iterator[dict[str, Any]]:
    for found in of_kind(objects, "Deployment"):
        yield found["spec"]["template"]


def containers(objects: Objects) -> Iterator[dict[str, Any]]:
    for pod in pods(objects):
        yield from pod["spec"].get("initContainers", [])
        yield from pod["spec"]["containers"]


@pytest.mark.parametrize(
    ("version", "way"), [(OLDEST, "everything on"), *((NEWEST, way) for way in WAYS)]
)
def test_what_is_rendered_is_valid_for_the_oldest_and_the_newest_kubernetes(
    version: str, way: str
) -> None:
    for found in as_rendered()[way]:
        if found["kind"] not in OPERATORS:
            kubernetes_validate.validate(found, version, strict=True)


def test_a_misspelt_field_is_not_valid(all_on: Objects) -> None:
    broken = named(all_on, "Deployment", "blue-lorapool-nodes")
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


def privileged(objects: Objects) -> list[str]:
    """Containers that could do more than they need."""
    breaches = [
        container["name"]
        for container in containers(objects)
        if container["securityContext"].get("allowPrivilegeEscalation") is not False
        or container["securityContext"].get("readOnlyRootFilesystem") is not True
        or container["securityContext"].get("capabilities") != {"drop": ["ALL"]}
    ]
    return breaches + [
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for pod in pods(objects)
        if pod["spec"]["securityContext"].get("runAsNonRoot") is not True
        or pod["spec"]["securityContext"].get("seccompProfile") != {"type": "RuntimeDefault"}
        or pod["spec"].get("automountServiceAccountToken") is not False
    ]


def unlimited(objects: Objects) -> list[str]:
    """Containers without a bound on memory, and volumes that could fill a machine's disk."""
    breaches = [
        container["name"]
        for container in containers(objects)
        if "memory" not in container["resources"].get("limits", {})
    ]
    return breaches + [
        volume["name"]
        for pod in pods(objects)
        for volume in pod["spec"]["volumes"]
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]
    ]


def hasty(objects: Objects) -> list[str]:
    """Nodes that would be killed before the answers they run are finished."""
    return [
        container["name"]
        for pod in pods(objects)
        for container in pod["spec"]["containers"]
        for seconds in [_environment(container)]
        if container["name"] == "node"
        and pod["spec"]["terminationGracePeriodSeconds"]
        <= float(seconds["LORAPOOL_DRAIN_DELAY"]) + float(seconds["LORAPOOL_DRAIN_SECONDS"])
    ]


def unprobed(objects: Objects) -> list[str]:
    """Nodes whose health is not asked over gRPC, each probe for its own service."""
    wanted = {"startup": "readiness", "readiness": "readiness", "liveness": "liveness"}
    return [
        probe
        for container in containers(objects)
        if container["name"] == "node"
        for probe, service in wanted.items()
        if container.get(f"{probe}Probe", {}).get("grpc") != {"port": 50051, "service": service}
    ]


def open_to_all(objects: Objects) -> list[str]:
    """Components that a pod may reach, or that reach out, without a rule that says so."""
    ruled = {
        policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for policy in of_kind(objects, "NetworkPolicy")
        if policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        and all(rule.get("from") for rule in policy["spec"]["ingress"])
        and all(rule.get("ports") for rule in policy["spec"]["egress"])
    }
    found = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods(objects)}
    return sorted(found - ruled)


def astray(objects: Objects) -> list[str]:
    """Selectors that select no pod of this release."""
    labels = [pod["metadata"]["labels"] for pod in pods(objects)]
    selectors = {
        f"{found['kind']}/{found['metadata']['name']}": selector
        for found in objects
        for selector in [_selector(found)]
        if selector
    }
    return [
        name
        for name, selector in selectors.items()
        if not any(selector.items() <= pod.items() for pod in labels)
    ]


def _selector(found: dict[str, Any]) -> dict[str, str]:
    spec = found.get("spec", {})
    selector: dict[str, Any] = spec.get("podSelector") or spec.get("selector") or {}
    labels: dict[str, str] = selector.get("matchLabels", selector)
    return labels


def _environment(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container.get("env", [])}


def _set(path: str, value: object) -> Callable[[Objects], None]:
    """Break the node's Deployment, or with a name before it another object."""

    def change(objects: Objects) -> None:
        kind, name, *keys = path.split("/")
        place: Any = named(objects, kind, name)
        for key in keys[:-1]:
            place = place[int(key)] if key.isdigit() else place[key]
        place[keys[-1]] = value

    return change


_POD = "Deployment/blue-lorapool-nodes/spec/template/spec"


@pytest.mark.parametrize(
    ("breaches", "break_it"),
    [
        pytest.param(
            privileged,
            _set(f"{_POD}/containers/0/securityContext/readOnlyRootFilesystem", False),
            id="every_root_file_system_is_read_only",
        ),
        pytest.param(
            privileged,
            _set(f"{_POD}/securityContext/runAsNonRoot", False),
            id="nothing_runs_as_root",
        ),
        pytest.param(
            unlimited,
            _set(f"{_POD}/containers/0/resources/limits", {}),
            id="every_container_has_a_memory_limit",
        ),
        pytest.param(
            unlimited,
            _set(f"{_POD}/volumes/0/emptyDir", {}),
            id="no_volume_can_fill_the_disk",
        ),
        pytest.param(
            hasty,
            _set(f"{_POD}/terminationGracePeriodSeconds", 65),
            id="a_node_may_finish_what_it_runs",
        ),
        pytest.param(
            unprobed,
            _set(f"{_POD}/containers/0/livenessProbe/grpc/service", "readiness"),
            id="a_draining_node_is_not_killed_for_draining",
        ),
        pytest.param(
            open_to_all,
            _set("NetworkPolicy/blue-lorapool-nodes/spec/ingress", [{"from": []}]),
            id="nobody_but_the_gateway_calls_a_node",
        ),
        pytest.param(
            astray,
            _set(
                "PodDisruptionBudget/blue-lorapool-nodes/spec/selector", {"matchLabels": {"a": "b"}}
            ),
            id="every_selector_selects_something",
        ),
    ],
)
def test_the_chart_keeps_its_promise(
    all_on: Objects,
    breaches: Callable[[Objects], list[str]],
    break_it: Callable[[Objects], None],
) -> None:
    for objects in as_rendered().values():
        if breaches is not open_to_all or of_kind(objects, "NetworkPolicy"):
            assert breaches(objects) == []
    break_it(all_on)
    assert breaches(all_on) != []


def test_the_gateway_s_nodes_are_those_of_this_release(all_on: Objects) -> None:
    config = yaml.safe_load(
        named(all_on, "ConfigMap", "blue-lorapool-gateway")["data"]["envoy.yaml"]
    )
    cluster = next(one for one in config["static_resources"]["clusters"] if one["name"] == "nodes")
    [place] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = place["endpoint"]["address"]["socket_address"]
    service = named(all_on, "Service", address["address"])
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


def test_more_nodes_come_when_requests_wait_by_a_metric_that_the_readme_says_how_to_make(
    all_on: Objects,
) -> None:
    [scaler] = of_kind(all_on, "HorizontalPodAutoscaler")
    assert "replicas" not in named(all_on, "Deployment", "blue-lorapool-nodes")["spec"]
    [metric] = scaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    readme = (CHART / "README.md").read_text()
    rules = yaml.safe_load(readme.partition("```yaml\n")[2].partition("```")[0])
    [rule] = rules["rules"]["custom"]
    assert rule["name"]["as"] == name
    told = (ROOT / "docs" / "metrics.md").read_text()
    assert f"`{rule['seriesQuery'].partition('{')[0]}`" in told


def test_secrets_come_from_secrets_and_a_gpu_node_says_that_it_must_have_one(
    all_on: Objects,
) -> None:
    node = next(one for one in containers(all_on) if one["name"] == "node")
    secret = {one["name"] for one in node["env"] if "valueFrom" in one}
    assert secret == {"LORAPOOL_S3_ACCESS_KEY", "LORAPOOL_S3_SECRET_KEY", "LORAPOOL_REDIS_PASSWORD"}
    assert _environment(node)["LORAPOOL_DEVICE"] == "cuda"
    assert node["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert node["image"].endswith("-cuda")
    plain = next(one for one in containers(rendered({})) if one["name"] == "node")
    assert not any("valueFrom" in one for one in plain["env"])
    assert _environment(plain)["LORAPOOL_DEVICE"] == "cpu"


def test_only_settings_that_the_node_has_are_set(all_on: Objects) -> None:

    known = {
        f"LORAPOOL_{name.upper()}"
        for name in (*NodeSettings.model_fields, *StoreSettings.model_fields)
    }
    node = next(one for one in containers(all_on) if one["name"] == "node")
    assert {one["name"] for one in node["env"]} <= known
