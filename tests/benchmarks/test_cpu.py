from __future__ import annotations

import json
import queue
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu.figures import RATIOS, TARGETS, figure, percentile
from benchmarks.cpu.floors import Floor
from benchmarks.cpu.ours import Engine
from benchmarks.cpu.report import print_table, write
from benchmarks.cpu.swap import swap
from benchmarks.cpu.systems import LOADS, Shape, tokens_a_second
from benchmarks.cpu.wire import Worker, WorkerFailed
from inference_node.model.default_base import ensure_default_base
from inference_node.request import Completed, Event
from tests.inference_node.tiny import make_checkpoint

FOUND: dict[str, Any] = {
    "figures": {},
    "skipped": {},
    "versions": {},
    "rates": {},
    "configuration": {"prompt_tokens": 32, "new_tokens": 64},
}


def entry(key: str) -> dict[str, Any]:
    return figure(key, [0.5, 0.7, 0.6], at_floor=1.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    base = make_checkpoint(folder, tokenizer_from=ensure_default_base())
    engine = Engine({"base": str(base), "pool_adapters": 64, "host_adapters": 64})
    engine.publish(LOADS["distinct16"].names(), [8], 0, "")
    yield engine
    engine.loop.stop()


def test_every_figure_is_in_the_file_under_its_own_key_and_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {one.key: entry(one.key) for one in TARGETS}
    whole = write(tmp_path / "cpu.json", {**FOUND, "figures": figures}, merge=False)
    print_table(whole)
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "cpu.json").read_text())
    for one in TARGETS:
        assert written[one.key]["value"] == 0.6
        assert written[one.key]["spread"] == [0.5, 0.7]
        assert one.key in printed


def test_a_row_that_a_missing_peer_leaves_out_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skipped = {"distinct16_over_vllm": "VLLM_PYTHON names no interpreter"}
    whole = write(tmp_path / "cpu.json", {**FOUND, "skipped": skipped}, merge=False)
    print_table(whole)
    assert "skipped: VLLM_PYTHON names no interpreter" in capsys.readouterr().out


def test_a_row_measured_earlier_stays_and_is_marked_as_kept(tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    earlier = {"switch_us": entry("switch_us"), "cliff_ttft": entry("cliff_ttft")}
    write(out, {**FOUND, "figures": earlier}, merge=False)
    write(out, {**FOUND, "figures": {"switch_us": entry("switch_us")}}, merge=True)
    written = json.loads(out.read_text())
    assert written["cliff_ttft"]["kept"]
    assert "kept" not in written["switch_us"]


@pytest.mark.parametrize(
    ("key", "value", "met"),
    [
        ("distinct16_over_base16", 0.79, "no"),
        ("distinct16_over_base16", 0.80, "reach"),
        ("distinct16_over_base16", 0.92, "stretch"),
        ("cliff_ttft", 3.1, "no"),
        ("cliff_ttft", 1.5, "stretch"),
    ],
)
def test_a_figure_is_held_against_its_own_bars(key: str, value: float, met: str) -> None:
    assert figure(key, [value])["met"] == met


def test_answers_of_another_length_than_asked_give_no_figure() -> None:
    whole = {"seconds": 2.0, "lengths": [8, 8]}
    assert tokens_a_second(whole, requests=2, new=8) == 8.0
    with pytest.raises(WorkerFailed, match="8 were asked"):
        tokens_a_second({**whole, "lengths": [8, 7]}, requests=2, new=8)


def test_each_ratio_is_of_loads_that_exist_and_each_peer_answers_the_same_prompts() -> None:
    for ratio in RATIOS.values():
        assert {ratio.load, ratio.other} <= set(LOADS)
    shape = Shape(prompt=4, new=1)
    assert shape.prompts(3, seed=1) == shape.prompts(3, seed=1)
    assert shape.prompts(3, seed=1) != shape.prompts(3, seed=2)


def test_the_floor_counts_every_adapter_once_and_every_row_always() -> None:
    facts = {
        "linear_parameters": 100,
        "adapter_parameters_r8": 10,
        "base_bytes": 60,
        "head_parameters": 5,
        "kv_bytes_a_token": 2,
    }
    slow_memory = Floor(facts, {"read_bytes_s": 1.0, "bf16_operations_s": 1e9})
    slow_cores = Floor(facts, {"read_bytes_s": 1e9, "bf16_operations_s": 1.0})
    step = {"pages": 3, "row_pages": 1.0, "context": 7.0, "samples": 4}
    assert slow_memory.step_s(4, **step) == 60 + 3 * 20 + 4 * 7 * 2  # type: ignore[arg-type]
    assert slow_cores.step_s(4, **step) == 2 * 4 * (100 + 10) + 2 * 4 * 5  # type: ignore[arg-type]


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([float(n) for n in range(100)], 0.99) == 99.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_a_worker_is_stopped_between_its_turns_and_names_what_went_wrong(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        from benchmarks.cpu.wire import serve

        def start():
            print("this is not an answer")
            return {"ready": 1}, {"double": lambda n: 2 * n, "fail": lambda: 1 / 0}

        serve(start)
    """)
    worker = Worker([sys.executable, "-c", program], log=tmp_path / "log")
    try:
        assert worker.facts == {"ready": 1}
        assert worker.ask("double", n=21) == 42
        assert _state(worker.process.popen.pid) == "T"
        with pytest.raises(WorkerFailed, match="ZeroDivisionError"):
            worker.ask("fail")
    finally:
        worker.close()


def test_a_worker_that_never_comes_up_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="none_such"):
        Worker([sys.executable, "-c", "import none_such"], log=tmp_path / "log")


def _state(pid: int) -> str:
    """Of a process a signal was sent to: the kernel may take a moment to stop it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            break
    return state


@pytest.mark.model
def test_the_parts_of_a_step_are_timed_below_a_running_engine(engine: Engine) -> None:
    if not engine.watch.model_facts()["steps_in_one_call"]:
        pytest.skip("steps in one call need AVX512-BF16 and a C compiler")
    names, shape = LOADS["distinct16"].names(), Shape(prompt=8, new=12)
    found = engine.watch.parts(engine, prompts=shape.prompts(16, seed=1), adapters=names, new=12)
    parts = ("base_linears", "attention", "lora", "lm_head")
    assert all(found[part] > 0 for part in parts)
    assert sum(found[part] for part in parts) < found["step"]
    assert found["steps"] > 0
    alone = engine.watch.parts(
        engine, prompts=shape.prompts(16, seed=2), adapters=[""] * 16, new=12
    )
    assert alone["lora"] == 0


@pytest.mark.model
def test_what_is_published_below_running_requests_is_what_the_node_serves_next(
    engine: Engine,
) -> None:
    names = LOADS["distinct16"].names()
    prompts = Shape(prompt=8, new=150).prompts(16, seed=3)
    busy = swap(engine, prompts=prompts, adapters=names, new=150, every_s=0.02, seed=900)
    assert busy["published"] > 0
    assert len(busy["gaps"]) > 100
    deadline = time.monotonic() + 10
    while _generation(engine, names[1]) < 2:
        assert time.monotonic() < deadline
    quiet = swap(engine, prompts=prompts, adapters=names, new=20, every_s=0.0, seed=0)
    assert quiet["published"] == 0


def _generation(engine: Engine, adapter: str) -> int:
    ended: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit([5, 6, 7], adapter, 1, ended.put)
    event = ended.get(timeout=10)
    assert isinstance(event, Completed)
    return event.served.generation


@pytest.mark.model
def test_traffic_keeps_so_many_requests_in_flight_and_ends_with_every_answer(
    engine: Engine,
) -> None:
    shape = Shape(prompt=8, new=3)
    prompts, names = shape.prompts(40, seed=5), [f"a{index % 16}" for index in range(40)]
    answer = engine.traffic(prompts, names, 3, 4)
    assert answer["lengths"] == [3] * 40
    assert len(answer["ttft"]) == 40
    assert len(engine.latencies(prompts[:4], names[:4])["seconds"]) == 4
