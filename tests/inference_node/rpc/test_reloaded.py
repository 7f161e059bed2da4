"""Files that are read again: when somebody looks, and what becomes of a change that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_node.errors import BadConfiguration
from inference_node.rpc.reloaded import Reloaded
from tests.inference_node.rpc.test_quotas import Clock


def number_in(path: Path) -> int:
    try:
        return int(path.read_text())
    except ValueError:
        raise BadConfiguration("is no number") from None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "number"
    path.write_text("1")
    return path


def test_the_next_look_sees_a_change_and_a_broken_one_changes_nothing(file: Path) -> None:
    number = Reloaded("file", (file,), lambda: number_in(file))
    for text, expected in (("22", 22), ("two", 22), ("333", 333)):
        file.write_text(text)
        assert number.now == expected


def test_a_file_that_is_looked_at_by_turns_is_in_force_when_its_time_has_come(file: Path) -> None:
    clock = Clock()
    number = Reloaded("file", (file,), lambda: number_in(file), look_every=0.1, clock=clock)
    file.write_text("22")
    clock.now += 0.09
    assert number.now == 1
    clock.now += 0.02
    assert number.now == 22
    file.write_text("333")
    assert number.now == 22
    clock.now += 0.11
    assert number.now == 333
