"""A store that keeps time, and collectors whose time is the test's."""

from __future__ import annotations

import hashlib
from typing import Any

from adapter_store.gc import Collected, Collector
from adapter_store.memory import MemoryStore
from adapter_store.objects import ObjectStore, listed
from adapter_store.retention import DAY_S, Retention
from tests.adapter_store.publishing import TENANT, SteppedClock, adapter

EAGER = Retention(keep=1, younger_s=0)
"""Keeps what is served and nothing else."""


class Calendar(SteppedClock):
    """The store's own clock, moved by days."""

    def pass_days(self, days: float) -> None:
        self.now += days * DAY_S


def dated_store() -> tuple[MemoryStore, Calendar]:
    calendar = Calendar()
    return MemoryStore(clock=calendar), calendar


def collector(store: ObjectStore, retention: Retention = EAGER, **changes: Any) -> Collector:
    clock = SteppedClock()
    settings: dict[str, Any] = {
        "warn": lambda text: None,
        "parallel": 1,
        "clock": clock,
        "sleep": clock.sleep,
    }
    return Collector(store, retention=retention, **{**settings, **changes})


def collect(store: ObjectStore, retention: Retention = EAGER, **changes: Any) -> Collected:
    return collector(store, retention, **changes).collect(TENANT)


def kept_seeds(store: ObjectStore, seeds: int = 30) -> set[int]:
    """Which of the published contents are in the store with every byte."""
    stored = {key.rpartition("/")[2].partition(".")[0] for key in everything(store, "blob")}
    return {seed for seed in range(seeds) if _digests(seed) <= stored}


def _digests(seed: int) -> set[str]:
    return {hashlib.sha256(body).hexdigest() for body in adapter(seed).files.values()}


def everything(store: ObjectStore, folder: str) -> list[str]:
    """Every key in one folder of the tenant."""
    return [head.key for head in listed(store, f"v1/t/{TENANT}/{folder}/")]
