"""The GPU benchmark runs to its end without a card, so that a first run on one is no rehearsal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.results import Figure, Results

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
ROWS = {
    "steps",
    "lora",
    "graphs",
    "linears",
    "promotion",
    "idle",
    "own linears",
    "capacity",
    "swaps",
    "peft",
}
ABSENT = ("grpc", "google", "pydantic", "boto3", "botocore", "redis", "cryptography")
"""What a machine that has no more than torch, triton, transformers and bitsandbytes lacks."""


def test_every_row_is_measured_in_the_interpreter_with_nothing_else_installed(
    tmp_path: Path,
) -> None:
    hide = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["rows"].keys() == ROWS
    assert all("figures" in row for row in found["rows"].values()), found["rows"]
    assert found["checks"]
    assert all(check["holds"] for check in found["checks"])
    assert "times mean nothing" in found["about"]["card"]


def test_what_was_measured_before_a_row_fails_or_time_is_up_is_in_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gpu.json"
    results = Results(path, {"card": "x"}, seconds=60)

    def broken() -> list[Figure]:
        assert "one" in json.loads(path.read_text())["rows"]
        raise RuntimeError("out of memory")

    results.row("one", lambda: [Figure("ratio", 2.0, must=1.5, stretch=3.0)], needs=1)
    results.row("two", broken, needs=1)
    results.row("three", broken, needs=120)
    rows = json.loads(path.read_text())["rows"]
    assert rows["one"]["figures"][0]["holds"]
    assert not rows["one"]["figures"][0]["reaches_stretch"]
    assert rows["two"]["failed"] == "RuntimeError: out of memory"
    assert "skipped" in rows["three"]
    assert not results.complete
