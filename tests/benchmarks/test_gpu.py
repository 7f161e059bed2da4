"""The GPU benchmark runs to its end without a card, so that a first run on one is no rehearsal."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import run as run_module
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.checks import Check
from benchmarks.gpu.marks import table
from benchmarks.gpu.results import Figure, Results

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
ROWS = {
    "steps",
    "lora",
    "graphs",
    "linears",
    "promotion",
    "steady",
    "layers",
    "fidelity",
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
    for name, row in found["rows"].items():
        assert row["figures"], name
        assert not row.keys() & {"failed", "skipped", "running"}, (name, row)
    assert found["checks"].keys() == {"LoRA", "attention", "pointwise", "linears", "captured"}
    assert all(check["holds"] for family in found["checks"].values() for check in family)
    fidelity = found["rows"]["fidelity"]["figures"][0]
    assert (fidelity["value"], fidelity["holds"]) == (0, True)
    numbers = {
        figure["name"].split()[0] for row in found["rows"].values() for figure in row["figures"]
    }
    assert {str(number) for number in range(1, 14)} <= numbers
    assert "times mean nothing" in found["about"]["card"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gpu.json"


def rows_in(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["rows"]
    return found


def test_what_was_measured_before_a_row_fails_or_time_is_up_is_in_the_file(path: Path) -> None:
    results = Results(path, {"card": "x"}, seconds=60)

    def broken() -> Iterator[Figure]:
        yield Figure("3", 2.0, 8)
        assert rows_in(path)["two"]["figures"][0]["value"] == 2.0
        assert rows_in(path)["two"]["running"]
        raise RuntimeError("out of memory")

    assert results.row("one", lambda: [Figure("3", 3.5, 8)], needs=1)
    assert not results.row("two", broken, needs=1)
    assert results.row("three", broken, needs=120)
    rows = rows_in(path)
    assert rows["one"]["figures"][0]["holds"]
    assert not rows["one"]["figures"][0]["reaches_stretch"]
    assert rows["two"]["failed"] == "RuntimeError: out of memory"
    assert rows["two"]["figures"][0]["value"] == 2.0
    assert "skipped" in rows["three"]
    assert not results.complete


def test_another_process_goes_on_behind_the_row_that_ended_the_first(path: Path) -> None:
    first = Results(path, {}, seconds=60)
    first.check("LoRA", [Check("shrink", 0.0)])
    first.row("one", lambda: [Figure("3", 3.5, 8)], needs=1)

    def killed() -> Iterator[Figure]:
        yield Figure("3", 3.0, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.row("two", killed, needs=1)
    second = Results(path, {}, seconds=60)
    second.go_on()
    second.write()
    assert list(second.rows) == ["one", "two"]
    assert list(second.families) == ["LoRA"]
    assert rows_in(path)["one"]["figures"][0]["value"] == 3.5
    assert rows_in(path)["two"]["failed"] == "the process ended"


def test_a_family_of_kernels_that_is_wrong_or_crashes_stops_what_needs_it_and_no_more(
    path: Path,
) -> None:
    results = Results(path, {}, seconds=60)

    def crashes() -> Iterator[Check]:
        yield Check("fits", 0.0)
        raise RuntimeError("illegal memory access")

    assert results.check("linears", [Check("8 rows", 1e-3)])
    assert results.check("LoRA", [Check("few rows", 1e-3), Check("many rows", float("nan"))])
    assert not results.check("attention", crashes())
    assert results.wrong(("linears", "LoRA", "attention", "captured")) == [
        "LoRA",
        "attention",
        "captured",
    ]


def test_a_row_that_takes_the_device_with_it_leaves_the_others_to_a_new_process(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, argv: started.append(argv))
    monkeypatch.setattr(run_module, "run", lambda *_, **__: run_module.LOST)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    argv = ["gpu", "--device", "cpu", "--tiny", "--out", str(path), "--go-on"]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    ((_, _, _, *again),) = started
    assert again.count("--go-on") == 1
    assert again[: again.index("--go-on")] == argv[1:-1]
    assert again[-2] == "--seconds"
    assert 400 < float(again[-1]) <= 480


def test_the_table_of_the_decision_is_that_of_the_marks() -> None:
    page = (ROOT / "docs/decisions/0014-gpu-path.md").read_text()
    assert "\n".join(table()) in page, "python -m benchmarks.gpu.marks prints it"
