from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from redis import Redis

from adapter_store.embedded import EmbeddedStack
from adapter_store.errors import LockLost
from adapter_store.locks import LEASE_S, RedisLease, RedisLock, fence_key, lock_key, open_lock
from adapter_store.redis_client import open_redis
from adapter_store.settings import REDIS_SERVICE
from tests.adapter_store.fault_proxy import fault_proxy
from tests.adapter_store.waiting import wait_until

pytestmark = pytest.mark.services
KEY = lock_key("acme", "tone")


class Clock:
    """A monotonic clock that only this test moves; sleeping moves it too."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def acquired(lock: RedisLock, *, floor: int = 0) -> RedisLease:
    lease = lock.acquire("acme", "tone", floor=floor)
    assert lease is not None, lock.reason
    return lease


def is_lost(lease: RedisLease) -> bool:
    try:
        lease.ensure_held()
    except LockLost:
        return True
    return False


def test_a_held_lock_is_granted_to_nobody_else_until_it_is_released(redis_client: Redis) -> None:
    clock = Clock()
    holder = acquired(RedisLock(redis_client))
    waiting = RedisLock(redis_client, wait_s=5, clock=clock, sleep=clock.sleep)
    assert waiting.acquire("acme", "tone", floor=0) is None
    assert "another publisher" in waiting.reason
    assert 105 <= clock.now < 106
    holder.release()
    acquired(waiting).release()
    assert waiting.reason == ""


def test_different_adapters_do_not_wait_for_each_other(redis_client: Redis) -> None:
    lock = RedisLock(redis_client, wait_s=0)
    leases = [lock.acquire("acme", "tone", floor=0), lock.acquire("acme", "wit", floor=0)]
    leases.append(lock.acquire("other", "tone", floor=0))
    for lease in leases:
        assert lease is not None
        lease.release()


def test_racing_publishers_never_overlap_and_their_fences_rise(redis_url: str) -> None:
    grants: list[int] = []
    inside = threading.Semaphore(1)
    overlaps: list[int] = []

    def publish() -> None:
        lock = RedisLock(open_redis(redis_url), sleep=lambda seconds: time.sleep(seconds / 20))
        for _ in range(5):
            lease = acquired(lock)
            if not inside.acquire(blocking=False):
                overlaps.append(lease.fence)
            grants.append(lease.fence)
            inside.release()
            lease.release()

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert grants == sorted(set(grants))
    assert len(grants) == 20


def test_a_redis_that_forgot_everything_grants_no_fence_twice(redis_client: Redis) -> None:
    lock = RedisLock(redis_client)
    first = acquired(lock, floor=6)
    assert first.fence == 7
    redis_client.flushdb()
    second = acquired(lock, floor=first.fence)
    assert second.fence == 8
    first.release()
    second.release()


def test_without_the_floor_a_flush_would_repeat_a_fence(redis_client: Redis) -> None:
    lock = RedisLock(redis_client)
    first = acquired(lock)
    redis_client.flushdb()
    second = acquired(lock)
    assert second.fence == first.fence
    first.release()
    second.release()


def test_a_lease_is_renewed_for_as_long_as_the_work_takes(redis_client: Redis) -> None:
    lease = acquired(RedisLock(redis_client, lease_s=0.6))
    started = time.monotonic()
    wait_until(lambda: time.monotonic() - started > 1.5 and redis_client.exists(KEY))
    lease.ensure_held()
    assert RedisLock(redis_client, wait_s=0).acquire("acme", "tone", floor=0) is None
    lease.release()
    assert not redis_client.exists(KEY)


def test_a_lease_that_is_nearly_over_does_not_count_as_held(redis_client: Redis) -> None:
    clock = Clock()
    lease = acquired(RedisLock(redis_client, lease_s=30, clock=clock))
    clock.now += 19
    lease.ensure_held()
    clock.now += 2
    with pytest.raises(LockLost):
        lease.ensure_held()
    clock.now -= 21
    with pytest.raises(LockLost):
        lease.ensure_held()
    lease.release()


def test_a_holder_that_ignored_its_clock_would_write_beside_the_next_one(
    redis_client: Redis,
) -> None:
    stopped_clock = Clock()
    first = acquired(RedisLock(redis_client, lease_s=30, clock=stopped_clock))
    redis_client.delete(KEY)
    second = acquired(RedisLock(redis_client))
    assert not is_lost(first)
    assert not is_lost(second)
    first.release()
    second.release()


PAUSED_HOLDER = """
import sys
from adapter_store.errors import LockLost
from adapter_store.locks import RedisLock
from adapter_store.redis_client import open_redis

lease = RedisLock(open_redis(sys.argv[1]), lease_s=0.9).acquire("acme", "tone", floor=0)
lease.ensure_held()
print(lease.fence, flush=True)
sys.stdin.readline()
try:
    lease.ensure_held()
    print("held")
except LockLost:
    print("lost")
lease.release()
"""


def test_a_holder_paused_past_its_lease_learns_that_it_lost_it(
    redis_url: str, redis_client: Redis
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED_HOLDER, redis_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        fence = int(holder.stdout.readline())
        os.kill(holder.pid, signal.SIGSTOP)
        following = acquired(RedisLock(redis_client), floor=fence)
        assert following.fence > fence
        os.kill(holder.pid, signal.SIGCONT)
        print("go on", file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "lost\n"
    assert holder.returncode == 0
    following.ensure_held()
    assert redis_client.exists(KEY)
    following.release()


def test_a_late_release_does_not_free_the_next_holder(redis_client: Redis) -> None:
    first = acquired(RedisLock(redis_client))
    redis_client.delete(KEY)
    second = acquired(RedisLock(redis_client), floor=first.fence)
    first.release()
    assert str(redis_client.get(KEY)).endswith(f":{second.fence}")
    second.release()


def test_a_lock_that_vanished_is_noticed_at_the_next_renewal(redis_client: Redis) -> None:
    lease = acquired(RedisLock(redis_client, lease_s=0.6))
    redis_client.delete(KEY)
    wait_until(lambda: is_lost(lease))
    lease.release()


def test_without_redis_the_publisher_is_told_to_go_on_without_a_lock() -> None:
    lock = open_lock("redis://127.0.0.1:1/0")
    assert lock.acquire("acme", "tone", floor=0) is None
    assert "Redis cannot grant the lock" in lock.reason


def test_a_redis_that_dies_costs_the_lease_and_nothing_else(stack: EmbeddedStack) -> None:
    client = open_redis(stack.endpoints.redis_url)
    lease = acquired(RedisLock(client, lease_s=0.9))
    stack.kill(REDIS_SERVICE)
    try:
        wait_until(lambda: is_lost(lease))
        lease.release()
    finally:
        stack.restart(REDIS_SERVICE)
    acquired(RedisLock(client), floor=lease.fence).release()


def test_a_grant_whose_answer_was_lost_is_not_a_second_grant(
    redis_url: str, redis_client: Redis
) -> None:
    warm = acquired(RedisLock(redis_client))
    warm.release()
    url = urlsplit(redis_url)
    assert url.hostname is not None
    assert url.port is not None
    with fault_proxy(url.hostname, url.port) as proxy:
        through = url._replace(netloc=f":{url.password}@127.0.0.1:{proxy.port}").geturl()
        client = open_redis(through)
        client.ping()
        proxy.swallow(1)
        lease = acquired(RedisLock(client))
        assert proxy.swallowed == 1
        assert lease.fence == warm.fence + 1
        assert redis_client.get(fence_key("acme", "tone")) == str(lease.fence)
        lease.release()
        assert not redis_client.exists(KEY)
        client.close()


def test_releasing_twice_is_fine_and_a_released_lease_is_not_held(redis_client: Redis) -> None:
    lease = acquired(RedisLock(redis_client))
    lease.release()
    lease.release()
    assert is_lost(lease)


def test_no_thread_is_left_behind(redis_client: Redis) -> None:
    before = threading.active_count()
    leases: list[Callable[[], None]] = []
    for name in ("a", "b", "c"):
        lease = RedisLock(redis_client).acquire("acme", name, floor=0)
        assert lease is not None
        leases.append(lease.release)
    for release in leases:
        release()
    assert threading.active_count() == before


def test_who_waits_is_told_once_for_whom_and_how_long(redis_client: Redis) -> None:
    told: list[tuple[str, float]] = []

    def on_wait(holder: str, left_s: float) -> None:
        told.append((holder, left_s))

    lease = RedisLock(redis_client, who="ann@host (process 7)").acquire("t", "a", floor=0)
    assert lease is not None
    try:
        for who in ("", "bob"):
            lock = RedisLock(redis_client, wait_s=0.3, who=who, on_wait=on_wait)
            assert lock.acquire("t", "a", floor=0) is None
    finally:
        lease.release()
    assert [holder for holder, _ in told] == ["ann@host (process 7)"] * 2
    assert all(0 < left_s <= LEASE_S for _, left_s in told)
    nobody = RedisLock(redis_client, on_wait=on_wait).acquire("t", "a", floor=0)
    assert nobody is not None
    nobody.release()
    assert len(told) == 2
