"""What an engine tells of itself when it is asked: numbers and names, all of one moment.

Nothing here is made while tokens are computed but counts; everything else is looked up when
somebody reads. No torch, no protobuf, no Prometheus.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from inference_node.distribution import Distribution
from inference_node.residency import LoadedVersion, PoolUse, Tier, VersionState


@dataclass(frozen=True, slots=True)
class InProgress:
    """Accepted requests that have not ended."""

    resolving: int
    """Their reference is being looked up."""
    loading: int
    """Their version is on the way to the device."""
    waiting: int
    """They wait for a row or for KV blocks."""
    running: int
    limit: int
    """So many are accepted at most."""
    oldest_seconds: float
    """Since the one that has waited longest for its first step was accepted; 0 when none waits."""
    running_adapters: tuple[tuple[str, str], ...]
    """Tenant and adapter of each that runs with one, every pair once, in order."""
    waiting_adapters: tuple[tuple[str, str], ...]
    """The same of those that wait for anything, once their version is known."""


@dataclass(frozen=True, slots=True)
class KvCache:
    """Blocks: total = free + kept + held."""

    total: int
    held: int
    """By requests."""
    kept: int
    """By nobody; their content may serve the next request with the same beginning."""
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Decoding:
    """Since the engine started. Times are seconds."""

    steps: Distribution
    queue: Distribution
    """From acceptance to a request's first step."""
    adapter_wait: Distribution
    """From acceptance until a request held its version, of requests that name an adapter."""
    first_token: Distribution
    """From acceptance to a request's first token."""
    gaps_quiet: Distribution
    """Between two tokens of one request, while no adapter was being loaded."""
    gaps_loading: Distribution
    """The same, while one was."""
    stalled: float
    """Seconds that the engine thread, with requests to serve, spent on adapters between steps."""
    prompt_tokens: int
    """Of requests that reached their first step."""
    cached_tokens: int
    """Of those: not computed, for the cache had them."""
    generated_tokens: int
    preemptions: int
    """Times that a running request gave its KV blocks up and started over."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Since the engine started. Times are seconds."""

    in_work: int
    """Versions being fetched, checked or copied now."""
    lookups: Mapping[str, int]
    """References looked up, by `FOUND` or the reason why not."""
    loads: Mapping[str, int]
    """Versions that became resident, by where their weights came from: `store` or `host`."""
    refused: Mapping[str, int]
    """Versions that could not be loaded, by reason."""
    fetched_bytes: int
    """Of files whose every digest was right, from the store or from the disk cache."""
    resolve: Distribution
    fetch: Distribution
    """Reading a version's files, their digests checked on the way."""
    verify: Distribution
    """Checking what the files hold, and laying it out in pages on the host."""
    stage: Distribution
    """From then until pages were taken."""
    promote: Distribution
    """From then until requests could have it."""
    whole: Distribution
    """From the decision to load until requests could have it."""
    swaps: int
    """Times that a served name went on to another version."""
    made_way: int
    """Versions that others had waited for too long, and so were taken off running requests."""
    withdrawals: int
    """Times that what a name served was no longer to be believed."""
    evicted: Mapping[Tier, int]


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at the engine, between two steps."""

    requests: InProgress
    kv: KvCache
    decoding: Decoding
    loading: Loading
    pool: PoolUse
    versions: Mapping[tuple[Tier, VersionState], int]
    """How many there are, each in its nearest tier."""
    listed: tuple[LoadedVersion, ...]
    """The most recently used of them, those on the device first."""
    store_away: bool
    """The store has not answered a few times in a row, and is left alone for a while."""
    hints_healthy: bool | None
    """None where the node has no hints."""


class Readable(Protocol):
    """`inference_node.engine.loop.EngineLoop` is the real one."""

    def read(self, *, listed: int) -> Future[Readings]:
        """A look between two steps, with at most `listed` versions by name. Any thread.

        Raises Draining once the engine stops; the future ends with the readings, or with a
        NodeError when the engine ends first.
        """
        ...
