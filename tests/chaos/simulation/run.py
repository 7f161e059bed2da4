"""One seed, from the first step to the last question."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from adapter_store import layout
from adapter_store.attempt import Limits
from adapter_store.commit import Publisher
from adapter_store.intent import decode_plan
from adapter_store.reader import Reader
from tests.chaos.simulation.bucket import Bucket
from tests.chaos.simulation.collectors import Collectors
from tests.chaos.simulation.contents import ADAPTERS, TENANT, content
from tests.chaos.simulation.coordination import Redis
from tests.chaos.simulation.ledger import Ledger
from tests.chaos.simulation.nodes import Nodes
from tests.chaos.simulation.pinners import Pinners
from tests.chaos.simulation.publishers import Publishers
from tests.chaos.simulation.world import EPOCH, World

STEPS = 250
QUIET_STEPS = 2000
KEEP = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed showed."""

    seed: int
    violation: str
    steps: int
    faults: Counter[str]
    outcomes: Counter[str]
    digest: str
    """sha256 over the keys that are left: equal for equal runs."""


@cache
def _start() -> tuple[Bucket, Ledger]:
    """Every adapter with two versions, the first already out of service."""
    bucket, ledger = Bucket(clock=lambda: EPOCH), Ledger(keep=KEEP)
    problems: list[str] = []
    ledger.watch(bucket, problems.append)
    numbers = iter(range(100))
    publisher = Publisher(
        bucket,
        actor="before",
        warn=lambda text: None,
        limits=Limits(parallel=1),
        new_txid=lambda: f"{next(numbers):032x}",
        now=lambda: "",
    )
    for number, adapter in enumerate(ADAPTERS):
        publisher.publish(TENANT, adapter, content(number))
        publisher.publish(TENANT, adapter, content(number + 1))
    assert not problems
    return bucket, ledger


def simulate(seed: int, *, trace: Callable[[str], None] | None = None) -> Outcome:
    """Run one seed; the same seed runs the same way."""
    bucket, ledger = _start()
    world = World(seed, bucket, Ledger(keep=KEEP).copied_from(ledger))
    world.trace = trace
    redis = Redis(world)
    publishers = Publishers(world, redis, at_once=world.random.randint(2, 4))
    world.moves.append(publishers.move)
    collectors = Collectors(world, at_once=2, keep=KEEP)
    world.moves.append(collectors.move)
    pinners = Pinners(world)
    world.moves.append(pinners.move)
    Nodes(world, redis, count=3)
    try:
        world.run(steps=STEPS)
        _calm_down(world, publishers, collectors, pinners)
        if not world.violation:
            _ask_around(world)
    finally:
        world.end()
    return Outcome(
        seed,
        world.violation,
        world.tally.steps,
        Counter({fault.value: count for fault, count in world.tally.faults.items()}),
        world.tally.outcomes,
        hashlib.sha256("\n".join(world.bucket.under("")).encode()).hexdigest(),
    )


def _calm_down(
    world: World, publishers: Publishers, collectors: Collectors, pinners: Pinners
) -> None:
    """No more trouble: what is under way arrives, everybody finishes, open ends are settled."""
    world.calm = True
    while world.flights and not world.over:
        world.deliver(world.random.choice(world.flights))
    world.run(steps=QUIET_STEPS)
    for open_end in list(publishers.unsettled):
        publishers.settle(open_end)
    world.run(steps=QUIET_STEPS)
    pinners.unpin_all()
    for clean in (collectors.reap, collectors.collect, collectors.collect):
        clean()
        world.run(steps=QUIET_STEPS)
    if not world.over and world.baton.tasks:
        world.violated(f"{[task.name for task in world.baton.tasks]} never came to an end")
    if not world.over and publishers.unsettled:
        world.violated(f"{publishers.unsettled} cannot be settled although all is quiet")


def _ask_around(world: World) -> None:
    """A reader that was not there finds every log linked and every current version whole.

    And nothing else is left in the store: what crashes leave behind goes away in the end.
    """
    world.ledger.check_whole()
    needed = world.ledger.needed()
    chunks = world.bucket.under(layout.blobs_prefix(TENANT))
    intents = world.bucket.under(layout.intents_prefix(TENANT))
    # A plan stays while a chunk that it names is needed.
    plans = [
        key
        for key in world.bucket.under(layout.plans_prefix(TENANT))
        if needed.isdisjoint(decode_plan(world.bucket.get(key)).keys)
    ]
    garbage = [*(key for key in chunks if key not in needed), *intents, *plans]
    if garbage:
        world.violated(f"garbage stays: {garbage}")
    reader = Reader(world.bucket, parallel=1)
    for adapter in ADAPTERS:
        history = list(reader.history(TENANT, adapter))
        if history[0].active is not None:
            reader.fetch(TENANT, history[0].active, adapter=adapter)
