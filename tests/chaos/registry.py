"""Which rows there are."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from tests.chaos.bench import Bench
from tests.chaos.row import Row


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: where it lives and how long it takes."""

    id: str
    module: str
    """Below tests.chaos; has `run(scale, seed, bench) -> Row`."""
    title: str
    minutes: float
    """What the full scale takes on 2 cores, alone."""
    short: float
    """The scale at which it takes a few seconds, for the tests; T11 takes all its two minutes."""
    alone: bool = False
    """Whether its figures are times, so that nothing may run beside it."""
    books: tuple[str, ...] = ("chaos",)
    """Which files of benchmarks/results it is written to."""

    def run(self, scale: float, seed: int, bench: Bench) -> Row:
        module = importlib.import_module(f"tests.chaos.{self.module}")
        row: Row = module.run(scale, seed, bench)
        assert row.id == self.id, f"{self.module} reports itself as {row.id}"
        return row


ROWS = (
    Entry("T1", "conformance", "conformance of the store", 2.0, short=0.01),
    Entry("T2", "exhausted_model", "the model of the protocol, exhausted", 1.5, short=0.0),
    Entry("T3", "simulated_seeds", "deterministic simulation of the real code", 7.0, short=0.0),
    Entry("T4", "linearizable_histories", "linearizability of real processes", 5.0, short=0.02),
    Entry("T5", "crash_points", "crash points at every operation", 4.0, short=0.03),
    Entry("T6", "failures", "one request fails, each in turn", 4.0, short=0.02),
    Entry("T7", "killed_store", "kill -9 of the store in a stream of publishes", 2.0, short=0.04),
    Entry("T8", "redis_conditions", "Redis in six troubles", 3.0, short=0.04),
    Entry("T9", "propagation", "propagation to three nodes", 3.0, short=0.04, alone=True),
    Entry("T10", "node_states", "whatever happens to a node", 10.0, short=0.0),
    Entry(
        "T11",
        "tattoo_soak",
        "tattoo soak",
        2.0,
        short=1.0,
        alone=True,
        books=("edge",),
    ),
    Entry(
        "T12",
        "isolation",
        "isolation of tenants and versions",
        1.0,
        short=0.0,
        alone=True,
        books=("chaos", "edge"),
    ),
    Entry(
        "T13",
        "refused",
        "bad inputs are refused, beside requests in flight",
        1.5,
        short=0.05,
        alone=True,
    ),
    Entry("T14", "fuzzed", "fuzzing of what reads foreign bytes", 7.0, short=0.01),
    Entry(
        "T15",
        "authorization",
        "every RPC with every kind of credential",
        0.5,
        short=0.0,
        alone=True,
        books=("edge",),
    ),
    Entry(
        "T16",
        "overload",
        "too much of everything beside a well-behaved tenant",
        3.0,
        short=0.0,
        alone=True,
        books=("edge",),
    ),
    Entry(
        "F1",
        "fleet.barrier",
        "flips of a fleet through the barrier",
        6.0,
        short=0.02,
        alone=True,
        books=("fleet",),
    ),
    Entry(
        "F2",
        "fleet.faults",
        "a fleet behind Envoy, flipped and asked while it is hurt",
        12.0,
        short=0.03,
        alone=True,
        books=("fleet",),
    ),
)


def entry(row_id: str) -> Entry:
    """Raises KeyError for an unknown row."""
    return {one.id: one for one in ROWS}[row_id]
