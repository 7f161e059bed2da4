"""The edge's benchmark in short: what it writes, and that its callers notice what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.edge import __main__ as bench
from benchmarks.edge import h2load
from benchmarks.edge.load import Target


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[bench.Side]:
    side = bench.Side("guarded", tmp_path)
    yield side
    side.worker.close()


def test_a_thousand_streams_are_open_at_once_and_every_ratio_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "edge-bench.json"
    argv = ["edge", "--repetitions", "1", "--seconds", "0.2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", argv)
    cores = bench.os.sched_getaffinity(0)
    try:
        # How fast it is in so short a time, beside other tests, is nothing to hold it to.
        assert bench.main() in (0, 1)
    finally:
        bench.os.sched_setaffinity(0, cores)
    found = json.loads(out.read_text())
    assert all("value" in found[key] or "skipped" in found[key] for key in bench.RATIOS)
    for rate in found["rates"]["stream"].values():
        # Started and completed are messages without a token.
        assert rate["tokens_a_second"] >= 0.98 * rate["a_second"] * bench.TOKENS / (
            bench.TOKENS + 2
        )
    for many in found["open_at_once"].values():
        assert many["ended_well"] == bench.STREAMS
    assert found["machine"]["cores"] == len(cores)


def test_a_bare_server_sends_a_message_for_every_token_and_the_node_no_more(tmp_path: Path) -> None:
    whole = bench.TOKENS + 2
    for name in ("bare", "open"):
        side = bench.Side(name, tmp_path)
        try:
            served = side.measure("stream", 0.05)
        finally:
            side.worker.close()
        a_stream = served.messages / len(served.latencies)
        # Started, its tokens and completed; the node joins tokens that wait for its reader.
        assert a_stream == whole if name == "bare" else 3 <= a_stream <= whole


@pytest.mark.skipif(h2load.program() is None, reason="h2load (nghttp2-client) is not installed")
def test_h2load_is_answered_and_errors_behind_a_200_are_noticed(guarded: bench.Side) -> None:
    guarded.worker.process.wake()
    assert h2load.unary(guarded.target, at_once=8, seconds=1).messages > 0
    with pytest.raises(h2load.LoadFailed):
        h2load.unary(Target(guarded.target.port, ""), at_once=8, seconds=1)
