"""Offers one bad input and says in words what was not as promised."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

from adapter_store.objects import ObjectStore
from tests.chaos.bad_inputs.case import BadInput, Offer, Scene

MAX_SECONDS = 0.1
MAX_BYTES = 64 * 2**20
TRIES = 30
"""A machine with other work may be late once; a slow refusal is late every time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one case cost, and what was wrong with how it was refused."""

    wrong: tuple[str, ...]
    offers: int
    seconds: float
    """Of its slowest offer."""
    peak: int
    """Bytes held at most beyond those before, by its hungriest offer."""


def judge(case: BadInput, store: ObjectStore, folder: Path, *, adapter: str) -> Verdict:
    scene = case.prepare(Scene(store, adapter, folder))
    before = keys(store)
    wrong: list[str] = []
    slowest, hungriest = 0.0, 0
    for number, offer in enumerate(case.offers):
        about = f"{case.group}: {case.what}, offer {number + 1}"
        wrong += [f"{about}: {text}" for text in _misanswered(case, offer, scene)]
        seconds = _seconds(offer, scene)
        peak = _peak(offer, scene)
        if seconds > MAX_SECONDS:
            wrong.append(f"{about}: took {seconds * 1000:.0f} ms")
        if peak > MAX_BYTES:
            wrong.append(f"{about}: held {peak / 2**20:.0f} MiB")
        slowest, hungriest = max(slowest, seconds), max(hungriest, peak)
    wrong += [f"{case.group}: {case.what}: wrote {key}" for key in sorted(keys(store) ^ before)]
    return Verdict(tuple(wrong), len(case.offers), slowest, hungriest)


def keys(store: ObjectStore) -> set[str]:
    """Every key in the store."""
    found: set[str] = set()
    token = None
    while True:
        page = store.list("v1/", token=token)
        found.update(page.keys)
        token = page.next_token
        if token is None:
            return found


def _misanswered(case: BadInput, offer: Offer, scene: Scene) -> list[str]:
    try:
        offer(scene)
    except Exception as error:
        if type(error) is not case.error:
            return [f"{type(error).__name__}, not {case.error.__name__}: {str(error)[:120]}"]
        if case.says not in str(error):
            return [f"says {str(error)[:160]!r}, not {case.says!r}"]
        return []
    return ["was accepted"]


def _seconds(offer: Offer, scene: Scene) -> float:
    """The fastest of as many tries as it takes to be fast enough."""
    fastest = float("inf")
    for _ in range(TRIES):
        started = time.monotonic()
        _ended(offer, scene)
        fastest = min(fastest, time.monotonic() - started)
        if fastest <= MAX_SECONDS:
            break
    return fastest


def _peak(offer: Offer, scene: Scene) -> int:
    tracemalloc.start()
    try:
        _ended(offer, scene)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _ended(offer: Offer, scene: Scene) -> None:
    try:
        offer(scene)
    except Exception:
        # Whether it is the right one was judged before.
        return
