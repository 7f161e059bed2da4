"""A cache that may lose anything and may never serve a wrong byte."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from adapter_store.cache import STALE_TEMPORARY_S, ContentCache
from adapter_store.errors import InvalidName


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def entry(folder: Path, body: bytes) -> Path:
    return folder / digest(body)[:2] / digest(body)


def test_what_was_put_comes_back_and_what_was_not_is_a_miss(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "made", budget_bytes=1000)
    assert cache.get(digest(b"one")) is None
    assert cache.put(digest(b"one"), b"one")
    assert cache.get(digest(b"one")) == b"one"
    assert (cache.stats.hits, cache.stats.misses) == (1, 1)


def test_a_damaged_entry_is_dropped_and_not_served(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, budget_bytes=1000)
    cache.put(digest(b"one"), b"one")
    entry(tmp_path, b"one").write_bytes(b"two")
    assert cache.get(digest(b"one")) is None
    assert not entry(tmp_path, b"one").exists()
    assert cache.stats.corrupt == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_costs_the_entry_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    cache = ContentCache(tmp_path, budget_bytes=1000)

    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    assert not cache.put(digest(b"one"), b"one")
    assert cache.get(digest(b"one")) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert cache.stats.failed_writes == 1


def test_a_folder_that_cannot_be_made_costs_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ContentCache(tmp_path / "file", budget_bytes=1000)
    assert not cache.put(digest(b"one"), b"one")
    assert cache.get(digest(b"one")) is None


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, budget_bytes=100)
    bodies = [bytes([n]) * 30 for n in range(4)]
    for age, body in enumerate(bodies[:3]):
        cache.put(digest(body), body)
        os.utime(entry(tmp_path, body), (1000 + age, 1000 + age))
    assert cache.get(digest(bodies[0])) is not None
    cache.put(digest(bodies[3]), bodies[3])
    kept = [body for body in bodies if entry(tmp_path, body).exists()]
    assert kept == [bodies[0], bodies[2], bodies[3]]
    assert cache.stats.evicted == 1


def test_content_over_the_whole_budget_is_not_kept(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, budget_bytes=10)
    assert not cache.put(digest(b"x" * 11), b"x" * 11)
    assert list(tmp_path.iterdir()) == []


def test_entries_survive_a_restart_and_count_towards_the_budget(tmp_path: Path) -> None:
    first, second = b"a" * 60, b"b" * 60
    ContentCache(tmp_path, budget_bytes=100).put(digest(first), first)
    os.utime(entry(tmp_path, first), (1000, 1000))
    again = ContentCache(tmp_path, budget_bytes=100)
    assert again.get(digest(first)) == first
    os.utime(entry(tmp_path, first), (1000, 1000))
    again.put(digest(second), second)
    assert again.get(digest(first)) is None
    assert again.get(digest(second)) == second


def test_an_entry_another_process_evicted_is_a_miss(tmp_path: Path) -> None:
    mine = ContentCache(tmp_path, budget_bytes=100)
    theirs = ContentCache(tmp_path, budget_bytes=100)
    first, second = b"a" * 60, b"b" * 60
    mine.put(digest(first), first)
    os.utime(entry(tmp_path, first), (1000, 1000))
    theirs.put(digest(first), first)
    os.utime(entry(tmp_path, first), (1000, 1000))
    theirs.put(digest(second), second)
    assert mine.get(digest(first)) is None
    assert mine.get(digest(second)) == second


def test_what_a_dead_writer_left_is_removed_and_never_read(tmp_path: Path) -> None:
    folder = entry(tmp_path, b"one").parent
    folder.mkdir()
    stale, fresh = folder / f".{digest(b'one')}.aa", folder / f".{digest(b'one')}.bb"
    stale.write_bytes(b"on")
    fresh.write_bytes(b"on")
    old = fresh.stat().st_mtime - STALE_TEMPORARY_S - 1
    os.utime(stale, (old, old))
    cache = ContentCache(tmp_path, budget_bytes=100)
    assert cache.get(digest(b"one")) is None
    assert not stale.exists()
    assert fresh.exists()


def test_a_name_that_is_no_digest_never_reaches_the_disk(tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        ContentCache(tmp_path, budget_bytes=10).get("../../etc/passwd")
