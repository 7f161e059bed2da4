"""How many chunks travel at once is the caller's choice."""

from __future__ import annotations

import threading

import pytest

from adapter_store import layout
from adapter_store.commit import Limits
from adapter_store.layout import AdapterRef
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from tests.adapter_store.publishing import ADAPTER, TENANT, adapter, publisher


class ThreadNoting(MemoryStore):
    """Remembers which threads asked for chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def get(self, key: str) -> bytes:
        if "/blob/" in key:
            self.threads.add(threading.get_ident())
        return super().get(key)

    def put_new(self, key: str, body: bytes) -> None:
        if "/blob/" in key:
            self.threads.add(threading.get_ident())
        super().put_new(key, body)


@pytest.mark.parametrize("parallel", [1, 4])
def test_one_chunk_at_a_time_needs_no_thread_but_the_callers(
    parallel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 512)
    store = ThreadNoting()
    publisher(store, limits=Limits(parallel=parallel)).publish(TENANT, ADAPTER, adapter(1))
    reader = Reader(store, parallel=parallel)
    files = reader.fetch(TENANT, reader.resolve(AdapterRef(TENANT, ADAPTER)).version)
    assert files == adapter(1).files
    alone = store.threads == {threading.get_ident()}
    assert alone == (parallel == 1)
