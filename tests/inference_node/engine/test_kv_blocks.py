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


NAMES = [b"one", b"two", b"three", b"four"]


def named(blocks: BlockAllocator, names: list[bytes]) -> list[int]:
    """Blocks just filled with these contents and still held."""
    table = blocks.allocate(len(names))
    for block, name in zip(table, names, strict=True):
        blocks.name(block, name)
    return table


def test_content_stays_to_be_found_when_nobody_holds_it_and_counts_as_room() -> None:
    blocks = BlockAllocator(4, block_tokens=16)
    table = named(blocks, NAMES)
    assert (blocks.free, blocks.kept_among(table)) == (0, 0)
    blocks.release(table)
    assert (blocks.free, blocks.kept_among(table)) == (4, 4)
    assert blocks.find([*NAMES, b"five"]) == table
    assert blocks.find([b"none", *NAMES]) == []
    blocks.hold(table[:2])
    assert blocks.free == 2
    blocks.check_integrity([table[:2]])


def test_a_block_that_several_hold_is_room_only_when_the_last_lets_go() -> None:
    blocks = BlockAllocator(4, block_tokens=16)
    table = named(blocks, NAMES[:2])
    blocks.hold(table)
    assert blocks.would_free(table) == 0
    blocks.release(table)
    assert blocks.would_free(table) == 2
    assert blocks.would_free(table, wanted={table[0]}) == 1
    blocks.check_integrity([table])
    assert blocks.free == 2
    blocks.release(table)
    assert blocks.free == 4


def test_what_was_left_alone_longest_goes_first_and_of_a_prefix_its_end() -> None:
    blocks = BlockAllocator(4, block_tokens=16)
    first, second = named(blocks, NAMES[:2]), named(blocks, NAMES[2:])
    blocks.release(second)
    blocks.release(first)
    blocks.allocate(1)
    assert blocks.find(NAMES[2:]) == second[:1], "the end of the one that was left first"
    blocks.hold(second[:1])
    blocks.release(second[:1])
    blocks.allocate(1)
    assert blocks.find(NAMES[:2]) == first[:1]
    assert blocks.find(NAMES[2:]) == second[:1], "it was held since"


def test_the_first_block_of_a_name_is_the_one_found_and_a_forgotten_one_is_not() -> None:
    blocks = BlockAllocator(4, block_tokens=16)
    first, second = named(blocks, NAMES[:1]), named(blocks, NAMES[:1])
    assert blocks.find(NAMES[:1]) == first
    blocks.release(second)
    assert blocks.kept_among(second) == 0
    blocks.forget([*first, *second])
    assert blocks.find(NAMES[:1]) == []
    blocks.check_integrity([first])
    blocks.release(first)
    assert (blocks.free, blocks.kept_among(first)) == (4, 0)


@pytest.mark.parametrize("mistake", ["holder", "kept and blank", "two blocks of one name"])
def test_control_a_wrong_entry_about_content_is_seen(mistake: str) -> None:
    blocks = BlockAllocator(4, block_tokens=16)
    table = named(blocks, NAMES[:2])
    blocks.release(table[1:])
    if mistake == "holder":
        blocks._holders[table[0]] += 1
    elif mistake == "kept and blank":
        blocks._blank.append(table[1])
    else:
        blocks._names[table[1]] = NAMES[0]
    with pytest.raises(AssertionError):
        blocks.check_integrity([table[:1]])


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
