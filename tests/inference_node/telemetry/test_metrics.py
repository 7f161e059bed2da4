"""What a scrape tells is so, is all there is to tell, and costs as many series as was allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from inference_node.errors import InvalidRequest, NodeError
from inference_node.request import Stopping
from inference_node.residency import LoadedVersion, Tier
from inference_node.telemetry.series import BASE, OTHER, SERIES, Kind
from tests.adapter_store.waiting import wait_until
from tests.inference_node.harness import PATIENCE
from tests.inference_node.telemetry.conftest import Scraped, StartScraped
from tests.inference_node.telemetry.scrapes import Scrape, read
from tests.inference_node.tiny import make_adapter

PROCESS = ("process_", "python_")
"""The Prometheus client's own series of the process."""


def publish(scraped: Scraped, folder: Path, *names: str, label: str = "v1", rank: int = 8) -> None:
    for seed, name in enumerate(names):
        modules = dict(scraped.node.card.modules)
        made = make_adapter(folder / f"{name}-{label}", modules, rank=rank, seed=seed)
        scraped.node.publish(name, made, label=label)


def ask(scraped: Scraped, adapter: str, tokens: int = 5) -> None:
    scraped.client.generate(
        "Tell me", adapter=adapter, stopping=Stopping(max_new_tokens=tokens, ignore_eos=True)
    )


@pytest.fixture
def busy(start_scraped: StartScraped, tmp_path: Path) -> Scraped:
    """A node that has answered and refused, swapped and evicted."""
    scraped = start_scraped(headroom_pages=0)
    publish(scraped, tmp_path, "a", "b")
    for adapter in ("", "a", "a", "b"):
        ask(scraped, adapter)
    with pytest.raises(NodeError):
        ask(scraped, "nobody")
    return scraped


def test_every_sample_is_of_a_series_in_the_catalogue_and_has_its_labels(busy: Scraped) -> None:
    known = {}
    for one in SERIES:
        suffixes = ("_bucket", "_sum", "_count") if one.kind is Kind.HISTOGRAM else ("",)
        known.update({one.name + suffix: one for suffix in suffixes})
    found = busy.scrape()
    for name, labels in found.samples:
        if not name.startswith(PROCESS):
            names = {label for label, _ in labels} - {"le"}
            empty = set(known[name].labels) - names
            assert names <= set(known[name].labels), name
            assert empty <= {"rank", "tenant"}, f"{name} lacks {empty}"
    missing = known.keys() - found.names()
    unused = {
        "lorapool_hints_healthy",
        "lorapool_adapter_refusals_total",
        "lorapool_audit_lost_lines_total",
    }
    assert missing == unused, "nothing makes these be told"


def test_what_ended_is_counted_by_outcome_reason_and_status(busy: Scraped) -> None:
    with pytest.raises(InvalidRequest):
        ask(busy, "No Name")
    method = "lorapool.v1.InferenceService/Generate"
    # A refusal is on its way to the caller before it is counted.
    wait_until(
        lambda: busy.scrape().total("lorapool_rpcs_total", method=method) == 6, within_s=PATIENCE
    )
    found = busy.scrape()
    requests = "lorapool_requests_total"
    assert found.of(requests, outcome="completed", reason="LENGTH") == 4
    assert found.of(requests, outcome="refused", reason="ADAPTER_NOT_FOUND") == 1
    assert found.of(requests, outcome="refused", reason="INVALID_REQUEST") == 1
    assert found.total("lorapool_request_seconds_count") == 6
    codes = {"OK": 4, "NOT_FOUND": 1, "INVALID_ARGUMENT": 1}
    for code, number in codes.items():
        assert found.of("lorapool_rpcs_total", method=method, code=code) == number


def test_a_caller_that_leaves_is_counted_as_cancelled_with_the_tokens_it_got(
    start_scraped: StartScraped,
) -> None:
    scraped = start_scraped()
    stream = scraped.client.stream("x", stopping=Stopping(max_new_tokens=400, ignore_eos=True))
    next(iter(stream))
    stream.cancel()
    wait_until(
        lambda: scraped.scrape().total("lorapool_rpcs_total", code="CANCELLED") == 1,
        within_s=PATIENCE,
    )
    found = scraped.scrape()
    assert found.total("lorapool_requests_total", outcome="cancelled", reason="CANCELLED") == 1
    assert found.total("lorapool_version_requests_total", adapter=BASE, outcome="cancelled") == 1
    assert found.total("lorapool_version_generated_tokens_total", adapter=BASE) >= 1


def test_tokens_and_times_add_up_to_what_was_answered(busy: Scraped) -> None:
    found = busy.scrape()
    assert found.of("lorapool_generated_tokens_total") == 4 * 5
    assert found.of("lorapool_time_to_first_token_seconds_count") == 4
    assert found.total("lorapool_inter_token_seconds_count") == 4 * 4
    assert found.of("lorapool_queue_seconds_count") == 4
    assert found.of("lorapool_adapter_wait_seconds_count") == 3
    assert found.of("lorapool_step_seconds_count") >= 4 * 5
    prompts = found.of("lorapool_prompt_tokens_total")
    assert prompts == found.total("lorapool_version_prompt_tokens_total") > 0


def test_a_version_is_told_with_what_it_has_answered(busy: Scraped, tmp_path: Path) -> None:
    publish(busy, tmp_path, "a", label="v2", rank=11)
    busy.client.generate("Tell me", adapter="a", min_generation=2)
    found = busy.scrape()
    first = {"tenant": "default", "adapter": "a", "version": "v1", "generation": "1"}
    second = first | {"version": "v2", "generation": "2"}
    requests, tokens = "lorapool_version_requests_total", "lorapool_version_generated_tokens_total"
    assert found.of(requests, **first, outcome="completed") == 2
    assert found.of(requests, **second, outcome="completed") == 1
    assert found.of(requests, **second, outcome="failed") == 0
    assert found.of(tokens, **first) == 10
    for histogram in ("request_seconds", "time_to_first_token_seconds", "time_per_token_seconds"):
        assert found.of(f"lorapool_version_{histogram}_count", **first) == 2
    assert found.of("lorapool_swaps_total") == 1
    assert found.of("lorapool_adapter_generation", tenant="default", adapter="a") == 2


def told_of(found: Scrape) -> Counter[tuple[str, str, str]]:
    """Adapter, digest and tier of every version that is told by name."""
    return Counter(
        (own["adapter"], own["digest"], own["tier"])
        for own in found.labels("lorapool_version_loaded")
        if own["adapter"] != OTHER and found.of("lorapool_version_loaded", **own)
    )


def listed(versions: tuple[LoadedVersion, ...]) -> Counter[tuple[str, str, str]]:
    return Counter((v.served.adapter, v.served.digest[:12], v.tier.value) for v in versions)


def test_what_is_told_to_be_on_the_node_is_what_is_there_tier_by_tier(
    start_scraped: StartScraped, tmp_path: Path
) -> None:
    page = start_scraped().node.engine.info().pool.page_bytes
    scraped = start_scraped(pool_bytes=2 * page, headroom_pages=0)
    publish(scraped, tmp_path, "a", "b", "c")
    for adapter in ("a", "b", "c", "a", "c"):
        ask(scraped, adapter)
        versions = scraped.node.engine.list_loaded().result(PATIENCE)
        found = scraped.scrape()
        assert told_of(found) == listed(versions)
        for tier in Tier:
            told = found.total("lorapool_versions", tier=tier.value)
            assert told == sum(version.tier is tier for version in versions)
            others = [OTHER] * 5
            rest = dict(zip(SERIES_OF_LOADED, [*others, tier.value], strict=True))
            assert found.samples.get(("lorapool_version_loaded", frozenset(rest.items())), 0) == 0
    assert {version.tier for version in versions} == {Tier.DEVICE, Tier.HOST}
    assert found.of("lorapool_evictions_total", tier="device") >= 2
    assert found.of("lorapool_adapter_loads_total", source="store") == 3
    assert found.of("lorapool_adapter_loads_total", source="host") >= 1
    scraped.node.engine.unload("default", "c").result(PATIENCE)
    versions = scraped.node.engine.list_loaded().result(PATIENCE)
    assert told_of(scraped.scrape()) == listed(versions)


SERIES_OF_LOADED = ("tenant", "adapter", "version", "generation", "digest", "tier")


def test_pages_told_by_state_are_all_the_pages_there_are(busy: Scraped) -> None:
    found = busy.scrape()
    use = busy.node.engine.pool_use().result(PATIENCE)
    for group in use.groups:
        pages = found.total("lorapool_pool_pages", group=group.name)
        assert pages == group.total
        idle = found.of("lorapool_pool_pages", group=group.name, state="idle")
        assert idle == group.idle > 0


def test_a_load_is_told_stage_by_stage(busy: Scraped) -> None:
    found = busy.scrape()
    stages = dict.fromkeys(("resolve", "fetch", "verify", "stage", "promote"), 2.0)
    stages["resolve"] = 3
    for stage, number in stages.items():
        assert found.of("lorapool_adapter_load_stage_seconds_count", stage=stage) >= number
    parts = found.total("lorapool_adapter_load_stage_seconds_sum")
    parts -= found.of("lorapool_adapter_load_stage_seconds_sum", stage="resolve")
    assert found.of("lorapool_adapter_load_seconds_count") == 2
    assert parts <= found.of("lorapool_adapter_load_seconds_sum") + 0.001
    assert found.of("lorapool_adapter_fetched_bytes_total") > 0
    assert found.of("lorapool_adapter_lookups_total", outcome="FOUND") >= 2
    assert found.of("lorapool_adapter_lookups_total", outcome="ADAPTER_NOT_FOUND") == 1


def test_tokens_that_come_while_an_adapter_loads_are_told_apart(
    start_scraped: StartScraped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scraped = start_scraped()
    publish(scraped, tmp_path, "late")
    ask(scraped, "")
    gap = "lorapool_inter_token_seconds_count"
    assert scraped.scrape().of(gap, adapters="loading") == 0
    loader = scraped.node.engine._loader
    go_on, honest = threading.Event(), loader._fetch
    monkeypatch.setattr(loader, "_fetch", lambda target: go_on.wait(PATIENCE) and honest(target))
    late = scraped.node.ask("late")
    wait_until(lambda: scraped.scrape().of("lorapool_loads_in_progress") == 1, within_s=PATIENCE)
    waiting = scraped.scrape()
    assert waiting.of("lorapool_requests_in_progress", phase="loading") == 1
    assert waiting.of("lorapool_queue_oldest_seconds") > 0
    quiet = waiting.of(gap, adapters="quiet")
    ask(scraped, "", tokens=6)
    found = scraped.scrape()
    assert (found.of(gap, adapters="loading"), found.of(gap, adapters="quiet")) == (5, quiet)
    go_on.set()
    assert late.completed
    assert scraped.scrape().of("lorapool_loads_in_progress") == 0
    assert scraped.scrape().of("lorapool_queue_oldest_seconds") == 0


def test_a_refused_adapter_is_counted_by_its_reason(
    start_scraped: StartScraped, tmp_path: Path
) -> None:
    scraped = start_scraped(max_rank=8)
    scraped.node.card = replace(scraped.node.card, max_rank=64)
    publish(scraped, tmp_path, "wide", rank=16)
    with pytest.raises(NodeError):
        ask(scraped, "wide")
    found = scraped.scrape()
    assert found.of("lorapool_adapter_refusals_total", reason="ADAPTER_INCOMPATIBLE") == 1


def test_a_node_with_many_adapters_has_as_many_series_as_was_allowed(
    start_scraped: StartScraped, tmp_path: Path
) -> None:
    scraped = start_scraped(adapters=2)
    names = [f"n{number}" for number in range(6)]
    publish(scraped, tmp_path, *names)
    for name in names:
        ask(scraped, name, tokens=1)
    found = scraped.scrape()
    for series in SERIES:
        if "adapter" in series.labels:
            suffix = "_count" if series.kind is Kind.HISTOGRAM else ""
            named = {own["adapter"] for own in found.labels(series.name + suffix)}
            assert len(named - {OTHER, BASE}) <= 2, series.name
    completed = found.total("lorapool_version_requests_total", outcome="completed")
    assert completed == found.total("lorapool_requests_total") == 6
    others = found.total("lorapool_version_requests_total", adapter=OTHER, outcome="completed")
    assert others == 4
    assert found.total("lorapool_version_loaded") == found.total("lorapool_versions") == 6
    assert found.total("lorapool_version_loaded", adapter=OTHER) == 4


def test_a_scrape_does_not_wait_for_an_engine_that_does_not_answer(busy: Scraped) -> None:
    collector = busy.metrics._collector
    collector._patience = 0.05
    stop, stopped = threading.Event(), threading.Event()
    engine = busy.node.engine
    expire = engine._expire

    def held() -> None:
        stopped.set()
        stop.wait(PATIENCE)
        expire()

    engine._expire = held  # type: ignore[method-assign]
    try:
        busy.node.ask("", tokens=1)
        assert stopped.wait(PATIENCE)
        found = busy.scrape()
    finally:
        engine._expire = expire  # type: ignore[method-assign]
        stop.set()
    assert found.of("lorapool_engine_up") == 1
    assert found.total("lorapool_requests_total") == 5
    assert "lorapool_scrape_engine_seconds" not in found.names()
    assert "lorapool_pool_pages" not in found.names(), "told from memory"


def test_an_engine_that_has_ended_is_told_to_be_down(busy: Scraped) -> None:
    busy.node.engine.stop()
    found = busy.scrape()
    assert found.of("lorapool_engine_up") == 0
    assert found.total("lorapool_requests_total") == 5


def test_routers_find_the_series_of_vllm(busy: Scraped) -> None:
    found = busy.scrape()
    model = busy.node.engine.info().name
    assert found.of("vllm:num_requests_running", model_name=model) == 0
    assert found.of("vllm:num_requests_waiting", model_name=model) == 0
    assert 0 <= found.of("vllm:kv_cache_usage_perc", model_name=model) <= 1
    (lora,) = found.labels("vllm:lora_requests_info")
    assert (lora["running_lora_adapters"], lora["waiting_lora_adapters"]) == ("", "")
    assert int(lora["max_lora"]) >= 2
    assert found.of("vllm:num_gpu_loaded_lora_adapters") == 2
    on_gpu = {own["adapter_name"] for own in found.labels("vllm:lora_adapter_loaded")}
    assert on_gpu == {"a", "b"}
    stream = busy.node.ask("a", tokens=400)
    stream.wait(tokens=1)
    (lora,) = busy.scrape().labels("vllm:lora_requests_info")
    assert lora["running_lora_adapters"] == "a"
    busy.node.engine.cancel(stream.request_id)
    stream.wait()


def own_lint(name: str, kind: Kind) -> Iterator[str]:
    """The naming rules of Prometheus that are ours to keep."""
    if (kind is Kind.COUNTER) != name.endswith("_total"):
        yield f"{name}: a counter, and only a counter, ends in _total"
    if name.endswith(("_count", "_sum", "_bucket", "_milliseconds", "_ms", "_mb", "_minutes")):
        yield f"{name}: a suffix that is reserved, or no base unit"
    if ":" in name:
        yield f"{name}: colons are for recording rules"


def test_names_keep_the_rules_but_for_those_that_are_vllms() -> None:
    problems = [p for one in SERIES for p in own_lint(one.name, one.kind)]
    assert [p for p in problems if not p.startswith("vllm:")] == []
    assert len({one.name for one in SERIES}) == len(SERIES)
    assert all(one.help.endswith(".") for one in SERIES)


def test_promtool_finds_nothing_wrong_but_the_colons_that_are_vllms(busy: Scraped) -> None:
    promtool = os.environ.get("PROMTOOL_BIN") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: install Prometheus, or set PROMTOOL_BIN")
    text = busy.scrape().text
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    problems = (done.stdout + done.stderr).splitlines()
    assert [p for p in problems if not p.startswith("vllm:")] == []
    assert all("':'" in p for p in problems), problems


def test_control_promtool_would_say_so() -> None:
    promtool = os.environ.get("PROMTOOL_BIN") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: install Prometheus, or set PROMTOOL_BIN")
    text = "# HELP lorapool_bad_count x\n# TYPE lorapool_bad_count counter\nlorapool_bad_count 1\n"
    assert read(text).names()
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
