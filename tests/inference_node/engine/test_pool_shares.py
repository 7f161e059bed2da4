"""A pool whose groups of linears have different numbers of pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_node.errors import AdapterIncompatible, BadConfiguration
from tests.inference_node.conftest import StartTiny
from tests.inference_node.tiny import make_adapter

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
NAMES = tuple(f"a{index}" for index in range(7))


def test_adapters_of_attention_fill_the_pages_that_others_would_leave_empty(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    shares = {"gate_proj": 0.1, "down_proj": 0.1}
    node = start_tiny(pool_bytes=2**18, pool_shares=shares)
    modules = dict(node.card.modules)
    for seed, name in enumerate(NAMES):
        made = make_adapter(tmp_path / name, modules, rank=8, targets=ATTENTION, seed=seed)
        node.publish(name, made)
    for name in NAMES:
        assert node.ask(name, [5, 6], tokens=1).wait().tokens
    node.settle()
    pool = node.engine.info().pool
    assert pool.resident == len(NAMES) > 2**18 // pool.page_bytes, "as many as equal pages hold"
    node.publish("wide", make_adapter(tmp_path / "wide", modules, rank=32))
    error = node.ask("wide", [5, 6], tokens=1).error
    assert isinstance(error, AdapterIncompatible)
    assert "gate_proj+up_proj" in str(error)
    assert "LORAPOOL_POOL_SHARES" in error.hint


def test_a_share_for_a_linear_that_the_base_lacks_refuses_the_start(start_tiny: StartTiny) -> None:
    with pytest.raises(BadConfiguration, match="dwon_proj") as refused:
        start_tiny(pool_shares={"dwon_proj": 0.5})
    assert "down_proj" in refused.value.hint
