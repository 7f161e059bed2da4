"""Keys and values that requests share: the same answers, less work, and never across a border.

vllm#42125   a version published again under its name was answered with the old one's cache
vllm#30931   requests of one adapter took what another adapter had computed for equal tokens
sglang#24638 the same, by a cache that knew tokens alone
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapter_store.validate import read_adapter_dir
from inference_node.engine.prefix import PrefixNames
from inference_node.engine.runner import Drawn, Runner
from inference_node.engine.scheduler import Scheduler, Step
from inference_node.engine.sequence import Phase, Sequence
from inference_node.errors import ModelFailure
from inference_node.request import Failed
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.sequences import make_sequence
from tests.inference_node.harness import Answer, Node
from tests.inference_node.tiny import make_adapter

BLOCK = 16
SHARED = tuple(range(100, 100 + 5 * BLOCK))
"""Five full blocks."""
PROMPTS = ((*SHARED, 7), (*SHARED, 8, 9), SHARED[:40], (*SHARED[:48], 5, *SHARED[:20]), SHARED)


def adapters(node: Node, folder: Path, count: int = 2) -> list[Path]:
    modules = dict(node.card.modules)
    return [
        make_adapter(folder / f"voice{seed}", modules, rank=8 + 5 * seed, seed=seed)
        for seed in range(count)
    ]


def cached(answer: Answer) -> int:
    return answer.completed.usage.cached_tokens


def answers(node: Node) -> list[Answer]:
    """Three waves of requests that share their beginnings, over two adapters and the base."""
    asked = [
        node.ask(adapter, prompt, tokens=24)
        for _ in range(3)
        for prompt in PROMPTS
        for adapter in ("a", "b", "")
    ]
    return [answer.wait() for answer in asked]


@pytest.mark.parametrize("kv_tokens", [4096, 384], ids=["room for all", "preempting"])
def test_answers_are_the_same_with_the_cache_and_without(
    start_tiny: StartTiny, tmp_path: Path, kv_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    preempted = spy_on_preemption(monkeypatch)
    found = {}
    for on in (True, False):
        node = start_tiny(prefix_cache=on, kv_tokens=kv_tokens, max_rows=12, step_tokens=64)
        for name, folder in zip("ab", adapters(node, tmp_path / str(on)), strict=True):
            node.publish(name, folder)
        found[on] = answers(node)
        node.settle()
    tokens = {on: [answer.tokens for answer in of] for on, of in found.items()}
    assert tokens[True] == tokens[False]
    assert len({tuple(answer) for answer in tokens[True]}) == 3 * len(PROMPTS)
    assert sum(map(cached, found[False])) == 0
    assert sum(map(cached, found[True])) >= 2 * sum(map(len, PROMPTS))
    assert bool(preempted) == (kv_tokens == 384)


def spy_on_preemption(monkeypatch: pytest.MonkeyPatch) -> list[Sequence]:
    preempted: list[Sequence] = []
    preempt = Scheduler._preempt

    def spy(self: Scheduler, victim: Sequence) -> None:
        preempted.append(victim)
        preempt(self, victim)

    monkeypatch.setattr(Scheduler, "_preempt", spy)
    return preempted


def test_preemption_keeps_the_lease_and_the_books_add_up_before_every_step(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_tiny(kv_tokens=384, max_rows=12, step_tokens=64)
    old, new = adapters(node, tmp_path)
    node.publish("a", old)
    undisturbed = node.ask("a", SHARED, tokens=40).tokens
    preempted = spy_on_preemption(monkeypatch)
    run = Runner.run

    def checked(self: Runner, step: Step) -> list[Drawn]:
        node.engine.check_integrity()
        for sequence in preempted:
            assert sequence.lease is not None or sequence.phase is Phase.DONE
        return run(self, step)

    monkeypatch.setattr(Runner, "run", checked)
    running = [node.ask("a", SHARED, tokens=40) for _ in range(12)]
    running[0].wait(tokens=1)
    generation = node.publish("a", new)
    changed = node.ask("a", SHARED, tokens=40, min_generation=generation).tokens
    assert [answer.tokens for answer in running] == [undisturbed] * 12
    assert changed != undisturbed
    assert preempted
    node.settle()


def test_a_conversation_goes_on_behind_what_was_said_before(start_tiny: StartTiny) -> None:
    node = start_tiny()
    first = node.ask("", SHARED, tokens=40).wait()
    said = (*SHARED, *first.tokens)
    answer = node.ask("", (*said, 3, 4), tokens=8)
    assert cached(answer) == (len(said) - 1) // BLOCK * BLOCK
    assert answer.tokens == start_tiny(prefix_cache=False).ask("", (*said, 3, 4), tokens=8).tokens


def test_requests_that_run_at_the_same_time_share_what_the_first_has_read(
    start_tiny: StartTiny,
) -> None:
    node = start_tiny()
    long = node.ask("", (*SHARED, 1), tokens=200).wait(tokens=2)
    beside = node.ask("", (*SHARED, 2), tokens=8)
    assert cached(beside) == len(SHARED)
    assert not long.ended
    long.wait()
    node.settle()


Border = tuple[str, str]
"""Tenant and adapter."""


def across(node: Node, folder: Path) -> dict[Border, Answer]:
    """One prompt for two tenants, two adapters, two versions of one and the base, one by one."""
    one, two, three = adapters(node, folder, 3)
    for tenant, name, made in (
        ("default", "a", one),
        ("default", "b", two),
        ("other", "a", one),
    ):
        local = read_adapter_dir(made, card=node.card)
        node.publisher.publish(tenant, name, local, label="v1")
    found = {
        (tenant, name): node.ask(name, SHARED, tenant=tenant).wait()
        for tenant in ("default", "other")
        for name in ("", "a", "b")
        if (tenant, name) != ("other", "b")
    }
    generation = node.publish("a", three, label="v2")
    found["default", "a@v2"] = node.ask("a", SHARED, min_generation=generation).wait()
    return found


def test_nothing_is_shared_across_tenants_adapters_and_versions(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny()
    found = across(node, tmp_path / "on")
    assert {border: cached(answer) for border, answer in found.items()} == dict.fromkeys(found, 0)
    alone = across(start_tiny(prefix_cache=False), tmp_path / "off")
    assert {k: a.tokens for k, a in found.items()} == {k: a.tokens for k, a in alone.items()}
    again = node.ask("a@v1", SHARED)
    assert cached(again) == len(SHARED) - BLOCK, "equal content under an older label is its own"
    assert again.tokens == found["default", "a"].tokens


def tokens_alone(self: PrefixNames, sequence: Sequence) -> bytes:
    return b""


def tokens_and_adapter_name(self: PrefixNames, sequence: Sequence) -> bytes:
    entry = sequence.entry
    return f"{sequence.request.tenant}/{entry.adapter if entry else ''}".encode()


def version_without_the_tenant(self: PrefixNames, sequence: Sequence) -> bytes:
    return sequence.entry.key.vdig.encode() if sequence.entry else b""


@pytest.mark.parametrize(
    ("root", "crossed"),
    [
        (tokens_alone, ("default", "b")),
        (tokens_and_adapter_name, ("default", "a@v2")),
        (version_without_the_tenant, ("other", "a")),
    ],
)
def test_control_a_key_without_tenant_or_version_is_seen(
    start_tiny: StartTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    root: Callable[[PrefixNames, Sequence], bytes],
    crossed: Border,
) -> None:
    alone = across(start_tiny(prefix_cache=False), tmp_path / "off")
    monkeypatch.setattr(PrefixNames, "root", root)
    found = across(start_tiny(), tmp_path / "on")
    assert cached(found[crossed]) > 0
    if root is not version_without_the_tenant:
        assert found[crossed].tokens != alone[crossed].tokens


def test_another_base_model_names_nothing_alike() -> None:
    one, other = (PrefixNames(base, block_tokens=4) for base in ("f1", "f2"))
    assert one.of(make_sequence(8), 2) == one.of(make_sequence(9), 2)
    assert not set(one.of(make_sequence(8), 2)) & set(other.of(make_sequence(8), 2))


def after_a_failure(start_tiny: StartTiny) -> Answer:
    """One request meets a number that is not finite, and an equal one comes after it."""
    node = start_tiny()
    victim = node.ask("", SHARED, tokens=300).wait(tokens=2)
    for tensor in node.engine._runner._decoder._cache.k:
        tensor[1:] = torch.nan
    assert isinstance(victim.error, ModelFailure)
    return node.ask("", SHARED, tokens=8).wait()


def test_what_a_failed_request_wrote_is_given_to_nobody(start_tiny: StartTiny) -> None:
    expected = start_tiny().ask("", SHARED, tokens=8).tokens
    answer = after_a_failure(start_tiny)
    assert answer.tokens == expected
    assert cached(answer) == 0


def test_control_without_distrust_a_failure_spreads_to_equal_prompts(
    start_tiny: StartTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scheduler, "distrust", lambda self, sequence: None)
    assert isinstance(after_a_failure(start_tiny).events[-1], Failed)
