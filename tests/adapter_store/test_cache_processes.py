"""The cache among real processes: killed while they write, side by side, on a disk that is full."""

from __future__ import annotations

import builtins
import errno
import hashlib
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapter_store.cache import ContentCache
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from tests.adapter_store.publishing import REF, TENANT, adapter, publish
from tests.adapter_store.waiting import wait_until

KILLS = 12
BODY_BYTES = 2_000_000

SETUP = """
import hashlib, os, random, sys
from pathlib import Path
from adapter_store.cache import ContentCache

def body(n, size):
    return random.Random(n).randbytes(size)

def name(body):
    return hashlib.sha256(body).hexdigest()

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
"""
WRITE_FOR_EVER = f"""
cache = ContentCache(folder, budget_bytes=10**9)
n = seed * 1000
while True:
    n += 1
    made = body(n, {BODY_BYTES})
    cache.put(name(made), made)
"""
WRITE_IN_PLACE = f"""
n = seed * 1000
while True:
    n += 1
    made = body(n, {BODY_BYTES})
    path = folder / name(made)[:2] / name(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for start in range(0, len(made), 16384):
            file.write(made[start:start + 16384])
            file.flush()
            os.fsync(file.fileno())
"""
SHARE = """
cache = ContentCache(folder, budget_bytes=300_000)
chance = random.Random(seed)
for _ in range(400):
    made = body(chance.randrange(20), 40_000)
    found = cache.get(name(made))
    assert found is None or found == made
    if found is None:
        assert cache.put(name(made), made)
"""


def start(code: str, folder: Path, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SETUP + code, str(folder), str(seed)])


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if not path.name.startswith(".")]


def torn(folder: Path) -> list[Path]:
    """Entries whose bytes are not what their name says."""
    return [p for p in entries(folder) if hashlib.sha256(p.read_bytes()).hexdigest() != p.name]


def kill_writers(code: str, folder: Path) -> None:
    chance = random.Random(7)
    for seed in range(KILLS):
        before = len(entries(folder))
        writer = start(code, folder, seed)
        try:
            wait_until(lambda before=before: len(entries(folder)) > before, within_s=60)
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(chance.uniform(0.0, 0.03))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()


def test_a_writer_that_is_killed_leaves_no_torn_entry(tmp_path: Path) -> None:
    kill_writers(WRITE_FOR_EVER, tmp_path)
    assert len(entries(tmp_path)) >= KILLS
    assert torn(tmp_path) == []


def test_the_control_writing_in_place_leaves_torn_entries_that_are_never_served(
    tmp_path: Path,
) -> None:
    kill_writers(WRITE_IN_PLACE, tmp_path)
    found = torn(tmp_path)
    assert found
    cache = ContentCache(tmp_path, budget_bytes=10**9)
    assert [cache.get(path.name) for path in found] == [None] * len(found)
    assert cache.stats.corrupt == len(found)


def test_processes_share_a_folder_and_keep_to_its_budget(tmp_path: Path) -> None:
    running = [start(SHARE, tmp_path, seed) for seed in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert torn(tmp_path) == []
    # Each may have added one entry since it last looked at the folder.
    assert 0 < sum(path.stat().st_size for path in entries(tmp_path)) <= 300_000 * 3
    assert not list(tmp_path.glob("??/.*"))


def test_a_file_that_may_not_grow_costs_the_cache_and_not_the_answer(tmp_path: Path) -> None:
    code = """
import resource
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from tests.adapter_store.publishing import REF, TENANT, adapter, publish

store, said = MemoryStore(), []
publish(store, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
cache = ContentCache(folder, budget_bytes=10**9, warn=said.append)
reader = Reader(store, cache=cache)
for _ in range(3):
    assert reader.fetch(TENANT, reader.resolve(REF).version) == dict(adapter(1).files)
assert cache.stats.failed_writes > 1 and cache.stats.hits == 0
assert len(said) == 1 and "File too large" in said[0], said
"""
    assert start(code, tmp_path, 0).wait(60) == 0
    assert entries(tmp_path) == []


def test_a_disk_that_is_full_is_said_once_and_used_again_when_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    said: list[str] = []
    store, full = MemoryStore(), True
    publish(store, 1)
    cache = ContentCache(tmp_path, budget_bytes=10**9, warn=said.append)
    reader = Reader(store, cache=cache)

    def opened(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        # The kernel's own ENOSPC, from the device that is always full.
        if full and mode == "xb" and str(file).startswith(str(tmp_path)):
            return builtins.open("/dev/full", "wb")
        return builtins.open(file, mode, *more, **options)

    monkeypatch.setattr("adapter_store.cache.open", opened, raising=False)
    for _ in range(2):
        assert reader.fetch(TENANT, reader.resolve(REF).version) == dict(adapter(1).files)
    assert len(said) == 1
    assert "No space left" in said[0]
    full = False
    reader.fetch(TENANT, reader.resolve(REF).version)
    assert entries(tmp_path)
    assert len(said) == 1


def test_a_disk_that_fails_on_reading_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    publish(store, 1)
    cache = ContentCache(tmp_path, budget_bytes=10**9)
    reader = Reader(store, cache=cache)
    version = reader.resolve(REF).version
    reader.fetch(TENANT, version)

    def broken(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert reader.fetch(TENANT, version) == dict(adapter(1).files)
    assert cache.stats.hits == 0
