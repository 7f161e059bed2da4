"""T1: the store under test keeps what the protocol relies on, and doctored ones are refused.

The whole conformance check runs against it; beside that, PUTs whose answer a proxy loses have to
end as unknown, and what they stored has to be recognised and to stay. The controls are the same
store with one promise broken each, refused by the name of its fault by the short check that every
publisher and node runs at start; a proxy that strips `If-None-Match` in its first round.
"""

from __future__ import annotations

import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from adapter_store import layout
from adapter_store.check import check_store
from adapter_store.conformance import Conformance, Rounds
from adapter_store.errors import AlreadyExists, OutcomeUnknown, StoreError, StoreUnfit
from adapter_store.objects import ObjectStore
from adapter_store.settings import Endpoints
from tests.adapter_store.doctored_store import DOCTORED
from tests.chaos.bench import Bench
from tests.chaos.proxy import Fault, HttpRequest, proxied, strip_conditions
from tests.chaos.row import Row
from tests.conftest import open_endpoint

FULL = Rounds()
_AT_ONCE = 8


def run(scale: float, seed: int, bench: Bench) -> Row:
    rounds = Rounds(
        writes=max(2, round(FULL.writes * scale)),
        races=max(3, round(FULL.races * scale)),
        lost_answers=max(3, round(FULL.lost_answers * scale)),
        listings=max(10, round(FULL.listings * scale)),
        reads=max(10, round(FULL.reads * scale)),
    )
    with bench.endpoints() as endpoints:
        broken, cases = [], {}
        try:
            for passed in Conformance(open_endpoint(endpoints), rounds):
                cases[passed.name] = passed.cases
        except StoreError as error:
            broken.append(f"{type(error).__name__}: {error}")
        with proxied(endpoints, lose_answers_to_puts) as (proxy, through):
            broken += answers_lost(through, endpoints, rounds.lost_answers)
            faults = dict(proxy.faults)
        controls = refusals(endpoints)
    cases["answer lost by a proxy"] = rounds.lost_answers
    return Row(
        id="T1",
        cases=sum(cases.values()),
        unit="conformance probes",
        violations=broken,
        controls=controls,
        faults=faults,
        seeds="none",
        figures=cases,
    )


def lose_answers_to_puts(request: HttpRequest) -> Fault | None:
    return Fault.LOSE_ANSWER if request.method == "PUT" else None


def answers_lost(through: Endpoints, endpoints: Endpoints, count: int) -> list[str]:
    """What was wrong with PUTs whose answers are lost."""
    recognise = partial(recognise_own, open_endpoint(through), open_endpoint(endpoints))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [said for said in pool.map(recognise, range(count)) if said]


def recognise_own(losing: ObjectStore, store: ObjectStore, number: int) -> str:
    """A PUT without an answer is unknown, never a refusal, and its bytes tell that it landed."""
    key, body = layout.check_key(secrets.token_hex(16)), secrets.token_bytes(100)
    try:
        losing.put_new(key, body)
    except OutcomeUnknown:
        pass
    except StoreError as error:
        return f"PUT {number} ended in {type(error).__name__}: {error}"
    else:
        return f"PUT {number} claims an answer that was lost"
    try:
        store.put_new(key, b"another's")
    except AlreadyExists:
        return "" if store.get(key) == body else f"PUT {number} was overwritten"
    return f"the key of PUT {number} was taken twice"


def refusals(endpoints: Endpoints) -> dict[str, bool]:
    """Each doctored store, and whether it was refused by the name of its fault."""
    with proxied(endpoints, strip_conditions) as (_, through):
        stripped = is_refused(open_endpoint(through), "ignores If-None-Match")
    return {
        "a proxy that strips If-None-Match": stripped,
        **{
            doctored.__name__: is_refused(doctored(open_endpoint(endpoints)), fault)
            for doctored, fault in DOCTORED
        },
    }


def is_refused(store: ObjectStore, fault: str) -> bool:
    try:
        check_store(store)
    except StoreUnfit as error:
        return re.search(fault, str(error)) is not None
    return False
