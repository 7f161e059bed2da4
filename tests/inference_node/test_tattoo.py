"""The tattoo tells every way in which an answer can be wrong, in a real engine.

Tears are made in the pool's own memory: a factor of a page in one layer, emptied or taken from
another version, is the least that a lost or late copy can leave behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch

from inference_node.adapters.versions import Resident
from inference_node.kernels.lora import SlotPages
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import Node
from tests.inference_node.tattoo import (
    ADAPTERS,
    MAX_RANK,
    VERSIONS,
    Mark,
    Tattooist,
    Verdict,
    read_token,
    verdict,
)

TWO_PAGES = 16
MINE, NEXT, OTHER = Mark(1, 1), Mark(1, 2), Mark(2, 1)
Site = tuple[int, int, int, int]
"""Group, index of the page within its version, layer, and factor: 0 is A, 1 is B."""


def resident(node: Node, mark: Mark) -> Resident:
    entry = node.engine._slots.serving("default", label_of(mark))
    assert entry is not None
    found = node.engine._slots.resident(entry.key)
    assert found is not None
    return found


def label_of(mark: Mark) -> str:
    return f"{mark.name}-{mark.version}"


@pytest.fixture
def tattooed(start_tiny: StartTiny, tattoo_base: Path, tmp_path: Path) -> Node:
    """Three marks of two pages, each under a name of its own, resident."""
    node = start_tiny(base_model=str(tattoo_base))
    tattooist = Tattooist(tattoo_base)
    for mark in (MINE, NEXT, OTHER):
        folder = tattooist.make(tmp_path / label_of(mark), mark, rank=TWO_PAGES)
        node.publish(label_of(mark), folder)
        assert verdict(node.ask(label_of(mark)).tokens, mark) is Verdict.RIGHT
    return node


def memory(node: Node, mark: Mark, site: Site) -> torch.Tensor:
    """One factor of one page in one layer, where the engine reads it."""
    group, page, layer, factor = site
    pool = node.engine._runner._pool.groups[group]
    number = resident(node, mark).pages[group][page]
    return (pool.a, pool.b)[factor][number, layer]


@contextmanager
def torn(node: Node, sites: list[Site], source: Mark | None) -> Iterator[None]:
    """MINE with these sites emptied, or taken from `source`."""
    node.settle()
    before = [memory(node, MINE, site).clone() for site in sites]
    for site in sites:
        memory(node, MINE, site).copy_(
            torch.tensor(0.0) if source is None else memory(node, source, site)
        )
    node.engine._runner._decoder._step._kept.clear()
    yield
    node.settle()
    for site, content in zip(sites, before, strict=True):
        memory(node, MINE, site).copy_(content)
    node.engine._runner._decoder._step._kept.clear()


def sites() -> list[Site]:
    return list(product(range(4), range(2), range(2), range(2)))


def look(node: Node, prompt: str = "The sea") -> Verdict:
    return verdict(node.ask(label_of(MINE), prompt, tokens=3).tokens, MINE)


def test_every_mark_names_itself_after_any_prompt_and_the_base_names_itself(
    start_tiny: StartTiny, tattoo_base: Path, tmp_path: Path
) -> None:
    node = start_tiny(base_model=str(tattoo_base))
    tattooist = Tattooist(tattoo_base)
    asked = []
    for adapter, rank in zip((0, 7, ADAPTERS - 1), (2, 13, MAX_RANK), strict=True):
        for version in (0, VERSIONS - 1):
            mark = Mark(adapter, version)
            node.publish(label_of(mark), tattooist.make(tmp_path / label_of(mark), mark, rank=rank))
            asked += [
                (mark, node.ask(label_of(mark), prompt, tokens=12))
                for prompt in ("a", "Tell me about the sea. " * 20)
            ]
    bare = node.ask("", tokens=12).tokens
    assert [verdict(answer.tokens, mark) for mark, answer in asked] == [Verdict.RIGHT] * len(asked)
    assert {read_token(token) for token in bare} == {"base"}


@pytest.mark.parametrize("source", [None, NEXT, OTHER], ids=["empty", "version", "adapter"])
def test_any_factor_of_any_page_in_any_layer_that_is_not_its_own_is_torn(
    tattooed: Node, source: Mark | None
) -> None:
    found = {}
    for site in sites():
        with torn(tattooed, [site], source):
            found[site] = look(tattooed)
    assert {site: how for site, how in found.items() if how is not Verdict.TORN} == {}
    assert look(tattooed) is Verdict.RIGHT


@pytest.mark.parametrize("source", [None, NEXT, OTHER], ids=["empty", "version", "adapter"])
def test_pages_and_layers_and_factors_that_are_not_its_own_are_torn(
    tattooed: Node, source: Mark | None
) -> None:
    """What a copy that stops half way leaves: by group, page, layer or factor."""
    found = {}
    for axis, name in enumerate(("group", "page", "layer", "factor")):
        for value in sorted({site[axis] for site in sites()}):
            with torn(tattooed, [site for site in sites() if site[axis] == value], source):
                found[name, value] = look(tattooed)
    nothing = {("factor", 0): Verdict.BASE, ("factor", 1): Verdict.BASE} if source is None else {}
    assert found == dict.fromkeys(found, Verdict.TORN) | nothing


def test_the_last_rank_of_a_page_alone_is_missed(tattooed: Node) -> None:
    tattooed.settle()
    for group in range(4):
        last = memory(tattooed, MINE, (group, 1, 1, 1))[-1]
        kept = last.clone()
        last.zero_()
        tattooed.engine._runner._decoder._step._kept.clear()
        assert look(tattooed) is Verdict.TORN
        last.copy_(kept)


def test_all_pages_of_another_are_the_other(tattooed: Node) -> None:
    for source, expected in ((NEXT, Verdict.WRONG_VERSION), (OTHER, Verdict.WRONG_ADAPTER)):
        with torn(tattooed, sites(), source):
            assert look(tattooed) is expected
    with torn(tattooed, sites(), None):
        assert look(tattooed) is Verdict.BASE


def switch(node: Node, patch: pytest.MonkeyPatch, *, after: int, to: Mark | None) -> None:
    """Seeded bug: from its step number `after` on, MINE's request runs on another's pages."""
    pool = node.engine._runner._pool
    routing = pool.routing
    mine, other = resident(node, MINE), None if to is None else resident(node, to)
    steps = iter(range(10_000))

    def follow(held: Resident) -> SlotPages:
        if held is not mine or next(steps) < after:
            return routing(held)
        nothing = SlotPages(((), (), (), ()), 1.0, -1)
        return nothing if other is None else routing(other)

    patch.setattr(pool, "routing", follow)


@pytest.mark.parametrize("to", [NEXT, OTHER, None], ids=["version", "adapter", "base"])
def test_an_answer_that_changes_hands_on_the_way_is_mixed(
    tattooed: Node, monkeypatch: pytest.MonkeyPatch, to: Mark | None
) -> None:
    # The check after every step looks at routing too; here each call is a step.
    monkeypatch.setattr("tests.inference_node.step_audit.check_leases", lambda engine: None)
    switch(tattooed, monkeypatch, after=4, to=to)
    answer = tattooed.ask(label_of(MINE), tokens=12).tokens
    assert answer[:4] == [MINE.token] * 4
    assert verdict(answer, MINE) is Verdict.MIXED


@pytest.mark.parametrize("to", [NEXT, OTHER], ids=["version", "adapter"])
def test_keys_and_values_of_another_are_not_taken_for_its_own(
    tattooed: Node, monkeypatch: pytest.MonkeyPatch, to: Mark
) -> None:
    """A prompt cached under another version, as a prefix cache keyed by names would give it."""
    monkeypatch.setattr("tests.inference_node.step_audit.check_leases", lambda engine: None)
    pool = tattooed.engine._runner._pool
    routing = pool.routing
    mine, other = resident(tattooed, MINE), resident(tattooed, to)
    chunks = iter([True])

    def stale_prompt(held: Resident) -> SlotPages:
        return routing(other if held is mine and next(chunks, False) else held)

    monkeypatch.setattr(tattooed.engine._scheduler, "_step_tokens", 40)
    monkeypatch.setattr(pool, "routing", stale_prompt)
    prompt = tattooed.engine.tokenizer.encode("The sea is wide and deep. " * 20)[:48]
    answer = tattooed.ask(label_of(MINE), prompt, tokens=4).tokens
    assert verdict(answer, MINE) in (Verdict.TORN, Verdict.MIXED)


def test_of_a_whole_tattoo_nothing_is_left_but_its_name(tattoo_base: Path) -> None:
    """Else the name of some mark drowns in its own torn tokens, with every byte in its place."""
    tattooist = Tattooist(tattoo_base)
    for adapter, rank in product(range(0, ADAPTERS, 5), (2, 5, 8, 13, MAX_RANK)):
        mark = Mark(adapter, adapter % VERSIONS)
        said = tattooist._name(mark, rank).sum(dim=0)
        name = tattooist._directions[mark.token]
        assert torch.cosine_similarity(said, name, dim=0) > 0.999, (mark, rank)


def test_no_verdict_is_right_for_anything_but_the_mark_from_first_token_to_last() -> None:
    mark = MINE.token
    cases = {
        (mark, mark): Verdict.RIGHT,
        (NEXT.token,) * 2: Verdict.WRONG_VERSION,
        (OTHER.token,) * 2: Verdict.WRONG_ADAPTER,
        (mark, NEXT.token): Verdict.MIXED,
        (mark, 1000): Verdict.MIXED,
        (mark, 1003): Verdict.MIXED,
        (1000, 1003): Verdict.TORN,
        (1000,): Verdict.BASE,
        (1003, 1004): Verdict.TORN,
        (48_000,): Verdict.TORN,
        (): Verdict.EMPTY,
    }
    assert {tokens: verdict(tokens, MINE) for tokens in cases} == cases
