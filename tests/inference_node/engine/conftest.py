"""Nodes for an operator to give orders to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.operated_node import FEW, publish_all
from tests.inference_node.harness import Node


@pytest.fixture
def roomy(start_tiny: StartTiny, tmp_path: Path) -> Node:
    """A pool with room for all."""
    node = start_tiny()
    publish_all(node, tmp_path)
    return node


@pytest.fixture
def small(start_tiny: StartTiny, tmp_path: Path) -> Node:
    """A pool of three adapters, none of it kept for swaps."""
    page_bytes = start_tiny().engine.info().pool.page_bytes
    node = start_tiny(pool_bytes=FEW * page_bytes, page_wait_seconds=0.01, headroom_pages=0)
    publish_all(node, tmp_path)
    return node
