from __future__ import annotations

import threading

import pytest

from adapter_store.memory import MemoryStore
from tests.adapter_store.object_store_contract import ObjectStoreContract


class TestMemoryStore(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


def test_ages_come_from_the_clock_it_was_given() -> None:
    now = 1000.0
    store = MemoryStore(clock=lambda: now)
    store.put_new("v1/a", b"x")
    now = 2000.0
    store.put_new("v1/b", b"x")
    assert (store.head("v1/a").modified, store.head("v1/b").modified) == (1000.0, 2000.0)


class LookThenWrite(MemoryStore):
    """The seeded bug: look and write are two steps, and everyone looks before any writes."""

    def __init__(self, racers: int) -> None:
        super().__init__()
        self._looked = threading.Barrier(racers)

    def put_new(self, key: str, body: bytes) -> None:
        self._looked.wait()
        self.delete(key)
        super().put_new(key, body)


def test_the_contract_catches_a_store_that_looks_and_then_writes() -> None:
    with pytest.raises(AssertionError):
        ObjectStoreContract().test_of_racing_creators_exactly_one_wins_and_its_bytes_stay(
            LookThenWrite(racers=4)
        )
