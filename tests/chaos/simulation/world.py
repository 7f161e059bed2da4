"""One simulated run: its clock, its randomness, who runs next, and the trouble in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.chaos.simulation.baton import Baton, Process, Task
from tests.chaos.simulation.bucket import Bucket
from tests.chaos.simulation.faults import (
    AROUND,
    CLOCK_JUMP_S,
    Fault,
    Weather,
    weather,
)
from tests.chaos.simulation.ledger import Ledger

EPOCH = 1_700_000_000.0
_STICK_ELSEWHERE = 0.9


@dataclass(eq=False, slots=True)
class Flight:
    """A request that left its sender and has not arrived."""

    number: int
    key: str
    arrive: Callable[[], None]


@dataclass(slots=True)
class Tally:
    """What a run did, for the report."""

    steps: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)


class World:
    """Owns the truth and the baton. `moves` are what may happen between two steps of any task."""

    def __init__(self, seed: int, start: Bucket, ledger: Ledger) -> None:
        self.random = Random(seed)
        self.weather: Weather = weather(self.random)
        self.now = 1000.0
        self.store_process = Process("store")
        self.bucket = Bucket(clock=self.store_clock).copied_from(start)
        self.ledger = ledger
        self.ledger.watch(self.bucket, self.violated)
        self.baton = Baton(self._turn, self._task_failed)
        self.tally = Tally()
        self.calm = False
        self.over = False
        self._stick = 0.0
        self.violation: str = ""
        self._broken: Exception | None = None
        self.flights: list[Flight] = []
        self._flights_sent = 0
        self._budget = 0
        self._names: Counter[str] = Counter()
        self.moves: list[Callable[[], None]] = []
        """Each is called once a step and decides by itself whether to do anything."""
        self.trouble: dict[Fault, Callable[[], bool]] = {
            Fault.CLOCK_JUMP: self._jump_a_clock,
            Fault.PARTITION: self._separate,
            Fault.STALL: self._stall_a_task,
        }
        """How to cause what happens outside the store; True when there was something to hit."""
        self.checks: list[Callable[[], None]] = []
        """Invariants to ask for after every step; each tells `violated`."""
        self.trace: Callable[[str], None] | None = None

    def process(self, kind: str) -> Process:
        self._names[kind] += 1
        offset = self.random.uniform(0, 1000.0)
        return Process(f"{kind}{self._names[kind]}", clock_offset=offset)

    def clock(self, process: Process) -> Callable[[], float]:
        """This process's monotonic clock."""
        return lambda: self.now + process.clock_offset

    def store_clock(self) -> float:
        return EPOCH + self.now + self.store_process.clock_offset

    def sleep(self, seconds: float) -> None:
        self.pause(wake_at=self.now + seconds)

    def pause(self, *, wake_at: float = 0.0, telling: bool = False) -> None:
        """Let others run before the caller's next step. Raises Died.

        Where the next step is `telling`, one by which the protocol's parties learn of each other,
        the others are likelier to run first, and for long.
        """
        task = self.baton.current
        if task is None:
            return
        task.wake_at = wake_at
        self._stick = self.weather.stick if telling else _STICK_ELSEWHERE
        if telling and not self.calm and self.random.random() < self.weather.hold:
            task.stalled_until = self.tally.steps + self.random.randint(5, self.weather.stall_steps)
        self.baton.pass_to(self._turn())

    def run(self, *, steps: int) -> None:
        """Let tasks run for so many steps, or until none is left. Main thread only."""
        self._budget = self.tally.steps + steps
        while not self.over and self.tally.steps < self._budget:
            first = self._turn()
            if first is not None:
                self.baton.pass_to(first)
            elif self.calm:
                return

    def end(self) -> None:
        self.over = True
        self.baton.unwind()
        if self._broken is not None:
            raise self._broken

    def meets(self, kinds: tuple[Fault, ...], rate: float) -> Fault | None:
        """Whether the next operation meets trouble, and which."""
        if self.calm or self.random.random() >= rate:
            return None
        fault = self.random.choice(kinds)
        return fault if fault in self.weather.kinds else None

    def count(self, fault: Fault) -> None:
        self.tally.faults[fault] += 1

    def note(self, text: str) -> None:
        if self.trace is not None:
            task = self.baton.current
            self.trace(f"{self.tally.steps:4} {task.name if task else '-':14} {text}")

    def violated(self, text: str) -> None:
        """The run has shown what must not be; it ends here."""
        if not self.violation:
            self.violation = text
            self.note(f"VIOLATION {text}")
        self.over = True

    def kill(self, process: Process) -> None:
        self.note(f"{process.name} dies")
        process.dead = True
        self.baton.forget_unstarted(process)

    def cut_off(self, process: Process) -> None:
        process.cut_off_until = self.tally.steps + self.weather.stall_steps

    def send_late(self, key: str, arrive: Callable[[], None]) -> None:
        self._flights_sent += 1
        self.flights.append(Flight(self._flights_sent, key, arrive))

    def deliver(self, flight: Flight) -> None:
        self.flights.remove(flight)
        overtaken = any(other.number < flight.number for other in self.flights)
        if overtaken or flight.key in self.bucket:
            self.count(Fault.REORDER)
        self.note(f"late request arrives: {flight.key}")
        flight.arrive()

    def _turn(self) -> Task | None:
        """One step of the world; who runs next, None for the main thread."""
        if self.over:
            return None
        self.tally.steps += 1
        self.now += self.weather.step_s * self.random.random()
        try:
            self._between_steps()
        except Exception as error:
            # Whoever holds the baton is product code, which must not see or swallow this.
            self._broken = error
            self.over = True
        if self.over or self.tally.steps >= self._budget:
            return None
        return self._pick()

    def _between_steps(self) -> None:
        if not self.calm:
            self._happen()
        for move in self.moves:
            move()
        for check in self.checks:
            check()

    def _happen(self) -> None:
        if self.flights and self.random.random() < self.weather.arrival:
            flight = self.random.choice(self.flights)
            if self.random.random() < 0.2:
                self.flights.remove(flight)
            else:
                self.deliver(flight)
        fault = self.meets(AROUND, self.weather.around)
        if fault is not None and fault in self.trouble and self.trouble[fault]():
            self.count(fault)
            self.note(f"{fault.value} happens")

    def _pick(self) -> Task | None:
        current = self.baton.current
        ready = [
            task
            for task in self.baton.tasks
            if task.wake_at <= self.now and task.stalled_until <= self.tally.steps
        ]
        if not ready:
            return self._wake_somebody()
        if current in ready and self.random.random() < self._stick:
            return current
        return ready[0] if len(ready) == 1 else self.random.choice(ready)

    def _wake_somebody(self) -> Task | None:
        """Nobody can run: time passes until somebody can."""
        if not self.baton.tasks:
            return None
        first = min(
            self.baton.tasks, key=lambda task: (task.stalled_until > self.tally.steps, task.wake_at)
        )
        self.now = max(self.now, first.wake_at)
        first.stalled_until = 0
        return first

    def _jump_a_clock(self) -> bool:
        living = {id(task.process): task.process for task in self.baton.tasks}
        process = self.random.choice([self.store_process, *living.values()])
        process.clock_offset += self.random.choice((-CLOCK_JUMP_S, CLOCK_JUMP_S))
        return True

    def _separate(self) -> bool:
        """One process, or everybody, cannot reach the store for a while."""
        living = list({id(task.process): task.process for task in self.baton.tasks}.values())
        if not living:
            return False
        chosen = living if self.random.random() < 0.3 else [self.random.choice(living)]
        for process in chosen:
            self.cut_off(process)
        return True

    def _stall_a_task(self) -> bool:
        if not self.baton.tasks:
            return False
        task = self.random.choice(self.baton.tasks)
        task.stalled_until = self.tally.steps + self.weather.stall_steps
        return True

    def _task_failed(self, task: Task, error: Exception) -> None:
        self.violated(f"{task.name} failed with an error nobody expects: {error!r}")
