"""T12: nobody learns from the node's caches what another tenant, or another version, has asked.

Two tenants serve two versions each, of the very same bytes, and the base: the hardest case, since
nothing but the tenant keeps equal content apart. The same prompt goes to all of them. What a cache
gave is read from the books (tokens found in the prefix cache, chunks fetched from the store), and,
after Gu et al. (ICML 2025), from the clock alone, as a stranger would: are the times of prompts
that another has asked spread as those of prompts that nobody has (Kolmogorov-Smirnov)?
"""

from __future__ import annotations

import itertools
import math
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from unittest import mock

import torch

from adapter_store.cache import ContentCache
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.validate import read_adapter_dir
from inference_node.config import EngineConfig
from inference_node.engine import sequence as engine_sequence
from inference_node.engine.prefix import PrefixNames
from inference_node.model.default_base import ensure_default_base
from tests.chaos.bench import Bench
from tests.chaos.row import Row
from tests.inference_node.harness import Node, start_node
from tests.inference_node.step_audit import audited_steps
from tests.inference_node.tiny import make_adapter, make_checkpoint

PAIRS = 2000
SAMPLES = 250
FEWEST = 60
"""Below this many samples not even a plain difference has a p-value of SENSITIVE."""
ACROSS, SENSITIVE = 0.01, 1e-8
ATTEMPTS = 3
"""Equal spreads look unequal once in 1 / ACROSS audits: they differ when every attempt says so."""
SHORT, LONG = 40, 440
"""Tokens of a prompt in the books' and in the clock's audit."""
TENANTS = (DEFAULT_TENANT, "other")


@dataclass(frozen=True, slots=True)
class Side:
    """Who asks, and of which version."""

    tenant: str
    adapter: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.adapter or 'base'}"


SIDES = tuple(Side(tenant, adapter) for tenant in TENANTS for adapter in ("", "a@v1", "a@v2"))
MINE, THEIRS = Side(DEFAULT_TENANT, "a@v1"), Side("other", "a@v1")


class CountingStore(MemoryStore):
    """Counts how often the bytes of a version are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks = 0

    def get(self, key: str) -> bytes:
        self.chunks += "/blob/" in key
        return super().get(key)


@dataclass
class Audited:
    """A node, and prompts that nobody has asked yet."""

    node: Node
    random: random.Random
    store: CountingStore
    folder: Path
    fresh: Iterator[int] = field(default_factory=itertools.count)

    def prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self.random.randrange(3, 40_000) for _ in range(length))

    def cached(self, side: Side, prompt: Sequence[int]) -> int:
        """Ask; how many tokens of the prompt a cache had."""
        answer = self.node.ask(side.adapter, prompt, tenant=side.tenant, tokens=1).completed
        served = f"{answer.served.adapter}@{answer.served.version}" if side.adapter else ""
        assert (answer.served.tenant, served) == (side.tenant, side.adapter)
        return answer.usage.cached_tokens

    def seconds(self, side: Side, prompt: Sequence[int]) -> float:
        """From the call to the last event of one token, by the caller's clock."""
        begun = time.perf_counter()
        self.node.ask(side.adapter, prompt, tenant=side.tenant, tokens=1).wait()
        return time.perf_counter() - begun

    def publish(self, tenant: str, name: str, *, seed: int, label: str) -> None:
        card = self.node.card
        folder = self.folder / f"seed{seed}"
        if not folder.exists():
            make_adapter(folder, dict(card.modules), rank=4, seed=seed, targets=["q_proj"])
        local = read_adapter_dir(folder, card=card)
        self.node.publisher.publish(tenant, name, local, label=label)

    def fetches(self, tenant: str, name: str) -> int:
        """Ask for an adapter; how many chunks that took from the store."""
        before = self.store.chunks
        self.cached(Side(tenant, f"{name}@v1"), self.prompt(4))
        return self.store.chunks - before


def run(scale: float, seed: int, bench: Bench) -> Row:
    """At scale 1: 2,000 pairs, 250 samples of each kind."""
    samples = max(FEWEST, round(SAMPLES * scale))
    with audited_steps() as steps, _node(bench.folder / "audit", seed) as audited:
        hits, within, pairs = _pairs(audited, max(45, round(PAIRS * scale)))
        loads = _loads(audited, max(4, round(40 * scale)))
        clock = _clock(audited, samples)
    violations = [*hits, *loads, *steps.broken]
    if clock.across <= ACROSS:
        violations.append(f"seed {seed}: the clock tells: p = {clock.across:.1e} across tenants")
    if not within:
        violations.append(f"seed {seed}: a side's own prompt is not in the cache either")
    return Row(
        id="T12",
        cases=pairs,
        unit="pairs of sides",
        violations=violations,
        controls=_controls(bench.folder, seed)
        | {"the clock, within a tenant": clock.within < SENSITIVE},
        seeds=str(seed),
        figures={
            "hits_within": within,
            "hits_across": len(hits),
            "steps_checked": steps.checks,
            "samples": samples,
            "audits": clock.attempts,
            "p_across": clock.across,
            "p_within": clock.within,
            "median_ms_miss": round(clock.miss * 1000, 3),
            "median_ms_across": round(clock.foreign * 1000, 3),
            "median_ms_within": round(clock.own * 1000, 3),
        },
    )


@contextmanager
def _node(folder: Path, seed: int) -> Iterator[Audited]:
    """A node that serves the same two versions to two tenants, with every cache it has."""
    base = make_checkpoint(folder / "base", tokenizer_from=ensure_default_base())
    torch.set_num_threads(1)
    config = EngineConfig(
        base_model=str(base),
        device="cpu",
        linears="dense",
        dtype="float32",
        pool_bytes=2 * 2**20,
        kv_tokens=16 * 1024,
        max_context=512,
    )
    store = CountingStore()
    cache = ContentCache(folder / "cache", budget_bytes=2**30)
    node = start_node(config, store, reader=Reader(store, cache=cache))
    audited = Audited(node, random.Random(seed), store, folder)
    try:
        for tenant in TENANTS:
            for number in (1, 2):
                audited.publish(tenant, "a", seed=number, label=f"v{number}")
        yield audited
        node.settle()
    finally:
        node.close()


def _pairs(audited: Audited, wanted: int) -> tuple[list[str], int, int]:
    """Hits between two sides, hits within one, and how many pairs were asked."""
    hits: list[str] = []
    within = pairs = 0
    while pairs < wanted:
        prompt = audited.prompt(SHORT)
        order = audited.random.sample(SIDES, len(SIDES))
        for place, side in enumerate(order):
            if audited.cached(side, prompt):
                hits.append(f"{side} found what {order[:place]} had asked")
        within += audited.cached(order[0], prompt) > 0
        pairs += math.comb(len(order), 2)
    return hits, within, pairs


def _loads(audited: Audited, count: int) -> list[str]:
    """Adapters of equal bytes under two tenants: the second load costs what the first one did."""
    found = []
    for _ in range(count):
        number = next(audited.fresh)
        for tenant in TENANTS:
            audited.publish(tenant, f"n{number}", seed=100 + number, label="v1")
        first, second = (audited.fetches(tenant, f"n{number}") for tenant in TENANTS)
        if not first or first != second:
            found.append(f"n{number}: {first} fetches, and {second} for the tenant after it")
    return found


@dataclass(frozen=True, slots=True)
class Clock:
    """What the times told."""

    across: float
    within: float
    attempts: int
    miss: float
    foreign: float
    own: float


def _clock(audited: Audited, samples: int) -> Clock:
    """Times of prompts that nobody, another tenant, or the asker itself has asked before."""
    attempts = 0
    while attempts < ATTEMPTS:
        attempts += 1
        miss, foreign, own = [], [], []
        for _ in range(samples):
            for kind in audited.random.sample((miss, foreign, own), 3):
                prompt = audited.prompt(LONG)
                before = {id(foreign): THEIRS, id(own): MINE}.get(id(kind))
                # Whoever asked first asked as much: what is timed follows the same work.
                audited.seconds(before or THEIRS, prompt if before else audited.prompt(LONG))
                kind.append(audited.seconds(MINE, prompt))
        across = same_spread(miss, foreign)
        if across > ACROSS:
            break
    medians = (median(times) for times in (miss, foreign, own))
    return Clock(across, same_spread(miss, own), attempts, *medians)


def same_spread(some: Sequence[float], others: Sequence[float]) -> float:
    """The p-value of the two-sample Kolmogorov-Smirnov test (its asymptotic series)."""
    a, b = sorted(some), sorted(others)
    gap = max(
        abs(bisect_right(a, x) / len(a) - bisect_right(b, x) / len(b)) for x in (*some, *others)
    )
    size = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    reach = (size + 0.12 + 0.11 / size) * gap
    if reach < 0.2:
        return 1.0
    series = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * reach) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(series)))


Root = Callable[[PrefixNames, engine_sequence.Sequence], bytes]


def _no_tenant(_: PrefixNames, asked: engine_sequence.Sequence) -> bytes:
    return asked.entry.key.vdig.encode() if asked.entry else b""


def _no_version(_: PrefixNames, asked: engine_sequence.Sequence) -> bytes:
    return f"{asked.request.tenant}/{asked.entry.adapter if asked.entry else ''}".encode()


def _controls(folder: Path, seed: int) -> dict[str, bool]:
    """Each border taken down, and whether the audit sees through it."""
    found = {}
    borders: dict[str, Root] = {"tenant": _no_tenant, "version": _no_version}
    for border, root in borders.items():
        with (
            mock.patch.object(PrefixNames, "root", root),
            _node(folder / f"no-{border}", seed) as audited,
        ):
            found[f"prefixes without their {border}"] = bool(_pairs(audited, 15)[0])
            if border == "tenant":
                clock = _clock(audited, FEWEST)
                found["the clock, across tenants that share"] = clock.across < SENSITIVE
    get, put = ContentCache.get, ContentCache.put
    with (
        mock.patch.object(ContentCache, "get", lambda self, sha256, *, owner: get(self, sha256)),
        mock.patch.object(
            ContentCache, "put", lambda self, sha256, body, *, owner: put(self, sha256, body)
        ),
        _node(folder / "no-owner", seed) as audited,
    ):
        found["chunks on disk without their owner"] = bool(_loads(audited, 1))
    return found
