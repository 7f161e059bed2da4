"""Where requests of a fleet go: each adapter's to the node that has it, a hot one's to all.

Nodes count by themselves which adapter was asked of them; the ring that was built after Envoy's
(benchmarks/fleet_sim/ring.py) says whose each adapter is. The controls are callers that do not say
which adapter they ask for, and a gateway that bounds no node's load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from benchmarks.fleet_sim import ring
from benchmarks.placement.books import Books, read
from benchmarks.placement.site import points
from inference_node.client import Client, Stopping
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from tests.adapter_store.waiting import wait_until
from tests.chaos.fleet.front import Front, front_before
from tests.chaos.fleet.site import FleetNode
from tests.chaos.fleet.tattoos import Tattoos, name
from tests.inference_node.tattoo import Verdict

AFFINITY = 0.95
"""Of requests, on the node that the ring names."""
HOT = 24
"""Requests at once for one adapter."""
BOUND = 1.25
"""Times the average: what a node has of them at most."""
UNSAID = 60
"""Requests of callers that do not say which adapter they ask for."""
_AT_ONCE = 3
_LONG = Stopping(max_new_tokens=64, ignore_eos=True)
_PATIENCE_S = 60.0


@dataclass(slots=True)
class Placement:
    """Where the requests of some time went."""

    requests: int = 0
    affinity: float = 0.0

    def broken(self) -> list[str]:
        if self.affinity >= AFFINITY:
            return []
        return [f"only {self.affinity:.1%} of {self.requests} requests were on their node"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Where HOT requests for one adapter went that were asked at once."""

    by_node: Sequence[int]
    """Most first."""
    not_right: Sequence[Verdict]

    def broken(self) -> list[str]:
        found = [f"a hot adapter was answered by {one.value}" for one in self.not_right]
        most, least = self.by_node[0], self.by_node[-1]
        if most > BOUND * HOT / len(self.by_node) + 1:
            found.append(f"a node had {most} of {HOT} requests for a hot adapter")
        if not least:
            found.append("a node had none of the requests for a hot adapter")
        return found


@dataclass(frozen=True, slots=True)
class Ledger:
    """What nodes have counted, against the ring."""

    nodes: Sequence[FleetNode]
    owners: dict[str, int] = field(default_factory=dict)
    """Of each adapter, which of `nodes` it is on."""

    @classmethod
    def of(cls, nodes: Sequence[FleetNode], front: Front, adapters: int) -> Ledger:
        names = [name(adapter) for adapter in range(adapters)]
        circle = ring.Ring([node.address for node in nodes], minimum_size=points(front.config))
        owners = circle.owners(ring.hashes(names)).tolist()
        return cls(nodes, dict(zip(names, owners, strict=True)))

    @contextmanager
    def placement(self) -> Iterator[Placement]:
        """Of the requests that end in the block; filled in when it ends."""
        found, before = Placement(), self._books()
        yield found
        books = self._books().since(before)
        found.requests, found.affinity = books.requests, books.at(self.owners)

    def spread(self, front: Front, adapter: int) -> Spread:
        """A hot adapter."""
        before = self._books()
        with Client(front.address) as client:
            streams = [
                client.stream("x", adapter=name(adapter), stopping=_LONG) for _ in range(HOT)
            ]
            answers = [stream.result for stream in streams]
        verdicts = [Tattoos.read(adapter, one.served.version, one.token_ids) for one in answers]
        wait_until(lambda: self._books().since(before).requests >= HOT, within_s=_PATIENCE_S)
        asked = [counts.total() for counts in self._books().since(before).asked]
        return Spread(
            sorted(asked, reverse=True), [one for one in verdicts if one is not Verdict.RIGHT]
        )

    def _books(self) -> Books:
        return read([node.scrape for node in self.nodes])


def unbounded_is_noticed(ledger: Ledger, front: Front, adapter: int) -> bool:
    """The control: one node has all that a hot adapter is asked for."""
    bounded = "{hash_balance_factor: 125}"
    without: Callable[[str], str] = lambda text: text.replace(bounded, "{}")  # noqa: E731
    with front_before(front.stack, ledger.nodes, name="unbounded", edit=without) as unbounded:
        return bool(ledger.spread(unbounded, adapter).broken())


def unsaid_is_noticed(ledger: Ledger, front: Front) -> bool:
    """The control: without `x-adapter-id` any node will do."""
    with ledger.placement() as found, grpc.insecure_channel(front.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        def ask(adapter: str) -> None:
            request = pb.GenerateRequest(adapter=adapter, prompt="x")
            request.stopping.max_new_tokens = 1
            stub.Generate(request, timeout=_PATIENCE_S)

        names = list(ledger.owners)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(ask, (names[number % len(names)] for number in range(UNSAID))))
    return bool(found.broken())
