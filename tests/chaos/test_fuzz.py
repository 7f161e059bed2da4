"""The engines of the fuzzing row: what they find is told so that it can be tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.fuzz.engine import Fuzzed, blindly, guided
from tests.chaos.fuzz.targets import target


def test_a_seeded_bug_is_found_by_coverage_with_the_input_that_shows_it(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    name = target("name")
    found = guided(name, tmp_path / "bugged", seconds=20, seed=0, bugged=True)
    assert _input(found).endswith(b"\n")
    assert "is no reference" in found.finding
    assert guided(name, tmp_path / "sound", seconds=1, seed=0, bugged=False).finding == ""


def test_a_child_that_cannot_run_is_an_error_and_not_a_quiet_row(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    (tmp_path / "corpus").write_text("in the way")
    with pytest.raises(RuntimeError, match="exit code"):
        guided(target("name"), tmp_path, seconds=1, seed=0, bugged=False)


def test_equal_seeds_bend_alike(tmp_path: Path) -> None:
    header = target("header")
    one, two = (blindly(header, seconds=5, seed=3, bugged=True) for _ in range(2))
    assert one.finding
    assert one == two


def _input(found: Fuzzed) -> bytes:
    return bytes.fromhex(found.finding.splitlines()[-1])
