"""Publishers at work: each call of the real Publisher is a process that may die in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapter_store.attempt import Limits, Published
from adapter_store.commit import Publisher
from adapter_store.errors import (
    Conflict,
    LockLost,
    NotFound,
    OutcomeUnknown,
    StoreUnavailable,
)
from tests.chaos.simulation.baton import Process
from tests.chaos.simulation.connection import Connection
from tests.chaos.simulation.contents import ADAPTERS, CONTENTS, TENANT, content, vdig
from tests.chaos.simulation.coordination import Redis, SimulatedAnnouncer, SimulatedLock
from tests.chaos.simulation.world import World

Act = Callable[[Publisher, str], Published]


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A transaction whose publisher could not tell."""

    adapter: str
    txid: str


class Publishers:
    """Keeps up to `at_once` publishers busy, and remembers what each was told."""

    def __init__(self, world: World, redis: Redis, *, at_once: int) -> None:
        self._world = world
        self._redis = redis
        self._at_once = at_once
        self._running: list[Process] = []
        self._crowd = world.random.choice((0, 3, 20))
        self.unsettled: list[Unsettled] = []
        self._repertoire = [
            *[self._publish] * 6,
            *[self._roll_back] * 2,
            *[self._stage] * 2,
            self._activate,
            self._split,
            self._delete,
        ]

    def move(self) -> None:
        """Start another publisher when there is room."""
        world = self._world
        self._running = [process for process in self._running if not process.dead]
        if world.calm or len(self._running) >= self._at_once or world.random.random() > 0.15:
            return
        if self.unsettled and world.random.random() < 0.3:
            self.settle(world.random.choice(self.unsettled))
        else:
            world.random.choice(self._repertoire)()

    def settle(self, open_end: Unsettled) -> None:
        def act() -> None:
            try:
                done = publisher.settle(TENANT, open_end.adapter, open_end.txid)
            except Conflict:
                self._world.ledger.give_up(open_end.txid)
                self._told("settled: did not land")
            except (OutcomeUnknown, StoreUnavailable):
                self._told("not settled yet")
                return
            else:
                self._acknowledge(done, "settled: landed")
            if open_end in self.unsettled:
                self.unsettled.remove(open_end)

        publisher = self._start("settle", open_end.adapter, act, [])

    def _publish(self) -> None:
        random = self._world.random
        number = random.randrange(CONTENTS)
        expect = random.choice((None, None, None, self._gen_now))
        rebase = random.random() < 0.8
        self._operation(
            f"publish {number}",
            lambda publisher, adapter: publisher.publish(
                TENANT,
                adapter,
                content(number),
                expect_gen=expect(adapter) if expect else None,
                rebase=rebase,
            ),
        )

    def _roll_back(self) -> None:
        to = self._world.random.choice((None, _digest(0), _digest(1)))
        self._operation(
            f"rollback {to}",
            lambda publisher, adapter: publisher.rollback(TENANT, adapter, to=to),
        )

    def _stage(self) -> None:
        number = self._world.random.randrange(CONTENTS)
        self._operation(
            f"stage {number}",
            lambda publisher, adapter: publisher.stage(TENANT, adapter, content(number)),
        )

    def _activate(self) -> None:
        label = self._world.random.choice((None, None, _digest(0), _digest(1)))
        self._operation(
            f"activate {label}",
            lambda publisher, adapter: publisher.activate(TENANT, adapter, label=label),
        )

    def _split(self) -> None:
        one, other = self._world.random.sample(range(CONTENTS), 2)
        self._operation(
            f"split {one} {other}",
            lambda publisher, adapter: publisher.split(
                TENANT, adapter, {_digest(one): 3, _digest(other): 1}
            ),
        )

    def _delete(self) -> None:
        self._operation("delete", lambda publisher, adapter: publisher.delete(TENANT, adapter))

    def _gen_now(self, adapter: str) -> int:
        return len(self._world.ledger.log(TENANT, adapter).records)

    def _operation(self, name: str, operation: Act) -> None:
        """Run it as a process and hold the product to what it says about the outcome."""
        adapter = self._world.random.choice((*ADAPTERS, *ADAPTERS[:1] * self._crowd))
        txids: list[str] = []

        def act() -> None:
            try:
                done = operation(publisher, adapter)
            except OutcomeUnknown:
                self.unsettled.append(Unsettled(adapter, txids[0]))
                self._told("unknown")
            except (Conflict, LockLost, NotFound, StoreUnavailable) as error:
                self._world.ledger.give_up(txids[0])
                self._told(f"failed: {type(error).__name__}")
            else:
                self._acknowledge(done, "unchanged" if done.unchanged else done.kind.value)

        publisher = self._start(name, adapter, act, txids)

    def _start(
        self, name: str, adapter: str, act: Callable[[], None], txids: list[str]
    ) -> Publisher:
        world = self._world
        process = world.process("publisher")
        self._running.append(process)

        def new_txid() -> str:
            txids.append(f"{world.random.getrandbits(128):032x}")
            return txids[-1]

        def run() -> None:
            act()
            process.dead = True

        world.baton.spawn(process, process.name, run)
        world.note(f"{process.name} starts: {name} of {adapter}")
        limits = Limits(publish_s=world.weather.publish_s, settle_s=10.0, attempts=3, parallel=1)
        return Publisher(
            Connection(world, process),
            lock=SimulatedLock(world, self._redis, process),
            announcer=SimulatedAnnouncer(world, self._redis),
            actor=process.name,
            warn=lambda text: world.note(f"warning: {text}"),
            limits=limits,
            clock=world.clock(process),
            sleep=world.sleep,
            new_txid=new_txid,
            now=lambda: "",
        )

    def _acknowledge(self, done: Published, outcome: str) -> None:
        self._told(outcome)
        self._world.ledger.acknowledge(TENANT, done.adapter, done.gen, done.record.encode())

    def _told(self, outcome: str) -> None:
        self._world.tally.outcomes[outcome] += 1
        self._world.note(f"is told: {outcome}")


def _digest(number: int) -> str:
    return f"sha256:{vdig(number)}"
