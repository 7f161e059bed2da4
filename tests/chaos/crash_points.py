"""T5: a process killed before and after every single operation it does leaves nothing half done.

The operations are the requests to the store, the commands to Redis and the changes to the cache's
files, each recorded in a clean run. The committed list of them is compared with what is recorded,
so that a new one needs a look and gets its cases. `python -m tests.chaos.crash_points` writes it.

Each case: SIGKILL at the point, in a process of its own; then what is current is whole and either
old or new, `fsck` finds no error, the same command run again succeeds, and when a reaper and a
collector have been there nothing is left behind, even after the dead process's last request.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from random import Random
from unittest import mock

from adapter_store import cache, gc, layout, reap, upload
from adapter_store.attempt import Run
from adapter_store.cache import ContentCache
from adapter_store.intent import Intent
from adapter_store.record import FileEntry
from adapter_store.settings import Endpoints
from adapter_store.upload import Placed, Uploader
from tests.adapter_store.publishing import TENANT
from tests.chaos.bench import Bench, open_bench
from tests.chaos.crashes import Case, Lane, Setting
from tests.chaos.io_points import Moment, known_points, uncovered, write_known
from tests.chaos.operations import OPERATIONS
from tests.chaos.row import Row

LANES = 3
CASES = 400
"""At full scale. Every kind of point of every operation, before and after, comes first."""

Points = dict[str, list[str]]
"""What each operation does, in order; what differs without Redis has an entry of its own."""


def run(scale: float, seed: int, bench: Bench) -> Row:
    with ExitStack() as opened:
        own, *endpoints = [opened.enter_context(bench.endpoints()) for _ in range(LANES + 1)]
        pool = opened.enter_context(ProcessPoolExecutor(LANES, mp_context=get_context("spawn")))
        controls = pool.submit(controls_caught, own, bench.folder)
        found = pool.submit(recorded, endpoints[0], bench.folder).result()
        every = in_turns(cases_of(found), Random(seed))
        chosen = every[: max(LANES, round(CASES * scale))]
        parts = [chosen[place::LANES] for place in range(LANES)]
        played = [
            pool.submit(broken_by, part, one, bench.folder)
            for part, one in zip(parts, endpoints, strict=True)
        ]
        violations = uncovered(found, known_points())
        violations += [text for part in played for text in part.result()]
        caught = controls.result()
    return Row(
        id="T5",
        cases=len(chosen),
        unit="crashes",
        violations=violations,
        controls=caught,
        faults=Counter(f"SIGKILL {case.moment.value} an operation" for case in chosen),
        seeds=str(seed),
        figures={
            "possible_cases": len(every),
            "operations": len(OPERATIONS),
            "points": sum(len(found[name]) for name in OPERATIONS),
            "distinct_points": len({point for points in found.values() for point in points}),
            **Counter(case.setting.value.replace(" ", "_") for case in chosen),
        },
        notes="an operation that never speaks to Redis has no cases without it",
    )


def recorded(endpoints: Endpoints, folder: Path) -> Points:
    """What every operation does now, in a clean run with and without Redis."""
    lane = Lane(endpoints, folder)
    found: Points = {}
    for name in OPERATIONS:
        found[name] = _clean(lane, name, Setting.ALONE)
        if any(point.startswith("redis") for point in found[name]):
            found[_without_redis(name)] = _clean(lane, name, Setting.NO_REDIS)
    return found


def cases_of(found: Points) -> Iterable[Case]:
    """Before and after every point, in every setting that makes a difference."""
    for name in OPERATIONS:
        for setting in Setting:
            listed = _without_redis(name) if setting is Setting.NO_REDIS else name
            for at, point in enumerate(found.get(listed, [])):
                for moment in Moment:
                    yield Case(name, at, point, moment, setting)


def in_turns(cases: Iterable[Case], random: Random) -> list[Case]:
    """All of them in a random order, in which no kind has its second before each had its first."""
    kinds: dict[tuple[str, str, Moment], list[Case]] = {}
    for case in cases:
        kinds.setdefault((case.operation, case.point, case.moment), []).append(case)
    for one in kinds.values():
        random.shuffle(one)
    placed = [(turn, case) for one in kinds.values() for turn, case in enumerate(one)]
    random.shuffle(placed)
    return [case for _, case in sorted(placed, key=lambda each: each[0])]


def broken_by(cases: Sequence[Case], endpoints: Endpoints, folder: Path) -> list[str]:
    """What these crashes broke, one after another in this process."""
    lane = Lane(endpoints, folder)
    return [text for case in cases for text in lane.wrong(case)]


def _clean(lane: Lane, name: str, setting: Setting) -> list[str]:
    ending = lane.record(name, setting)
    assert not ending.error, f"{name}, {setting.value}: {ending.error}"
    return list(ending.seen)


def _without_redis(name: str) -> str:
    return f"{name}, without Redis"


def controls_caught(endpoints: Endpoints, folder: Path) -> dict[str, bool]:
    """Whether the same cases notice each seeded bug."""
    lane = Lane(endpoints, folder)
    return {
        "a publisher that commits before its chunks": _notices(
            lane, _committing_first(), "first publish", "put log", Moment.AFTER
        ),
        "a collector that drops its plan early": _notices(
            lane, _dropping_plans(), "collect", "delete blob", Moment.AFTER, Setting.RACED
        ),
        "a reaper that fills no slot": _notices(
            lane, _filling_nothing(), "reap", "delete txn", Moment.AFTER
        ),
        "a cache that writes in place and believes it": _notices(
            lane, writing_in_place(), "serve", "file fsync", Moment.AFTER
        ),
        "an operation without a case": _notices_new_operation(lane),
    }


def _notices(
    lane: Lane,
    bugs: Sequence[mock._patch[object]],
    name: str,
    point: str,
    moment: Moment,
    setting: Setting = Setting.ALONE,
) -> bool:
    """Whether a crash at one of the points of this kind breaks something with the bugs in."""
    with ExitStack() as patched:
        for bug in bugs:
            patched.enter_context(bug)
        points = _clean(lane, name, setting)
        cases = [
            Case(name, at, found, moment, setting)
            for at, found in enumerate(points)
            if found == point
        ]
        assert cases, f"{name} has no {point}"
        return any(lane.wrong(case) for case in cases)


def _committing_first() -> list[mock._patch[object]]:
    honest_place, honest_announce = Uploader.place, Run._announce
    waiting: list[Callable[[], object]] = []

    def place_later(self: Uploader, files: tuple[FileEntry, ...]) -> Placed:
        waiting.append(lambda: honest_place(self, files))
        placed = [
            replace(
                file,
                chunks=tuple(
                    replace(c, key=layout.blob_key(TENANT, c.sha256, self._txid, self._attempt))
                    for c in file.chunks
                ),
            )
            for file in files
        ]
        return Placed(tuple(placed), 0)

    def upload_now(self: Run, gen: int) -> None:
        waiting.pop()()
        honest_announce(self, gen)

    return [
        mock.patch.object(Uploader, "place", place_later),
        mock.patch.object(Run, "_announce", upload_now),
    ]


def _dropping_plans() -> list[mock._patch[object]]:
    honest = gc._Collection.decide

    def decide(self: gc._Collection, plans: Mapping[str, gc.Plan]) -> set[str]:
        doomed = honest(self, dict(plans))
        for key in plans:
            self._store.delete(key)
        return doomed

    return [mock.patch.object(gc._Collection, "decide", decide)]


def _filling_nothing() -> list[mock._patch[object]]:
    def fill_nothing(self: reap.Reaper, intent: Intent) -> None:
        return

    return [mock.patch.object(reap.Reaper, "_fence", fill_nothing)]


def writing_in_place() -> list[mock._patch[object]]:
    """The bug of a cache that writes in place and believes what it finds."""

    def put(self: ContentCache, sha256: str, body: bytes, *, owner: str = "") -> bool:
        path = self._path(sha256, owner)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(body[: len(body) // 2])
            file.flush()
            os.fsync(file.fileno())
            file.write(body[len(body) // 2 :])
        return True

    def get(self: ContentCache, sha256: str, *, owner: str = "") -> bytes | None:
        path = self._path(sha256, owner)
        return path.read_bytes() if path.exists() else None

    return [mock.patch.object(cache.ContentCache, "put", put),
            mock.patch.object(cache.ContentCache, "get", get)]  # fmt: skip


def _notices_new_operation(lane: Lane) -> bool:
    """One more request in a publish, before a chunk is sent."""
    honest = upload.condemned_keys

    def twice(store: upload.ObjectStore, tenant: str) -> frozenset[str]:
        honest(store, tenant)
        return honest(store, tenant)

    known = known_points()["publish"]
    with mock.patch("adapter_store.attempt.condemned_keys", twice):
        found = _clean(lane, "publish", Setting.ALONE)
    return len(uncovered({"publish": found}, {"publish": known})) == 1


def main() -> None:
    """Write the list of what the operations do now."""
    with (
        tempfile.TemporaryDirectory(prefix="lorapool-points-") as folder,
        open_bench(Path(folder)) as bench,
        bench.endpoints() as endpoints,
    ):
        write_known(recorded(endpoints, Path(folder)))


if __name__ == "__main__":
    main()
