"""What one adapter costs does not depend on how many others the bucket holds.

Publishing a new version of an adapter that has a log, undisturbed, costs 8 requests: three to find
the head, one to look again, intent, plans, commit, and the intent away. Each chunk of 16 MiB adds
3 (look, send, read back), or 2 when the store has it (look, check). So a version whose weights are
one new chunk and whose config is known costs 13. `make bench-store` counts the same with 10,000
adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from adapter_store.layout import AdapterRef
from adapter_store.meter import MeteredStore
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.s3 import S3Store
from tests.adapter_store.crowd import VERSIONS, fill, name
from tests.adapter_store.publishing import TENANT, adapter, publisher

pytestmark = pytest.mark.services
FEW, MANY = 10, 300
RESOLVE, PUBLISH = {"": 3, "v1": 3, "v3": 2}, 13


def requests(store: ObjectStore, act: Callable[[ObjectStore], object]) -> int:
    metered = MeteredStore(store)
    act(metered)
    return metered.requests


def resolve(store: ObjectStore, label: str = "") -> None:
    found = Reader(store).resolve(AdapterRef(TENANT, name(FEW // 2), label=label))
    assert found.version.label == (label or f"v{found.gen}")


def search(store: ObjectStore) -> None:
    """A resolve as nobody should write it: through the names of all adapters."""
    pages = Reader(store)
    token = None
    while True:
        page = pages.adapters_page(TENANT, limit=FEW, token=token)
        if name(MANY - 1) in page.names or page.next_token is None:
            return
        token = page.next_token


def test_one_adapter_costs_the_same_among_ten_and_among_hundreds(s3_store: S3Store) -> None:
    seeds = iter(range(VERSIONS, 12))

    def publish(store: ObjectStore) -> None:
        done = publisher(store).publish(TENANT, name(1), adapter(next(seeds)))
        assert not done.unchanged

    def costs() -> list[int]:
        resolves = [partial(resolve, label=label) for label in RESOLVE]
        return [requests(s3_store, act) for act in (*resolves, publish)]

    fill(s3_store, range(FEW))
    searching = requests(s3_store, search)
    among_few = costs()
    fill(s3_store, range(FEW, MANY))
    assert among_few == costs() == [*RESOLVE.values(), PUBLISH]
    # The counting would notice: a search does cost more among many.
    assert requests(s3_store, search) > searching
