"""Serving bugs of adapters that leave, come back or fit nothing; each with its bug seeded here.

vllm#42125   a name loaded again with other bytes was answered from the old version's KV cache
vllm#54839   an unloaded adapter stayed in the engine; loaded again it was there twice, and what
             told of it disagreed
vllm#34186   an adapter that matches no module was listed, and answered by the base model
dynamo#8053  taking one adapter away took others away that shared its id

Those of adapters that stay are in test_regressions.py, where all are listed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from adapter_store.errors import StoreError
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.validate import read_adapter_dir
from inference_node.adapters import loader as loader_module
from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.names import Names
from inference_node.engine.prefix import PrefixNames
from inference_node.engine.sequence import Sequence
from inference_node.errors import AdapterIncompatible, AdapterUnloaded, NodeError
from inference_node.residency import Tier, VersionState
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import PATIENCE, Node
from tests.inference_node.step_audit import StepAudit
from tests.inference_node.tiny import make_adapter

T = DEFAULT_TENANT
PROMPT = range(100, 164)


def made(node: Node, folder: Path, seed: int) -> Path:
    return make_adapter(folder / f"s{seed}", dict(node.card.modules), rank=8, seed=seed)


def replaced_under_its_name(node: Node, folder: Path) -> bool:
    """Whether what comes under an unloaded adapter's name is answered from its own past alone."""
    node.publish("a", made(node, folder, 1))
    node.ask("a", PROMPT).wait()
    assert node.ask("a", PROMPT).completed.usage.cached_tokens > 0, "the cache is in use"
    node.engine.unload(T, "a").result(PATIENCE)
    generation = node.publish("a", made(node, folder, 2))
    answer = node.ask("a", PROMPT, min_generation=generation)
    if answer.completed.usage.cached_tokens:
        return False
    node.publish("alone", made(node, folder, 2))
    return answer.tokens == node.ask("alone", PROMPT).tokens


def test_vllm_42125_a_name_loaded_again_with_other_bytes_reuses_no_cache_of_the_old_ones(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    assert replaced_under_its_name(start_tiny(), tmp_path)


def test_vllm_42125_control_a_cache_keyed_by_the_name_is_seen(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_name(names: PrefixNames, asked: Sequence) -> bytes:
        return asked.request.adapter.encode()

    monkeypatch.setattr(PrefixNames, "root", by_name)
    assert not replaced_under_its_name(start_tiny(), tmp_path)


def views_agree(node: Node) -> bool:
    """Whether pages are told alike by the list, the pool's use, and the engine itself."""
    listed = node.engine.list_loaded().result(PATIENCE)
    use = node.engine.pool_use().result(PATIENCE)
    pool = node.engine.info().pool
    taken = sum(sum(version.pages) for version in listed)
    here = sum(version.state is VersionState.RESIDENT for version in listed)
    return (
        taken == sum(group.total - group.free for group in use.groups)
        and taken == pool.pages_total - pool.pages_free
        and here == use.resident == pool.resident
    )


def unloads_for_good(node: Node, folder: Path) -> bool:
    """Unload and load again: nothing stays, one copy comes back, and all views say so."""
    node.publish("a", made(node, folder, 1))
    expected = node.ask("a").tokens
    with_it = node.engine.info().pool
    copies = node.engine.pool_use().result(PATIENCE).host_bytes
    for _ in range(5):
        node.engine.unload(T, "a").result(PATIENCE)
        gone = node.engine.info().pool
        tiers = {v.tier for v in node.engine.list_loaded().result(PATIENCE)}
        if gone.pages_free != gone.pages_total or gone.resident or Tier.DEVICE in tiers:
            return False
        assert views_agree(node)
        assert node.ask("a").tokens == expected
        node.settle()
        one_copy = node.engine.pool_use().result(PATIENCE).host_bytes == copies
        if node.engine.info().pool != with_it or not one_copy:
            return False
        assert views_agree(node)
    return True


def test_vllm_54839_unloading_leaves_nothing_and_loading_again_keeps_one_copy(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    assert unloads_for_good(start_tiny(), tmp_path)


def test_vllm_54839_control_pages_that_stay_behind_are_seen(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_audit: StepAudit
) -> None:
    monkeypatch.setattr(PageAllocator, "release", lambda self, pages: None)
    assert not unloads_for_good(start_tiny(), tmp_path)
    assert step_audit.expect_broken()


def renamed(node: Node, folder: Path) -> Path:
    """An adapter as another tool would save it: no key is one of the base's modules."""
    folder = made(node, folder, 3)
    file = folder / "adapter_model.safetensors"
    tensors = {f"model.diffusion.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def smuggled(node: Node, folder: Path) -> tuple[list[int], list[int], NodeError | None]:
    """Such an adapter in the store all the same: what the base says, what it says, its error."""
    whole = read_adapter_dir(made(node, folder / "whole", 3), card=node.card)
    weights = (renamed(node, folder) / "adapter_model.safetensors").read_bytes()
    files = {**whole.files, "adapter_model.safetensors": weights}
    node.publisher.publish(T, "a", replace(whole, files=files))
    answer = node.ask("a").wait()
    failed = getattr(answer.events[-1], "error", None)
    return node.ask("").tokens, answer.token_ids, failed


def test_vllm_34186_an_adapter_that_matches_no_module_is_refused_at_publish(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny()
    with pytest.raises(StoreError, match=r"tensors|names|modules"):
        node.publish("a", renamed(node, tmp_path))


def test_vllm_34186_an_adapter_that_matches_no_module_is_refused_at_load(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    _, said, error = smuggled(start_tiny(), tmp_path)
    assert isinstance(error, AdapterIncompatible)
    assert said == []


def test_vllm_34186_control_a_loader_that_takes_what_fits_answers_as_the_base(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_what_fits(*_: object, **__: object) -> Any:
        return SimpleNamespace(spec=None)

    monkeypatch.setattr(loader_module, "check_sizes", lambda *_, **__: None)
    monkeypatch.setattr(loader_module, "check_content", take_what_fits)
    monkeypatch.setattr(loader_module, "largest_rank", lambda *_: 8)
    nothing = HostAdapter((None,) * 4, 1.0)
    monkeypatch.setattr(loader_module, "host_adapter", lambda *_, **__: nothing)
    base, said, error = smuggled(start_tiny(), tmp_path)
    assert error is None
    assert said == base


def twins(node: Node, folder: Path) -> tuple[list[int], Callable[[bool], int]]:
    """Two adapters of one content: what they say, and how to unload "a" beside a request of "b"."""
    for name in ("a", "b"):
        node.publish(name, made(node, folder, 1), label="v1")
        whole = node.ask(name, tokens=60).tokens
    node.engine.pin(T, "b").result(PATIENCE)

    def unload(force: bool) -> int:
        doomed = node.ask("a", tokens=400).wait(tokens=1)
        spared = node.ask("b", tokens=60).wait(tokens=1)
        unloading = node.engine.unload(T, "a", force=force)
        if not force:
            node.engine.cancel(doomed.request_id)
        gone = unloading.result(PATIENCE)
        if force:
            assert isinstance(doomed.error, AdapterUnloaded)
        assert gone.served.adapter == "a"
        assert spared.tokens == whole
        return gone.failed_requests

    return whole, unload


@pytest.mark.parametrize("force", [False, True], ids=["drain", "force"])
def test_dynamo_8053_unloading_an_adapter_leaves_one_of_equal_content_in_service(
    start_tiny: StartTiny, tmp_path: Path, force: bool
) -> None:
    node = start_tiny()
    whole, unload = twins(node, tmp_path)
    assert unload(force) == force
    (left,) = node.engine.list_loaded().result(PATIENCE)
    assert (left.served.adapter, left.state, left.pinned) == ("b", VersionState.RESIDENT, True)
    assert [served.adapter for served in left.names] == ["b"]
    assert node.ask("a", tokens=60).tokens == whole
    node.settle()


def test_dynamo_8053_control_a_node_that_unloads_the_content_is_seen(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_tiny()
    _, unload = twins(node, tmp_path)
    monkeypatch.setattr(Names, "served_by", lambda self, key: [])
    unload(False)
    assert [v.state for v in node.engine.list_loaded().result(PATIENCE)] != [VersionState.RESIDENT]


def test_dynamo_8053_deleting_an_adapter_leaves_one_of_equal_content_in_service(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny()
    whole, _ = twins(node, tmp_path)
    running = node.ask("b", tokens=60).wait(tokens=1)
    node.publisher.delete(T, "a")
    assert node.ask("a", min_generation=2).error.reason == "ADAPTER_NOT_FOUND"
    assert running.tokens == whole
    assert node.ask("b", tokens=60).tokens == whole
    assert node.ask("b@v1", tokens=60).tokens == whole
