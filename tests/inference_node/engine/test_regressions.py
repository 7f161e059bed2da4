"""Serving bugs that other engines shipped, each with a control: the bug seeded here is seen.

vllm#47724   a routing memo outlived the slot layout, so a request ran on another tenant's adapter
vllm#38606   two adapters in turn, faster than a cache was cleared, read each other's state
sglang#8103  what an evicted adapter left in its buffers leaked into the next one
sglang#8263  a re-used name reached, or evicted, another version's buffer
sglang#23141 adapters and a base request in one batch stopped the scheduler
flashinfer#942  a NaN left in a re-used KV page reached other requests
vllm#11077   only as many adapters as there were slots were ever answered

Of adapters that leave, come back or fit nothing, in test_leaving_regressions.py: vllm#42125,
vllm#54839, vllm#34186 and dynamo#8053. Where an answer is not PEFT's, in test_equality.py (and
test_families.py, test_peft_configs.py): vllm#10798.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference_node.adapters import loader as loader_module
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Resident, VersionKey
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.runner import Runner
from inference_node.engine.scheduler import Step
from inference_node.errors import EngineFailure
from inference_node.kernels.lora import SlotPages
from inference_node.model.batch import ForwardBatch
from inference_node.model.decoder import Decoder
from inference_node.request import Completed, Failed
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import Node
from tests.inference_node.step_audit import StepAudit
from tests.inference_node.tiny import make_adapter

SMALL_POOL = 10
"""Pages of each group."""


def small_node(start_tiny: StartTiny, pages: int = SMALL_POOL, kernels: str = "auto") -> Node:
    """A node whose pool holds only a few adapters, so that pages are re-used at once."""
    page_bytes = start_tiny().engine.info().pool.page_bytes
    node = start_tiny(pool_bytes=pages * page_bytes, kernels=kernels)
    assert node.engine.info().pool.pages_total == 4 * pages
    return node


def publish_many(node: Node, folder: Path, count: int, *, rank: int = 8) -> list[str]:
    names = [f"n{index}" for index in range(count)]
    for seed, name in enumerate(names):
        made = make_adapter(folder / name, dict(node.card.modules), rank=rank, seed=seed)
        node.publish(name, made)
    return names


def answers_alone(node: Node, names: list[str]) -> dict[str, list[int]]:
    found = {name: node.ask(name).tokens for name in names}
    assert len({tuple(tokens) for tokens in found.values()}) == len(names)
    return found


def churn(node: Node, names: list[str], truth: dict[str, list[int]]) -> list[str]:
    """Names answered wrongly while batches form, dissolve and push each other's pages out."""
    wrong = []
    for start in range(len(names)):
        batch = [names[(start + offset) % len(names)] for offset in range(4)]
        asked = [(name, node.ask(name)) for name in batch]
        wrong += [
            name
            for name, answer in asked
            if answer.wait().ended and answer.token_ids not in (truth[name], [])
        ]
    return wrong


def test_vllm_47724_no_request_ever_runs_on_another_requests_adapter(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = small_node(start_tiny)
    names = publish_many(node, tmp_path, 14)
    truth = answers_alone(node, names)
    assert churn(node, names, truth) == []
    node.settle()


def test_vllm_47724_control_a_routing_memo_by_row_is_seen(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = small_node(start_tiny)
    names = publish_many(node, tmp_path, 14)
    truth = answers_alone(node, names)
    memo: dict[int, SlotPages] = {}
    pool = node.engine._runner._pool

    def remembered(held: Resident) -> SlotPages:
        return memo.setdefault(held.leases, SlotPages(held.pages, held.scale, held.stamp))

    monkeypatch.setattr(pool, "routing", remembered)
    assert churn(node, names, truth)


def evict_leased(table: SlotTable) -> list[Resident]:
    """The seeded bug: victims are chosen without looking at leases."""
    return sorted(table._residents.values(), key=lambda r: -r.leases)


def test_a_page_taken_from_under_a_request_fails_it_and_never_answers_wrongly(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = small_node(start_tiny, pages=2)
    names = publish_many(node, tmp_path, 4)
    truth = answers_alone(node, names)
    monkeypatch.setattr(SlotTable, "_idle", evict_leased)
    long = node.ask(names[0], tokens=300).wait(tokens=2)
    others = [node.ask(name, tokens=4) for name in names[1:]]
    assert isinstance(long.error, EngineFailure)
    for name, other in zip(names[1:], others, strict=True):
        other.wait()
        assert other.token_ids == truth[name][: len(other.token_ids)]
    assert long.token_ids[:8] == truth[names[0]][: len(long.token_ids[:8])]


def test_control_without_the_page_stamps_the_same_fault_answers_wrongly(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_audit: StepAudit
) -> None:
    node = small_node(start_tiny, pages=2)
    names = publish_many(node, tmp_path, 4)
    answers_alone(node, names)
    undisturbed = node.ask(names[0], tokens=300).tokens
    monkeypatch.setattr(SlotTable, "_idle", evict_leased)
    monkeypatch.setattr(
        AdapterPool, "routing", lambda _, held: SlotPages(held.pages, held.scale, held.stamp)
    )
    long = node.ask(names[0], tokens=300).wait(tokens=2)
    for name in names[1:]:
        node.ask(name, tokens=4).wait()
    long.wait()
    assert long.token_ids != undisturbed
    assert step_audit.expect_broken()


def small_after_large(node: Node, folder: Path) -> list[int]:
    """Fill every page with large adapters, push them out, and ask a small sparse one."""
    modules = dict(node.card.modules)
    for seed in range(3):
        large = make_adapter(folder / f"large{seed}", modules, rank=64, seed=seed, strength=3.0)
        node.publish(f"large{seed}", large)
        node.ask(f"large{seed}").wait()
    sparse = make_adapter(folder / "sparse", modules, rank=3, targets=["q_proj"], seed=9)
    node.publish("sparse", sparse)
    return node.ask("sparse").tokens


def test_sglang_8103_nothing_of_an_evicted_adapter_is_left_for_the_next(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    fresh = start_tiny()
    fresh.publish(
        "sparse",
        make_adapter(tmp_path / "s", dict(fresh.card.modules), rank=3, targets=["q_proj"], seed=9),
    )
    expected = fresh.ask("sparse").tokens
    assert small_after_large(small_node(start_tiny, pages=8), tmp_path / "used") == expected


def test_sglang_8103_control_a_copy_of_the_used_ranks_alone_is_seen(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = start_tiny()
    fresh.publish(
        "sparse",
        make_adapter(tmp_path / "s", dict(fresh.card.modules), rank=3, targets=["q_proj"], seed=9),
    )
    expected = fresh.ask("sparse").tokens

    def write_used_ranks(pool: AdapterPool, staged: Resident, host: HostAdapter) -> None:
        for group, pages, source in zip(pool.groups, staged.pages, host.groups, strict=True):
            for index, page in enumerate(pages):
                assert source is not None
                for target, values in ((group.a, source.a), (group.b, source.b)):
                    used = values[index] != 0
                    target[page][used] = values[index][used]

    monkeypatch.setattr(AdapterPool, "write", write_used_ranks)
    assert small_after_large(small_node(start_tiny, pages=8), tmp_path / "used") != expected


def republish_one_name(node: Node, folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Replace "a" again and again beside "b": what each "a" answered, and should have."""
    modules = dict(node.card.modules)
    answers, expected = [], []
    node.publish("b", make_adapter(folder / "b", modules, rank=8, seed=77))
    for version in range(6):
        made = make_adapter(
            folder / f"a{version}", modules, rank=8 * (version % 3 + 1), seed=version
        )
        generation = node.publish("a", made)
        beside = node.ask("b", tokens=12)
        answers.append(node.ask("a", min_generation=generation).tokens)
        beside.wait()
        node.publish(f"alone{version}", made)
        expected.append(node.ask(f"alone{version}").tokens)
    return answers, expected


def test_sglang_8263_a_name_published_again_never_reaches_the_old_pages(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = small_node(start_tiny)
    answers, expected = republish_one_name(node, tmp_path)
    assert answers == expected
    node.settle()


def test_sglang_8263_control_pages_found_by_name_are_seen(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_by_name(tenant: str, adapter: str, gen: int, version: object) -> loader_module.Target:
        target = by_digest(tenant, adapter, gen, version)  # type: ignore[arg-type]
        entry = target.entry
        named = type(entry)(tenant, adapter, entry.label, gen, VersionKey(tenant, adapter))
        return loader_module.Target(named, target.version)

    by_digest = loader_module._target
    monkeypatch.setattr(loader_module, "_target", key_by_name)
    node = small_node(start_tiny)
    answers, expected = republish_one_name(node, tmp_path)
    assert answers != expected


def test_sglang_23141_base_rows_and_many_adapters_share_a_batch(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = small_node(start_tiny)
    names = publish_many(node, tmp_path, SMALL_POOL)
    truth = answers_alone(node, names) | {"": node.ask("").tokens}
    asked = [(name, node.ask(name)) for name in ["", *names, ""]]
    for name, answer in asked:
        assert answer.tokens == truth[name]


def test_sglang_23141_control_a_scheduler_that_counts_the_base_as_an_adapter_is_seen(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = small_node(start_tiny)
    names = publish_many(node, tmp_path, 3)
    answers_alone(node, names)
    batch = Runner.batch

    def counting(runner: Runner, step: Step) -> ForwardBatch:
        held = {item.sequence.lease for item in step.work}
        assert len(held) <= len(names), "more adapters than slots"
        return batch(runner, step)

    monkeypatch.setattr(Runner, "batch", counting)
    # Long enough for all of them to share a step.
    asked = [node.ask(name, tokens=200) for name in ["", *names]]
    assert any(isinstance(answer.wait().events[-1], Failed) for answer in asked)


def test_vllm_11077_more_adapters_than_the_pool_holds_are_all_answered(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = small_node(start_tiny, pages=3)
    names = publish_many(node, tmp_path, 12)
    truth = answers_alone(node, names)
    asked = [(name, node.ask(name)) for name in names * 2]
    for name, answer in asked:
        assert answer.tokens == truth[name]
    node.settle()


def test_vllm_11077_control_a_pool_that_lets_nobody_go_is_seen(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = small_node(start_tiny, pages=3)
    names = publish_many(node, tmp_path, 6)
    monkeypatch.setattr(SlotTable, "_idle", lambda self: [])
    asked = [node.ask(name, deadline_in=3.0) for name in names]
    answered = [isinstance(answer.wait().events[-1], Completed) for answer in asked]
    assert 0 < sum(answered) < len(names)


def test_loading_a_version_twice_gives_bit_equal_pages(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    """SkyRL#2250: a scale folded in again on every reload."""
    node = small_node(start_tiny, pages=2)
    names = publish_many(node, tmp_path, 3, rank=12)
    pool = node.engine._runner._pool

    def pages_of(name: str) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        node.ask(name).wait()
        node.settle()
        entry = node.engine._slots.serving("default", name)
        assert entry is not None
        resident = node.engine._slots.resident(entry.key)
        assert resident is not None
        return pool.read_back(resident)

    first = pages_of(names[0])
    for name in names[1:]:
        pages_of(name)
    for before, after in zip(first, pages_of(names[0]), strict=True):
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])


def answer_after_poison(node: Node) -> list[int] | None:
    """Fill every block with NaN while nobody holds one, and ask; None when the request failed."""
    node.ask("", tokens=4).wait()
    node.settle()
    cache = node.engine._runner._decoder._cache
    for tensor in (*cache.k, *cache.v):
        tensor[1:] = torch.nan
    answer = node.ask("", tokens=40).wait()
    return answer.token_ids if isinstance(answer.events[-1], Completed) else None


def test_flashinfer_942_what_an_earlier_request_left_in_a_kv_block_reaches_nobody(
    start_tiny: StartTiny,
) -> None:
    expected = start_tiny().ask("", tokens=40).tokens
    assert answer_after_poison(start_tiny(prefix_cache=False)) == expected


def test_flashinfer_942_control_blocks_that_are_not_zeroed_are_seen(
    start_tiny: StartTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the torch kernels, that is: the native ones do not read past a context at all."""
    monkeypatch.setattr(Decoder, "zero_blocks", lambda self, blocks: None)
    expected = start_tiny(kernels="reference").ask("", tokens=40).tokens
    assert answer_after_poison(start_tiny(kernels="reference", prefix_cache=False)) != expected


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_pages_kept_from_the_last_step_are_the_next_steps_only_while_its_content_is_the_same(
    start_tiny: StartTiny, tmp_path: Path, kernels: str
) -> None:
    """Alternating adapters in batches of one shape, as vllm#38606 did every 8 ms."""
    node = small_node(start_tiny, pages=2, kernels=kernels)
    names = publish_many(node, tmp_path, 5)
    truth = answers_alone(node, names)
    for _ in range(3):
        for name in names:
            assert node.ask(name).tokens == truth[name]
    node.settle()


def test_control_pages_kept_by_the_shape_of_the_batch_are_seen(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = small_node(start_tiny, pages=2, kernels="reference")
    names = publish_many(node, tmp_path, 3)
    truth = answers_alone(node, names)
    routing = AdapterPool.routing

    def same_stamp(pool: AdapterPool, held: Resident) -> SlotPages:
        return replace(routing(pool, held), stamp=0)

    monkeypatch.setattr(AdapterPool, "routing", same_stamp)
    assert [name for name in names if node.ask(name).tokens != truth[name]]
