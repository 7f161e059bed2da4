"""The benchmark of what counting costs still runs against the books that it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import telemetry


def test_a_step_and_a_scrape_are_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "RESULTS", tmp_path)
    monkeypatch.setattr(telemetry, "RESIDENTS", 10)
    monkeypatch.setattr(telemetry, "ON_HOST", 10)
    monkeypatch.setattr(telemetry, "REPEATS", 1)
    telemetry.main()
    found = json.loads((tmp_path / "telemetry.json").read_text())
    assert found["step_us"] > 0
    assert found["scrape"]["engine_thread_ms"] > 0
