"""Fidelity: pages are written thousands of times beside decode steps, and no byte goes astray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.node import DTYPE, Node, adapters, random_pool
from benchmarks.gpu.results import Figure
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.versions import Resident, VersionKey
from inference_node.adapters.weights import HostAdapter, HostGroup
from inference_node.model.static_batch import DecodeRow

SWAPS = 10_000
SECONDS = 60.0
_SPOTS = 4
_HOSTS = 5
"""No multiple of the spots: each spot gets every adapter in turn."""


def swaps(node: Node, clock: Clock) -> Iterator[Figure]:
    """Adapters are written over each other while others decode from pages beside theirs.

    Counted are writes whose pages then differ from the host's bytes, and steps whose logits differ
    from those of the first. One wrong write, seeded at the end, must be counted.
    """
    groups = len(node.modules.groups)
    # Two pages that a decoding adapter has, and the spots behind them.
    pool = random_pool(node, 2 + _SPOTS)
    node.bind(pool.groups)
    slots = adapters([16], [True] * groups)
    rows = min(8, max(node.size.rows))
    node.capture(rows)
    step = node.step(slots * rows)
    first = _logits(node, step)
    swapper = _Swapper(node, pool, SWAPS if clock.cuda else 6)
    thread = threading.Thread(target=swapper.run)
    changed = torch.zeros((), dtype=torch.int64, device=node.device)
    turns = 0
    thread.start()
    while thread.is_alive():
        changed += (_logits(node, step) != first).any()
        turns += 1
    thread.join()
    if swapper.error is not None:
        raise swapper.error
    wrong = int(swapper.wrong)
    swapper.one(swapper.done, wrong_host=True)
    seen = int(swapper.wrong) - wrong
    if seen != 1:
        raise AssertionError("a wrong write was not seen: the comparison proves nothing")
    parts = {"swaps": swapper.done, "steps beside them": turns, "seeded and seen": seen}
    yield Figure("swaps", wrong, parts=parts)
    yield Figure("swaps b", int(changed), parts=parts)


def _logits(node: Node, step: Sequence[DecodeRow]) -> torch.Tensor:
    """Of a step whose tokens were read, as the engine reads them."""
    decoded = node.graphs.run(step)
    assert decoded is not None
    decoded.best.tolist()
    return decoded.logits.clone()


class _Swapper:
    """Writes adapters of one page a group into the spots, in turn."""

    def __init__(self, node: Node, pool: AdapterPool, count: int) -> None:
        self._pool, self._count = pool, count
        cuda = node.device.type == "cuda"
        self._stream = torch.cuda.Stream() if cuda else None
        self._hosts = [self._host(node, pin=cuda) for _ in range(_HOSTS)]
        self._on_device = [
            [(g.a.to(node.device), g.b.to(node.device)) for g in host.groups if g is not None]
            for host in self._hosts
        ]
        self.wrong = torch.zeros((), dtype=torch.int64, device=node.device)
        self.done = 0
        self.error: Exception | None = None

    def run(self) -> None:
        until = time.monotonic() + SECONDS
        try:
            while self.done < self._count and time.monotonic() < until:
                self.one(self.done)
                self.done += 1
        except Exception as error:
            self.error = error

    def one(self, turn: int, *, wrong_host: bool = False) -> None:
        """One write, and what the pages hold after it beside what they should."""
        page, host = 3 + turn % _SPOTS, turn % _HOSTS
        pages = ((page,),) * len(self._pool.groups)
        staged = Resident(VersionKey("bench", str(turn)), pages, 1.0, turn + 1)
        written = (host + 1) % _HOSTS if wrong_host else host
        self._pool.claim(staged)
        self._pool.write(staged, self._hosts[written])
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            same = [
                (group.a[page] == a[0]).all() & (group.b[page] == b[0]).all()
                for group, (a, b) in zip(self._pool.groups, self._on_device[host], strict=True)
            ]
            self.wrong += ~torch.stack(same).all()
        if self._stream is not None:
            self._stream.synchronize()

    def _host(self, node: Node, *, pin: bool) -> HostAdapter:
        def random(shape: tuple[int, ...]) -> torch.Tensor:
            made = torch.randn((1, node.modules.layers, *shape)).to(DTYPE) * 0.02
            return made.pin_memory() if pin else made

        groups = tuple(
            HostGroup(random(group.shape.a_page), random(group.shape.b_page))
            for group in node.modules.groups
        )
        return HostAdapter(groups, 1.0)
