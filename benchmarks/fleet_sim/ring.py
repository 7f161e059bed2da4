"""Which node a request goes to: Envoy's ring hash with bounded load, and what it is compared with.

The ring is Envoy's `RING_HASH` (ketama's search over xxHash64 of `<address>_<i>`), as many points
for each node as `minimum_ring_size` asks, rounded up. A request goes to the owner of the first
point at or above xxHash64 of its adapter. With a balance factor the owner is passed over while it
has more requests than factor x the mean; then the others are asked in an order that the hash alone
decides (std::mt19937 and a Fisher-Yates shuffle), so that an overflowing adapter's requests keep to
the same few nodes (Envoy 1.40, thread_aware_lb_impl.cc; Mirrokni et al. 2016, Chen et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


class Router(Protocol):
    """Chooses by the adapter's number and by how many requests each node has."""

    def choose(self, adapter: int, active: Sequence[int], total: int) -> int: ...


def hashes(keys: Sequence[str]) -> Hashes:
    return np.fromiter((xxhash.xxh64_intdigest(key.encode()) for key in keys), np.uint64, len(keys))


class Ring:
    """Points of nodes on a circle of 64-bit numbers."""

    def __init__(self, addresses: Sequence[str], *, minimum_size: int) -> None:
        self.points_each = math.ceil(minimum_size / len(addresses))
        keys = [f"{address}_{i}" for address in addresses for i in range(self.points_each)]
        found = hashes(keys)
        order = np.argsort(found, kind="stable")
        self._points = found[order]
        self._nodes = order // self.points_each

    def owners(self, keys: Hashes) -> Places:
        """The node of each hash."""
        places = np.searchsorted(self._points, keys, side="left") % len(self._points)
        return self._nodes[places].astype(np.int64)


class RingHash:
    """By ring alone."""

    def __init__(self, owners: Places) -> None:
        self._owners = owners.tolist()

    def choose(self, adapter: int, active: Sequence[int], total: int) -> int:
        return int(self._owners[adapter])


class BoundedRingHash:
    """By ring, but no node takes more than its share times the balance factor."""

    def __init__(
        self, owners: Places, keys: Hashes, *, nodes: int, balance_percent: int = 125
    ) -> None:
        self._owners = owners.tolist()
        self._keys = keys
        self._count = nodes
        self._balance = balance_percent
        self._others: dict[int, Others] = {}

    def choose(self, adapter: int, active: Sequence[int], total: int) -> int:
        owner = int(self._owners[adapter])
        slots = self.slots(total)
        if active[owner] <= slots:
            return owner
        return self._overflow(adapter, owner, active, slots)

    def slots(self, total: int) -> int:
        """Requests that a node may have and still get another."""
        allowed = ((total + 1) * self._balance + 99) // 100
        return max(-(-allowed // self._count), 1)

    def _overflow(self, adapter: int, owner: int, active: Sequence[int], slots: int) -> int:
        others = self._others.get(adapter)
        if others is None:
            others = self._others[adapter] = Others(int(self._keys[adapter]), self._count)
        least = owner
        for node in others:
            if node == owner:
                continue
            if active[node] <= slots:
                return node
            if active[node] < active[least]:
                least = node
        return least


class Others:
    """All nodes in the order that a hash gives them, worked out as far as anybody looked."""

    def __init__(self, seed: int, nodes: int) -> None:
        self._nodes = nodes
        self._known: list[int] = []
        self._shuffle = _shuffled(seed, nodes)

    def __iter__(self) -> Iterator[int]:
        place = 0
        while place < self._nodes:
            if place == len(self._known):
                self._known.append(next(self._shuffle))
            yield self._known[place]
            place += 1


def mersenne(seed: int) -> Iterator[int]:
    """std::mt19937 of the low 32 bits of `seed`."""
    # RandomState seeds as the C++ generator does; the newer interface stirs the seed.
    state = np.random.RandomState(seed & 0xFFFFFFFF)
    while True:
        yield from state.randint(0, 2**32, 64, dtype=np.uint32).tolist()


def _shuffled(seed: int, nodes: int) -> Iterator[int]:
    random = mersenne(seed)
    moved: dict[int, int] = {}
    for place in range(nodes):
        left = nodes - place
        number = left
        while number >= left:
            number = next(random) // (2**32 // left)
        chosen = place + number
        yield moved.get(chosen, chosen)
        moved[chosen] = moved.get(place, place)


class Random:
    """Any node."""

    def __init__(self, nodes: int, seed: int) -> None:
        self._drawn = _integers(nodes, seed)

    def choose(self, adapter: int, active: Sequence[int], total: int) -> int:
        return next(self._drawn)


class LeastRequest:
    """Of two nodes at random the one with fewer requests, as Envoy's LEAST_REQUEST chooses."""

    def __init__(self, nodes: int, seed: int) -> None:
        self._drawn = _integers(nodes, seed)

    def choose(self, adapter: int, active: Sequence[int], total: int) -> int:
        one, other = next(self._drawn), next(self._drawn)
        return one if active[one] <= active[other] else other


def _integers(below: int, seed: int) -> Iterator[int]:
    random = np.random.default_rng(seed)
    while True:
        yield from random.integers(0, below, 65536).tolist()
