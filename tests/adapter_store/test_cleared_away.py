"""A publisher that stood still until a collector cleared it away is told so."""

from __future__ import annotations

import pytest

from adapter_store.errors import Conflict
from adapter_store.gc import Collector
from adapter_store.memory import MemoryStore
from adapter_store.retention import Retention
from tests.adapter_store.faulty_store import FaultyStore
from tests.adapter_store.publishing import TENANT, keys, publish, served_seed


class StandsStill(FaultyStore):
    """Right after its first chunk was sent, everything it left lying about is collected."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self._bucket = store

    def head(self, key: str) -> object:  # type: ignore[override]
        if "/blob/" in key and key in keys(self._bucket, "blob"):
            collector = Collector(
                self._bucket, retention=Retention(keep=1, younger_s=0), warn=print, parallel=1
            )
            collector.reap(TENANT, older_s=0)
            collector.collect(TENANT)
        return super().head(key)


def test_a_chunk_that_was_collected_meanwhile_is_a_conflict_and_not_a_damaged_store() -> None:
    store = MemoryStore()
    publish(store, 1)
    with pytest.raises(Conflict, match="stood still"):
        publish(StandsStill(store), 2)
    assert served_seed(store) == 1
    assert publish(store, 2).gen == 3
