"""A change killed at any operation leaves all that was before it, or all that it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from adapter_store import layout
from adapter_store.attempt import Run
from adapter_store.errors import StoreError
from adapter_store.memory import MemoryStore
from adapter_store.record import FileEntry
from adapter_store.upload import Placed, Uploader
from tests.adapter_store.faulty_store import Fault, FaultyStore, Killed
from tests.adapter_store.publishing import (
    TENANT,
    View,
    broken_promises,
    view,
)
from tests.adapter_store.scenes import SCENES, act, points, scene


def crash_everywhere(name: str) -> list[str]:
    """Kill the scene before and after each operation; what is then broken, in words."""
    broken: list[str] = []
    wanted = SCENES[name]
    for point in points(name):
        for fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER):
            store = scene(name)
            faulty = FaultyStore(store, at=point, fault=fault)
            try:
                act(name, faulty)
            except Killed:
                pass
            else:
                broken.append(f"{point}: was not killed")
            where = f"{fault.value} {point} ({faulty.operations[point]}): "
            broken += [where + text for text in unlike(store, wanted.before, wanted.after)]
            act(name, store)
            broken += [where + "after the re-run " + text for text in unlike(store, wanted.after)]
            broken += [where + text for text in broken_promises(store)]
    return broken


def unlike(store: MemoryStore, *allowed: View) -> list[str]:
    try:
        found = view(store)
    except StoreError as error:
        return [f"what is current is not whole: {error}"]
    return [] if found in allowed else [f"it is {found}"]


@pytest.mark.parametrize("name", SCENES)
def test_a_change_killed_at_any_operation_leaves_all_before_or_all_after_it(
    name: str,
) -> None:
    assert len(points(name)) >= 8
    assert crash_everywhere(name) == []


def test_a_publisher_killed_among_many_chunks_leaves_the_old_version_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 512)
    assert len(points("publish over another")) >= 20
    assert crash_everywhere("publish over another") == []


@pytest.mark.parametrize("name", ["first publish", "first stage"])
def test_committing_before_the_chunks_are_there_is_caught_by_the_crash_test(
    name: str, monkeypatch: pytest.MonkeyPatch
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
    broken = crash_everywhere(name)
    assert any("not whole" in text for text in broken)
