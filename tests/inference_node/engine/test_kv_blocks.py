"""Every block of the KV cache is free or in one table, and block 0 is nobody's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_node.engine.kv_blocks import BlockAllocator


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
