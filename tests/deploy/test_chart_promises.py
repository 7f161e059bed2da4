"""What the chart promises of security, memory, probes and network, in every way to install it.

As in test_compose.py each promise is a function that lists its breaches: none in what is rendered,
one where the promise was broken on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.chart import (
    Objects,
    all_on,
    as_rendered,
    containers,
    environment,
    gateway_config,
    named,
    of_kind,
    pods,
)


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


def choked(objects: Objects) -> list[str]:
    """Gateways that are killed for their memory before they would turn callers away."""
    return [
        container["name"]
        for container in containers(objects)
        if container["name"] == "envoy"
        and _bytes(container["resources"]["limits"]["memory"]) < 1.25 * _heap(objects)
    ]


def _heap(objects: Objects) -> int:
    monitors = gateway_config(objects)["overload_manager"]["resource_monitors"]
    [most] = [
        monitor["typed_config"]["max_heap_size_bytes"]
        for monitor in monitors
        if monitor["name"] == "envoy.resource_monitors.fixed_heap"
    ]
    return int(most)


def _bytes(quantity: str) -> int:
    return int(quantity.removesuffix("Mi")) * 2**20


def hasty(objects: Objects) -> list[str]:
    """Nodes that would be killed before the answers they run are finished."""
    return [
        container["name"]
        for pod in pods(objects)
        for container in pod["spec"]["containers"]
        for seconds in [environment(container)]
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
            choked,
            _set(
                "Deployment/blue-lorapool-gateway/spec/template/spec/containers/0/resources/limits",
                {"memory": "1024Mi"},
            ),
            id="a_gateway_turns_callers_away_before_it_is_killed",
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
    breaches: Callable[[Objects], list[str]],
    break_it: Callable[[Objects], None],
) -> None:
    for objects in as_rendered().values():
        if breaches is not open_to_all or of_kind(objects, "NetworkPolicy"):
            assert breaches(objects) == []
    broken = all_on()
    break_it(broken)
    assert breaches(broken) != []
