"""Collectors and reapers at work: each call of the real Collector is a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from adapter_store.errors import StoreUnavailable
from adapter_store.gc import Collector
from adapter_store.retention import Retention
from tests.chaos.simulation.baton import Process
from tests.chaos.simulation.connection import Connection
from tests.chaos.simulation.contents import TENANT
from tests.chaos.simulation.world import World

PLAN_KEYS = 3


class Collectors:
    """Keeps up to `at_once` collections going; the harshest retention there is."""

    def __init__(self, world: World, *, at_once: int, keep: int) -> None:
        self._world = world
        self._at_once = at_once
        self._keep = keep
        self._running: list[Process] = []

    def move(self) -> None:
        """Start another collection or reaping when there is room."""
        world = self._world
        self._running = [process for process in self._running if not process.dead]
        if world.calm or len(self._running) >= self._at_once or world.random.random() > 0.08:
            return
        world.random.choice((self.collect, self.reap, self.clean))()

    def collect(self) -> None:
        self._start("collect", lambda collector: collector.collect(TENANT))

    def reap(self) -> None:
        """Any intent may be reaped at any time: its age plays no part in what is safe."""
        self._start("reap", lambda collector: collector.reap(TENANT, older_s=0.0))

    def clean(self) -> None:
        """Both, one after the other."""

        def act(collector: Collector) -> None:
            collector.reap(TENANT, older_s=0.0)
            collector.collect(TENANT)

        self._start("clean", act)

    def _start(self, name: str, act: Callable[[Collector], object]) -> None:
        world = self._world
        process = world.process("collector")
        self._running.append(process)
        collector = Collector(
            Connection(world, process),
            retention=Retention(keep=self._keep, younger_s=0.0),
            warn=lambda text: world.note(f"warning: {text}"),
            parallel=1,
            plan_keys=PLAN_KEYS,
            actor=process.name,
            clock=world.clock(process),
            sleep=world.sleep,
            new_id=lambda: f"{world.random.getrandbits(128):032x}",
            now=lambda: "",
        )

        def run() -> None:
            try:
                act(collector)
                world.tally.outcomes[f"{name}: done"] += 1
            except StoreUnavailable:
                world.tally.outcomes[f"{name}: given up"] += 1
            process.dead = True

        world.note(f"{process.name} starts: {name}")
        world.baton.spawn(process, process.name, run)
