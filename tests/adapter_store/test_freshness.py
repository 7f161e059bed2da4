"""How old an answer may be, and how old it may be by a caller's leave."""

from __future__ import annotations

import pytest

from adapter_store.errors import Behind, NotFound, StoreUnavailable
from adapter_store.layout import parse_ref
from adapter_store.memory import MemoryStore
from adapter_store.meter import MeteredStore
from adapter_store.reader import Reader
from tests.adapter_store.publishing import ADAPTER, REF, TENANT, SteppedClock, publish
from tests.adapter_store.signed import Trust, forged, plant, sign_and_publish, trusted


class Cut(MemoryStore):
    """A store that may be out of reach."""

    down = False

    def get(self, key: str) -> bytes:
        if self.down:
            raise StoreUnavailable("down")
        return super().get(key)


@pytest.fixture
def store() -> Cut:
    store = Cut()
    publish(store, 1)
    return store


def test_what_is_known_below_the_minimum_is_never_an_answer(store: Cut) -> None:
    reader = Reader(store)
    assert reader.resolve(REF).gen == 1
    publish(store, 2)
    # Not even where the caller asked for no refresh; the control is the call without a minimum.
    assert reader.resolve(REF, refresh=False).gen == 1
    assert reader.resolve(REF, refresh=False, min_generation=2).gen == 2
    with pytest.raises(Behind, match="below 3"):
        reader.resolve(REF, min_generation=3)


def test_a_minimum_that_is_known_already_costs_no_request(store: Cut) -> None:
    metered = MeteredStore(store)
    reader = Reader(metered)
    reader.head(TENANT, ADAPTER)
    before = metered.requests
    assert reader.resolve(REF, refresh=False, min_generation=1).gen == 1
    assert metered.requests == before


def test_a_minimum_above_what_is_known_is_refused_while_the_store_is_away(store: Cut) -> None:
    reader = Reader(store)
    reader.head(TENANT, ADAPTER)
    store.down = True
    assert reader.resolve(REF, refresh=False, min_generation=1).gen == 1
    with pytest.raises(StoreUnavailable):
        reader.resolve(REF, refresh=False, min_generation=2)


def test_a_minimum_holds_for_a_cold_reader_and_for_what_is_pinned(store: Cut) -> None:
    for text in (ADAPTER, f"{ADAPTER}@v1"):
        with pytest.raises(Behind):
            Reader(store).resolve(parse_ref(text), min_generation=2)
    publish(store, 2)
    for text, gen in ((ADAPTER, 2), (f"{ADAPTER}@v1", 1)):
        assert Reader(store).resolve(parse_ref(text), min_generation=2).gen == gen


def test_an_untrusted_record_does_not_reach_a_minimum() -> None:
    store = MemoryStore()
    sign_and_publish(store, 1)
    plant(store, forged(store, fence=99))
    reader = Reader(store, verifier=Trust(trusted()))
    with pytest.raises(Behind, match="fence"):
        reader.resolve(REF, min_generation=2)


def test_the_store_is_asked_when_the_last_look_is_older_than_allowed(store: Cut) -> None:
    clock, metered = SteppedClock(), MeteredStore(store)
    reader = Reader(metered, clock=clock)
    reader.resolve(REF)
    publish(store, 2)
    clock.sleep(5)
    before = metered.requests
    assert reader.resolve(REF, max_staleness=5).gen == 1
    assert metered.requests == before
    clock.sleep(0.1)
    assert reader.resolve(REF, max_staleness=5).gen == 2
    assert metered.requests == before + 2


def test_staleness_is_counted_from_before_the_question(store: Cut) -> None:
    clock = SteppedClock()

    class Slow(Cut):
        def get(self, key: str) -> bytes:
            clock.sleep(3)
            return super().get(key)

    slow = Slow()
    publish(slow, 1)
    reader = Reader(slow, clock=clock)
    reader.resolve(REF)
    publish(slow, 2)
    assert reader.resolve(REF, max_staleness=2).gen == 2


def test_beyond_the_allowed_staleness_an_unreachable_store_is_an_error(store: Cut) -> None:
    clock = SteppedClock()
    reader = Reader(store, clock=clock)
    reader.resolve(REF)
    store.down = True
    clock.sleep(5)
    assert reader.resolve(REF, max_staleness=5).gen == 1
    clock.sleep(1)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            reader.resolve(REF, max_staleness=5)
    assert reader.resolve(REF, refresh=False).gen == 1


def test_unknown_names_stay_unknown_whatever_the_minimum(store: Cut) -> None:
    with pytest.raises(NotFound):
        Reader(store).resolve(parse_ref("nobody"), min_generation=5)
