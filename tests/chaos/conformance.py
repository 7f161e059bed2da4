"""T1: the store under test keeps what the protocol relies on, and doctored ones are refused.

The check that publishers and nodes run at start, again and again: four racing creators a round.
Beside it every object read and listed right after its PUT, and commits whose answer is lost, which
the slot has to recognise as its own. The controls are the real store with one promise broken, each
refused by the name of its fault; a store whose proxy strips `If-None-Match` in the first round.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from adapter_store import layout
from adapter_store.check import RACERS, check_store
from adapter_store.errors import AlreadyExists, OutcomeUnknown, StoreError, StoreUnfit
from adapter_store.objects import ObjectStore
from adapter_store.settings import Endpoints
from tests.chaos.bench import Bench
from tests.chaos.doctored_stores import (
    ListsLate,
    LooksThenWrites,
    MisreportsDigests,
    ReadsLate,
    RefusesTooLate,
    TakesDamagedBodies,
)
from tests.chaos.proxy import Fault, HttpRequest, proxied, strip_conditions
from tests.chaos.row import Row
from tests.conftest import open_endpoint

RACES, READS, LISTINGS, LOST_ANSWERS = 200, 1000, 200, 50
_AT_ONCE = 8


def run(scale: float, seed: int, bench: Bench) -> Row:
    counts = {
        "race": max(3, round(RACES * scale)),
        "read after write": max(20, round(READS * scale)),
        "listing after write": max(10, round(LISTINGS * scale)),
        "lost answer": max(3, round(LOST_ANSWERS * scale)),
    }
    with bench.endpoints() as endpoints:
        store = open_endpoint(endpoints)
        broken = [
            *repeated(counts["race"], partial(race, endpoints)),
            *repeated(counts["read after write"], partial(read_after_write, store)),
            *repeated(counts["listing after write"], partial(list_after_write, store)),
        ]
        with proxied(endpoints, lose_answers_to_puts) as (proxy, through):
            losing = partial(recognise_own, open_endpoint(through), store)
            broken += repeated(counts["lost answer"], losing)
            faults = dict(proxy.faults)
        controls = refusals(endpoints)
    return Row(
        id="T1",
        cases=sum(counts.values()),
        unit="conformance probes",
        violations=broken,
        controls=controls,
        faults=faults,
        seeds="none",
        figures={name.replace(" ", "_"): count for name, count in counts.items()},
        notes=f"{RACERS} racing creators a round",
    )


def repeated(count: int, probe: Callable[[], None]) -> list[str]:
    """What a probe said was wrong, over so many runs."""

    def once(number: int) -> str:
        try:
            probe()
        except StoreError as error:
            return f"probe {number}: {type(error).__name__}: {error}"
        return ""

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [said for said in pool.map(once, range(count)) if said]


def race(endpoints: Endpoints) -> None:
    check_store(open_endpoint(endpoints))


def read_after_write(store: ObjectStore) -> None:
    key, body = layout.check_key(secrets.token_hex(16)), secrets.token_bytes(100)
    store.put_new(key, body)
    if store.get(key) != body:
        raise StoreUnfit(f"{key} did not read back at once")


def list_after_write(store: ObjectStore) -> None:
    key = layout.check_key(secrets.token_hex(16))
    store.put_new(key, b"listed")
    if store.list(key).keys != (key,):
        raise StoreUnfit(f"{key} was not listed at once")


def lose_answers_to_puts(request: HttpRequest) -> Fault | None:
    return Fault.LOSE_ANSWER if request.method == "PUT" else None


def recognise_own(losing: ObjectStore, store: ObjectStore) -> None:
    """A PUT without an answer is unknown, never a refusal, and its bytes tell that it landed."""
    key, body = layout.check_key(secrets.token_hex(16)), secrets.token_bytes(100)
    try:
        losing.put_new(key, body)
    except OutcomeUnknown:
        pass
    else:
        raise StoreUnfit(f"PUT {key} claims an answer that was lost")
    if store.get(key) != body:
        raise StoreUnfit(f"{key} holds other bytes than were sent")
    try:
        store.put_new(key, b"another's")
    except AlreadyExists:
        return
    raise StoreUnfit(f"{key} was taken twice")


def refusals(endpoints: Endpoints) -> Mapping[str, bool]:
    """Each doctored store, and whether it was refused by the name of its fault."""
    store = open_endpoint(endpoints)
    with proxied(endpoints, strip_conditions) as (_, through):
        stripped = is_refused(open_endpoint(through), "ignores If-None-Match")
    return {
        "a proxy that strips If-None-Match": stripped,
        "refuses after overwriting": is_refused(RefusesTooLate(store), "changed the object"),
        "looks, then writes": is_refused(LooksThenWrites(store, RACERS), "racing"),
        "lists late": is_refused(ListsLate(store), "not listed"),
        "reads late": is_refused(ReadsLate(store), "not readable"),
        "misreports digests": is_refused(MisreportsDigests(store), "misreports"),
        "takes damaged bodies": is_refused(TakesDamagedBodies(store), "does not match"),
    }


def is_refused(store: ObjectStore, fault: str) -> bool:
    try:
        check_store(store)
    except StoreUnfit as error:
        return fault in str(error)
    return False
