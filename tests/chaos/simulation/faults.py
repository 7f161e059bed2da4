"""What can go wrong in a simulated run, and how much of it one seed gets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random


class Fault(Enum):
    """Kinds of trouble, by the names the report counts them under."""

    CRASH = "crash"
    DROP = "drop"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    CONFLICT = "409"
    ERROR = "500"
    UNAVAILABLE = "503"
    LOST_ANSWER = "lost answer"
    LEASE_EXPIRY = "lock expiry"
    FLUSH = "Redis flush"
    REDIS_DOWN = "Redis down"
    TWO_HOLDERS = "two holders"
    CLOCK_JUMP = "clock jump"
    PARTITION = "partition"
    STALL = "stall"


ON_PUT = (
    Fault.CRASH,
    Fault.DROP,
    *[Fault.DELAY] * 3,
    *[Fault.DUPLICATE] * 2,
    Fault.CONFLICT,
    Fault.ERROR,
    Fault.UNAVAILABLE,
    Fault.LOST_ANSWER,
)
ON_DELETE = (
    Fault.CRASH,
    Fault.DROP,
    Fault.DELAY,
    Fault.ERROR,
    Fault.UNAVAILABLE,
    Fault.LOST_ANSWER,
)
ON_READ = (Fault.CRASH, Fault.DROP, Fault.ERROR, Fault.UNAVAILABLE)
AROUND = (
    Fault.LEASE_EXPIRY,
    Fault.FLUSH,
    Fault.REDIS_DOWN,
    Fault.TWO_HOLDERS,
    Fault.CLOCK_JUMP,
    Fault.PARTITION,
    Fault.STALL,
    Fault.CRASH,
)
CLOCK_JUMP_S = 600.0


@dataclass(frozen=True, slots=True)
class Weather:
    """One seed's share of trouble. Seeds differ much: some calm, some with one kind alone."""

    write_faults: float
    """Chance that a PUT or DELETE meets one."""
    read_faults: float
    around: float
    """Chance per step of trouble outside the store."""
    arrival: float
    """Chance per step that a request under way arrives."""
    stick: float
    """Chance that whoever runs goes on where it matters."""
    hold: float
    """Chance that it is held up for some steps there."""
    step_s: float
    stall_steps: int
    publish_s: float
    lock_wait_s: float
    kinds: frozenset[Fault]


def weather(random: Random) -> Weather:
    kinds = [kind for kind in Fault if random.random() < 0.7]
    return Weather(
        write_faults=random.choice((0.0, 0.05, 0.15, 0.25)),
        read_faults=random.choice((0.0, 0.01, 0.05)),
        around=random.choice((0.0, 0.02, 0.06)),
        arrival=random.choice((0.01, 0.03, 0.1)),
        stick=random.choice((0.0, 0.3, 0.6, 0.9)),
        hold=random.choice((0.0, 0.1, 0.3)),
        step_s=random.choice((0.01, 0.1, 1.0)),
        stall_steps=random.choice((20, 60, 150)),
        publish_s=random.choice((3.0, 20.0, 900.0)),
        lock_wait_s=random.choice((0.0, 0.0, 1.0, 60.0)),
        kinds=frozenset(kinds),
    )
