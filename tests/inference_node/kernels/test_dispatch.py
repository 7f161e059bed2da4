"""The choice between 4-bit and written-out weights follows the measured times and the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from inference_node.kernels.quant4 import GemmLinear, dequantise
from inference_node.kernels.quant4.dispatch import (
    ROWS,
    Dispatch,
    LinearShape,
    Timing,
    choose,
    read_timings,
    write_timings,
)

WIDE, TALL, SMALL = LinearShape(28672, 4096), LinearShape(4096, 14336), LinearShape(128, 64)


def timings(shape: LinearShape, *, faster_at: dict[int, float]) -> list[Timing]:
    """Written out saves so many seconds at these rows, and loses one at the others."""
    return [Timing(shape, rows, 2.0, 2.0 - faster_at.get(rows, -1.0)) for rows in ROWS]


def test_rows_take_the_faster_form_and_others_the_choice_of_the_next_one_up() -> None:
    found = choose(timings(TALL, faster_at={8: 0.5, 16: 0.5}), {TALL: 1}, budget=10**12)
    taken = [rows for rows in range(1, 40) if found.takes_written_out(TALL, rows)]
    assert taken == list(range(5, 17))
    assert not found.takes_written_out(TALL, 10**6), "beyond what was measured: the largest"
    assert not found.takes_written_out(WIDE, 8)


def test_the_most_seconds_for_a_byte_come_first_while_the_budget_lasts() -> None:
    some = [*timings(WIDE, faster_at={8: 1.0}), *timings(TALL, faster_at={8: 0.9})]
    counts = {WIDE: 32, TALL: 32}
    both = 32 * (WIDE.bytes_written_out + TALL.bytes_written_out)
    assert set(choose(some, counts, budget=both).written_out) == {WIDE, TALL}
    assert set(choose(some, counts, budget=both - 1).written_out) == {TALL}
    assert choose(some, counts, budget=32 * TALL.bytes_written_out - 1).written_out == {}
    assert choose(some, counts, budget=0).written_out == {}


def test_a_shape_that_never_gains_is_not_written_out_however_much_room_there_is() -> None:
    assert choose(timings(WIDE, faster_at={}), {WIDE: 1}, budget=10**15).written_out == {}


def test_times_are_found_again_and_only_for_the_very_shapes_they_were_taken_of(
    tmp_path: Path,
) -> None:
    path = tmp_path / "deep" / "times.json"
    taken = [*timings(WIDE, faster_at={1: 0.25}), *timings(TALL, faster_at={})]
    assert read_timings(path, [WIDE, TALL]) is None
    write_timings(path, taken)
    assert read_timings(path, [WIDE, TALL]) == taken
    assert read_timings(path, [WIDE]) is None
    assert read_timings(path, [WIDE, TALL, SMALL]) is None


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"shape": [1]}]', "null"])
def test_a_damaged_file_of_times_is_as_good_as_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(content)
    assert read_timings(path, [WIDE]) is None


def linear() -> Linear4bit:
    torch.manual_seed(0)
    made = Linear4bit(
        64,
        128,
        bias=True,
        compute_dtype=torch.float32,
        compress_statistics=False,
        quant_type="nf4",
    )
    return made.to("cpu").eval().requires_grad_(False)


def test_both_forms_of_a_linear_give_the_product_of_its_exact_weights() -> None:
    made = linear()
    exact, bias = dequantise(made, dtype=torch.float32), made.bias
    ours = GemmLinear(made)
    x = torch.randn(2, 3, 64)
    expected = torch.nn.functional.linear(x, exact, bias)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)
    ours.write_out(Dispatch({ours.shape: frozenset({8})}))
    assert ours.dense is not None
    ours.bias.data = ours.bias.data.bfloat16()
    found = ours(x.bfloat16())
    assert (found.float() - expected).norm() < 0.01 * expected.norm()


def test_weights_are_written_out_for_the_shapes_of_the_choice_and_dropped_again() -> None:
    ours = GemmLinear(linear())
    ours.write_out(Dispatch({WIDE: frozenset(ROWS)}))
    assert ours.dense is None
    ours.write_out(Dispatch({ours.shape: frozenset({1})}))
    assert ours.dense is not None
    ours.dense.zero_()
    few, more = torch.ones(1, 64, dtype=torch.bfloat16), torch.ones(2, 64)
    ours.bias = None
    assert not ours(few).any(), "one row takes what was written out"
    assert ours(more).any(), "two rows take the 4-bit weights"
    ours.write_out(Dispatch({}))
    assert ours.dense is None
