"""A publisher killed at any operation leaves the old version whole, or the new one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from adapter_store import layout
from adapter_store.attempt import Run
from adapter_store.errors import (
    NotFound,
    StoreError,
)
from adapter_store.memory import MemoryStore
from adapter_store.record import FileEntry
from adapter_store.upload import Placed, Uploader
from tests.adapter_store.faulty_store import Fault, FaultyStore, Killed
from tests.adapter_store.publishing import (
    TENANT,
    broken_promises,
    served_seed,
)
from tests.adapter_store.scenes import SCENES, points, scene


def crash_everywhere(name: str) -> list[str]:
    """Kill the scene before and after each operation; what is then broken, in words."""
    broken: list[str] = []
    for point in points(name):
        for fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER):
            store, old = scene(name)
            faulty = FaultyStore(store, at=point, fault=fault)
            try:
                SCENES[name][1](faulty)
            except Killed:
                pass
            else:
                broken.append(f"{point}: was not killed")
            where = f"{fault.value} {point} ({faulty.operations[point]}): "
            broken += [where + text for text in after_a_crash(store, old)]
            SCENES[name][1](FaultyStore(store))
            broken += [where + "after the re-run " + text for text in after_a_crash(store, 2)]
            broken += [where + text for text in broken_promises(store)]
    return broken


def after_a_crash(store: MemoryStore, old: int | None) -> list[str]:
    try:
        serves: int | None = served_seed(store)
    except NotFound:
        serves = None
    except StoreError as error:
        return [f"what is current is not whole: {error}"]
    return [] if serves in (old, 2) else [f"serves {serves}"]


@pytest.mark.parametrize("name", SCENES)
def test_a_publisher_killed_at_any_operation_leaves_the_old_or_the_new_version_whole(
    name: str,
) -> None:
    assert len(points(name)) >= 9
    assert crash_everywhere(name) == []


def test_a_publisher_killed_among_many_chunks_leaves_the_old_version_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 512)
    assert len(points("publish over another")) >= 20
    assert crash_everywhere("publish over another") == []


def test_committing_before_the_chunks_are_there_is_caught_by_the_crash_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: a publisher that uploads after its commit."""
    honest_place, honest_announce = Uploader.place, Run._announce
    waiting: list[Callable[[], object]] = []

    def place_later(self: Uploader, files: tuple[FileEntry, ...]) -> Placed:
        waiting.append(lambda: honest_place(self, files))
        return Placed(
            tuple(
                replace(
                    file,
                    chunks=tuple(
                        replace(c, key=layout.blob_key(TENANT, c.sha256, self._txid, self._attempt))
                        for c in file.chunks
                    ),
                )
                for file in files
            ),
            0,
        )

    def upload_now(self: Run, gen: int) -> None:
        waiting.pop()()
        honest_announce(self, gen)

    monkeypatch.setattr(Uploader, "place", place_later)
    monkeypatch.setattr(Run, "_announce", upload_now)
    broken = crash_everywhere("first publish")
    assert any("not whole" in text for text in broken)
