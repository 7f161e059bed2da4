"""On a card: a captured step is the uncaptured one, also after adapters have changed hands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu.checks import check_attention, check_linears, check_lora, check_steps
from benchmarks.gpu.node import Node
from benchmarks.gpu.sizes import TINY
from inference_node.kernels.backend import choose
from tests.triton_mode import INTERPRETED

pytest.importorskip("triton")


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="no CUDA device")
def test_kernels_and_captured_steps_are_their_references(tmp_path: Path) -> None:
    device = torch.device("cuda")
    backend = choose("fused", device=device, folder=tmp_path)
    node = Node(TINY, backend, device, rows=2, bandwidth=1e12)
    found = [
        *check_lora(TINY, backend, device),
        *check_attention(TINY, backend, device),
        *check_linears(node),
        *check_steps(node, 2),
    ]
    assert [check for check in found if not check.holds] == []
