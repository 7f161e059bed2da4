"""The Triton programs compile for cards that are not here, and read memory as a card wants it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""What a program may have of shared memory, by capability: CUDA's programming guide."""
REGISTERS = 255


@pytest.fixture(scope="module", params=[90])
def launches(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every launch of a decode step and a prompt of an 8B model, compiled; in a process of its own,
    where Triton does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-m", "tests.inference_node.kernels.compiled", str(request.param)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_program_is_among_what_is_compiled(launches: list[dict[str, Any]]) -> None:
    assert {launch["program"] for launch in launches} == {
        "shrink_pairs",
        "shrink_tiles",
        "expand_runs",
        "expand_tiles",
        "write_rows",
        "attend_split",
        "join_splits",
        "add_norm_rows",
        "rotate_heads",
        "silu_times_rows",
    }


def test_no_program_needs_more_than_a_card_has(launches: list[dict[str, Any]]) -> None:
    for launch in launches:
        assert launch["shared"] <= SHARED[launch["capability"]], launch
        assert launch["registers"] <= REGISTERS, launch


def test_no_program_spills_registers_to_memory(launches: list[dict[str, Any]]) -> None:
    assert [launch for launch in launches if launch["stack"]] == []


def test_pages_caches_and_rows_are_read_16_bytes_at_a_time(launches: list[dict[str, Any]]) -> None:
    for launch in launches:
        if launch["program"] == "rotate_heads":
            continue  # Half a head of one row is less than that for each thread.
        assert launch["bytes_at_once"]["16"], launch
        assert not launch["bytes_at_once"]["2"], launch
