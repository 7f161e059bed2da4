"""Many adapters in one bucket, at one request a record.

The first adapter is published; the others get the records that publishing the same content would
have written, over the same chunks: what differs is that nobody asked the store anything before.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from adapter_store import layout
from adapter_store.commit import Publisher
from adapter_store.objects import ObjectStore
from adapter_store.record import Record
from tests.adapter_store.publishing import TENANT, adapter, publisher

VERSIONS = 3


def name(number: int) -> str:
    return f"persona-{number:05d}"


def fill(store: ObjectStore, numbers: range, *, parallel: int = 8) -> None:
    """`VERSIONS` versions of each of the adapters `numbers`; the first of them is published."""
    first = publish_versions(publisher(store), name(numbers[0]))
    logs = (log for number in numbers[1:] for log in (copied(first, name(number)),))
    with ThreadPoolExecutor(parallel) as pool:
        for _ in pool.map(lambda records: _write(store, records), logs):
            pass


def publish_versions(publishing: Publisher, adapter_name: str) -> list[Record]:
    """The records of `VERSIONS` versions, oldest first."""
    return [
        publishing.publish(TENANT, adapter_name, adapter(seed)).record for seed in range(VERSIONS)
    ]


def copied(records: list[Record], adapter_name: str) -> list[Record]:
    """The same log under another name, linked anew."""
    found: list[Record] = []
    for record in records:
        parent = found[-1].digest() if found else ""
        found.append(replace(record, adapter=adapter_name, parent=parent))
    return found


def _write(store: ObjectStore, records: list[Record]) -> None:
    for record in records:
        key = layout.log_key(record.tenant, record.adapter, record.gen)
        store.put_new(key, record.encode())
