"""Every block of the KV cache is free or in one table, and block 0 is nobody's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_node.config import EngineConfig
from inference_node.engine.kv_blocks import BlockAllocator
from inference_node.errors import BadConfiguration
from inference_node.request import FinishReason
from tests.inference_node.conftest import StartTiny


@pytest.mark.parametrize(
    ("tokens", "blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)]
)
def test_tokens_need_whole_blocks(tokens: int, blocks: int) -> None:
    assert BlockAllocator(8, block_tokens=16).needed(tokens) == blocks


def test_all_blocks_can_be_had_and_block_0_is_not_one_of_them() -> None:
    blocks = BlockAllocator(8, block_tokens=16)
    assert sorted(blocks.allocate(8)) == list(range(1, 9))
    assert blocks.free == 0
    assert blocks.can_allocate(0)
    assert not blocks.can_allocate(1)


def test_taking_more_than_there_are_fails_and_takes_none() -> None:
    blocks = BlockAllocator(8, block_tokens=16)
    with pytest.raises(AssertionError):
        blocks.allocate(9)
    assert blocks.free == 8
    blocks.check_integrity([])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40))
def test_any_order_of_taking_and_giving_back_adds_up(steps: list[tuple[bool, int]]) -> None:
    blocks = BlockAllocator(10, block_tokens=4)
    tables: list[list[int]] = []
    for take, count in steps:
        if take and blocks.can_allocate(count):
            tables.append(blocks.allocate(count))
        elif tables:
            blocks.release(tables.pop(count % len(tables)))
        blocks.check_integrity(tables)
        assert blocks.free == 10 - sum(map(len, tables))


@pytest.mark.parametrize("mistake", ["given back twice", "lost", "shared", "block 0 handed out"])
def test_control_blocks_that_do_not_add_up_are_seen(mistake: str) -> None:
    blocks = BlockAllocator(10, block_tokens=4)
    table = blocks.allocate(3)
    tables = [table]
    if mistake == "given back twice":
        blocks.release(table[:1])
    elif mistake == "lost":
        tables = [table[1:]]
    elif mistake == "shared":
        tables.append(table[:1])
    else:
        table[0] = 0
    with pytest.raises(AssertionError, match="add up"):
        blocks.check_integrity(tables)


def test_an_answer_may_fill_every_block_and_then_ends_when_the_cache_is_no_whole_number_of_them(
    start_tiny: StartTiny,
) -> None:
    node = start_tiny(kv_tokens=45, block_tokens=16)
    assert node.engine.info().max_context == 32
    answer = node.ask(prompt=range(3, 30), tokens=40, deadline_in=20.0).completed
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 32
    node.settle()


def test_a_cache_smaller_than_one_block_is_refused() -> None:
    with pytest.raises(BadConfiguration, match="kv_tokens"):
        EngineConfig(base_model="any", kv_tokens=15, block_tokens=16)
