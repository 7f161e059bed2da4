"""Every row of the proof suite in its short form: a few seconds each, the same code."""

from __future__ import annotations

from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from adapter_store.settings import Endpoints
from tests.chaos.bench import Bench
from tests.chaos.registry import ROWS, Entry, entry
from tests.chaos.results import books_of


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    def services() -> Endpoints:
        found: Endpoints = request.getfixturevalue("services")
        return found

    return Bench(tmp_path, services)


def in_short(row: Entry) -> ParameterSet:
    """Some take minutes, and more beside others."""
    minutes = 5 + 10 * row.minutes * row.short
    return pytest.param(row, id=row.id, marks=pytest.mark.timeout(60 * minutes))


@pytest.mark.services
@pytest.mark.parametrize("entry", [in_short(row) for row in ROWS])
def test_a_row_in_short_breaks_no_promise_and_catches_every_control(
    entry: Entry, bench: Bench
) -> None:
    row = entry.run(entry.short, 0, bench)
    assert list(row.violations) == []
    assert row.missed == []
    assert row.cases > 0
    assert row.controls, "a zero without a control is not evidence"


def test_a_row_is_written_to_each_of_its_books_or_to_the_one_file_that_is_named() -> None:
    chosen = [entry("T1"), entry("T12"), entry("T15")]
    results = [{"id": one.id} for one in chosen]
    books = books_of(chosen, results, None)
    assert {path.name: [row["id"] for row in rows] for path, rows in books.items()} == {
        "chaos.json": ["T1", "T12"],
        "edge.json": ["T12", "T15"],
    }
    assert books_of(chosen, results, Path("one.json")) == {Path("one.json"): results}
