from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from adapter_store import layout
from adapter_store.check import LEFT_BEHIND_S, Race, check_store
from adapter_store.conformance import Conformance, Rounds
from adapter_store.errors import AlreadyExists, StoreRefused, StoreUnavailable, StoreUnfit
from adapter_store.memory import MemoryStore
from adapter_store.objects import Damage, ObjectHead, ObjectStore
from adapter_store.s3 import S3Store
from tests.adapter_store.collecting import dated_store
from tests.adapter_store.doctored_store import DOCTORED, Doctored
from tests.adapter_store.waiting import wait_until

FEW = Rounds(writes=2, races=6, lost_answers=6, listings=25, reads=20)


def check_in_full(store: ObjectStore) -> None:
    for _ in Conformance(store, FEW):
        pass


def test_a_sound_store_passes_and_keeps_no_probes() -> None:
    store = MemoryStore()
    check_store(store)
    assert store.list("").keys == ()
    passed = {done.name: done.cases for done in Conformance(Doctored(store), FEW)}
    assert passed == {
        "write once": 2,
        "race": 6,
        "lost answer": 6,
        "list after put": 25,
        "read after write": 20,
        "checksum": len(Damage),
        "alias": 6,
    }
    assert store.list("").keys == ()


def test_what_a_backend_cannot_try_is_not_called_passed() -> None:
    skipped = {done.name: done.note for done in Conformance(MemoryStore(), FEW) if not done.cases}
    assert set(skipped) == {"lost answer", "checksum"}
    assert all(skipped.values())


@pytest.mark.services
def test_a_real_s3_passes_in_a_second_and_keeps_no_probes(s3_store: S3Store) -> None:
    times = []
    for _ in range(3):
        started = time.monotonic()
        check_store(s3_store)
        times.append(time.monotonic() - started)
    assert min(times) < 1.0
    assert max(times) < 3.0
    wait_until(lambda: not s3_store.list(layout.checks_prefix()).keys, within_s=30)


@pytest.mark.services
def test_a_real_s3_passes_in_full(s3_store: S3Store) -> None:
    done = list(Conformance(s3_store, FEW))
    assert [passed.cases for passed in done] == [2, 6, 6, 25, 20, 4, 6]
    assert s3_store.list(layout.checks_prefix()).keys == ()


@pytest.mark.parametrize("check", [check_store, check_in_full])
@pytest.mark.parametrize(("doctored", "fault"), DOCTORED)
def test_a_store_that_breaks_a_promise_is_refused_by_its_fault(
    doctored: Callable[[ObjectStore], Doctored], fault: str, check: Callable[[ObjectStore], None]
) -> None:
    with pytest.raises(StoreUnfit, match=fault):
        check(doctored(MemoryStore()))


@pytest.mark.services
@pytest.mark.parametrize("check", [check_store, check_in_full])
@pytest.mark.parametrize(("doctored", "fault"), DOCTORED)
def test_a_doctored_real_store_is_refused_by_its_fault(
    s3_store: S3Store,
    doctored: Callable[[ObjectStore], Doctored],
    fault: str,
    check: Callable[[ObjectStore], None],
) -> None:
    with pytest.raises(StoreUnfit, match=fault):
        check(doctored(s3_store))


class LandsLate(Doctored):
    """An unheard PUT is applied when its key is next asked for, whatever is there by then."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self._late: dict[str, bytes] = {}

    def put_unheard(self, key: str, body: bytes) -> None:
        self._late[key] = body

    def get(self, key: str) -> bytes:
        if key in self._late:
            self.overwrite(key, self._late.pop(key))
        return self.store.get(key)


class ListsAPageShort(Doctored):
    def list(self, prefix: str, **options: object) -> object:  # type: ignore[override]
        page = self.store.list(prefix, **options)  # type: ignore[arg-type]
        if page.next_token is None or not page.heads:
            return page
        return type(page)(page.heads[:-1], page.folders, page.next_token)


class KeepsTruncatedBodies(Doctored):
    def accepts_damaged(self, key: str, damage: Damage) -> bool:
        if damage is Damage.TRUNCATED:
            self.store.put_new(key, b"half")
        return False


class MergesCases(Doctored):
    def put_new(self, key: str, body: bytes) -> None:
        if key.endswith("A/b"):
            self.overwrite(key.replace("A/b", "a/b"), body)
        else:
            self.store.put_new(key, body)


@pytest.mark.parametrize(
    ("doctored", "fault"),
    [
        (LandsLate, "arrived late overwrote"),
        (ListsAPageShort, "listing in pages"),
        (KeepsTruncatedBodies, "ends before its Content-Length and stores it"),
        (MergesCases, "'A/b' changed the object at 'a/b'"),
    ],
)
def test_what_only_the_long_form_sees_is_refused_by_its_fault(
    doctored: Callable[[ObjectStore], Doctored], fault: str
) -> None:
    check_store(doctored(MemoryStore()))
    with pytest.raises(StoreUnfit, match=fault):
        check_in_full(doctored(MemoryStore()))


@pytest.mark.parametrize("damage", Damage)
def test_each_kind_of_damage_is_named(damage: Damage) -> None:
    class Takes(Doctored):
        def accepts_damaged(self, key: str, kind: Damage) -> bool:
            return kind is damage

    with pytest.raises(StoreUnfit, match=damage.value):
        check_in_full(Takes(MemoryStore()))


class MisreportsDigests(MemoryStore):
    def head(self, key: str) -> ObjectHead:
        head = super().head(key)
        return ObjectHead(key, head.size, "0" * 64, head.modified)


def test_a_store_that_misreports_a_checksum_is_refused() -> None:
    with pytest.raises(StoreUnfit, match="misreports"):
        check_store(MisreportsDigests())


class SlowToRefuse(Doctored):
    """Losers of a race wait until the test says so."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.go_on = threading.Event()

    def put_new(self, key: str, body: bytes) -> None:
        try:
            self.store.put_new(key, body)
        except AlreadyExists:
            if body.startswith(b"racer"):
                self.go_on.wait(30)
            raise


def test_nobody_waits_for_slow_losers_and_their_key_goes_when_they_are_answered() -> None:
    store = SlowToRefuse(MemoryStore())
    started = time.monotonic()
    check_store(store)
    assert time.monotonic() - started < 2.0
    # While a loser is on its way the key must stay, or it would win it.
    assert len(store.list(layout.checks_prefix()).keys) == 1
    store.go_on.set()
    wait_until(lambda: not store.list(layout.checks_prefix()).keys)


def test_probes_that_an_earlier_check_left_are_swept_away_and_young_ones_are_not() -> None:
    store, calendar = dated_store()
    store.put_new(layout.check_key("a" * 32), b"old")
    calendar.now += LEFT_BEHIND_S + 1
    young = layout.check_key("b" * 32)
    store.put_new(young, b"of a check that runs now")
    check_store(store)
    assert store.list("").keys == (young,)


def test_a_store_that_forbids_listing_others_probes_is_not_called_unfit() -> None:
    class Narrow(MemoryStore):
        def list(self, prefix: str, **options: object) -> object:  # type: ignore[override]
            if prefix == layout.checks_prefix():
                raise StoreRefused("no")
            return super().list(prefix, **options)  # type: ignore[arg-type]

    check_store(Narrow())


def test_a_race_that_nobody_answers_has_no_winner() -> None:
    race = Race(NeverAnswersARace(), layout.check_key("c" * 32))
    race.start()
    assert not race.wait_for_winner(5)
    race.clean()


class NeverAnswersARace(MemoryStore):
    def put_new(self, key: str, body: bytes) -> None:
        if body.startswith(b"racer"):
            raise StoreUnavailable("away")
        super().put_new(key, body)


def test_a_store_that_goes_away_is_not_called_unfit() -> None:
    with pytest.raises(StoreUnavailable, match="away"):
        check_store(NeverAnswersARace())
