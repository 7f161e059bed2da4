"""A gateway before three light nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference_node.gateway.fleet import Gateway, LightNode, light_nodes, running_gateway


@pytest.fixture
def nodes() -> Iterator[list[LightNode]]:
    with light_nodes(3) as nodes:
        yield nodes


@pytest.fixture
def gateway(envoy: Path, nodes: list[LightNode], tmp_path: Path) -> Iterator[Gateway]:
    with running_gateway(tmp_path, [node.address for node in nodes]) as gateway:
        yield gateway
