"""The publish lock: a lease in Redis with a fence that rises and a thread that renews it.

It saves publishers from racing for a slot they would lose. It is not what makes a commit safe:
Redis may forget it, grant it twice or stand still, and the log slot still goes to exactly one.

Keys, in one hash slot: `lorapool:{tenant/adapter}:lock` holds `owner:fence` and expires;
`lorapool:{tenant/adapter}:fence` is the highest fence this Redis remembers. The caller's floor
comes from the store, so a Redis that lost its memory grants no fence twice.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable

from redis import Redis
from redis.exceptions import RedisError

from adapter_store.errors import LockLost
from adapter_store.redis_client import open_redis

LEASE_S = 30.0
WAIT_S = 60.0

# KEYS[1] lock, KEYS[2] fence counter; ARGV[1] owner, ARGV[2] lease in ms, ARGV[3] floor.
# Returns {fence, 0, ''} when granted, or to the owner asking again; when another holds it,
# {0, ms left, owner}.
_ACQUIRE = """
local held = redis.call('GET', KEYS[1])
if held then
  local owner, fence = string.match(held, '^(.*):(%d+)$')
  if owner == ARGV[1] then return {tonumber(fence), 0, ''} end
  return {0, redis.call('PTTL', KEYS[1]), owner or held}
end
local counter = tonumber(redis.call('GET', KEYS[2]) or '0')
local fence = math.max(counter, tonumber(ARGV[3])) + 1
local digits = string.format('%.0f', fence)
redis.call('SET', KEYS[2], digits)
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. digits, 'NX', 'PX', ARGV[2])
return {fence, 0, ''}
"""

# KEYS[1] lock; ARGV[1] owner:fence, ARGV[2] lease in ms. Returns 1 when renewed, 0 when not ours.
_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""

# KEYS[1] lock; ARGV[1] owner:fence. Returns 1 when deleted, 0 when not ours.
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""


class RedisLease:
    """A granted lock, renewed by its own thread until it is released or lost.

    It counts as held only while at least a third of the lease is left by this process's monotonic
    clock, measured from before the request that last renewed it.
    """

    def __init__(
        self,
        client: Redis,
        key: str,
        *,
        owner: str,
        fence: int,
        granted_at: float,
        lease_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._renew = client.register_script(_RENEW)
        self._release = client.register_script(_RELEASE)
        self._key = key
        self._value = f"{owner}:{fence}"
        self._fence = fence
        self._lease_s = lease_s
        self._clock = clock
        self._renewed_at = granted_at
        self._lost = ""
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {key}", daemon=True)
        self._thread.start()

    @property
    def fence(self) -> int:
        return self._fence

    def ensure_held(self) -> None:
        if not self._lost and self._clock() - self._renewed_at > self._lease_s * 2 / 3:
            self._lost = "it was not renewed in time"
        if self._lost:
            raise LockLost(f"the publish lock was lost: {self._lost}", hint="publish again")

    def release(self) -> None:
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        if not self._lost:
            self._lost = "it was released"
            try:
                self._release(keys=[self._key], args=[self._value])
            except RedisError:
                return

    def _keep(self) -> None:
        while not self._lost and not self._released.wait(self._lease_s / 3):
            sent_at = self._clock()
            try:
                renewed = self._renew(
                    keys=[self._key], args=[self._value, _milliseconds(self._lease_s)]
                )
            except RedisError:
                continue
            if renewed:
                self._renewed_at = sent_at
            else:
                self._lost = "Redis no longer has it"


class RedisLock:
    """A PublishLock in one Redis."""

    def __init__(
        self,
        client: Redis,
        *,
        lease_s: float = LEASE_S,
        wait_s: float = WAIT_S,
        who: str = "",
        on_wait: Callable[[str, float], None] = lambda holder, left_s: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`who` is what others read who wait for this holder.

        `on_wait` is told once each time another holder makes this one wait: who it is, as it said
        itself, and how many seconds its lease lasts unless it is renewed.
        """
        self._client = client
        self._who = who
        self._on_wait = on_wait
        self._acquire = client.register_script(_ACQUIRE)
        self._lease_s = lease_s
        self._wait_s = wait_s
        self._clock = clock
        self._sleep = sleep
        self._reason = ""

    @property
    def reason(self) -> str:
        return self._reason

    def acquire(self, tenant: str, adapter: str, *, floor: int) -> RedisLease | None:
        key, counter = lock_key(tenant, adapter), fence_key(tenant, adapter)
        owner = f"{self._who} {secrets.token_hex(16)}".lstrip()
        deadline = self._clock() + self._wait_s
        waiting = False
        while True:
            sent_at = self._clock()
            try:
                fence, left_ms, holder = self._acquire(
                    keys=[key, counter], args=[owner, _milliseconds(self._lease_s), floor]
                )
            except RedisError as error:
                self._reason = f"Redis cannot grant the lock: {error}"
                return None
            if fence:
                self._reason = ""
                return RedisLease(
                    self._client,
                    key,
                    owner=owner,
                    fence=fence,
                    granted_at=sent_at,
                    lease_s=self._lease_s,
                    clock=self._clock,
                )
            if self._clock() >= deadline:
                self._reason = f"another publisher held the lock for {self._wait_s:.0f} s"
                return None
            if not waiting:
                waiting = True
                self._on_wait(str(holder).rpartition(" ")[0], max(left_ms, 0) / 1000)
            self._sleep(min(random.uniform(0.05, 0.25), max(left_ms, 1) / 1000))


def open_lock(
    url: str,
    *,
    who: str = "",
    on_wait: Callable[[str, float], None] = lambda holder, left_s: None,
) -> RedisLock:
    """A lock at `url`; sends nothing yet. Raises ValueError on a malformed URL."""
    return RedisLock(open_redis(url), who=who, on_wait=on_wait)


def lock_key(tenant: str, adapter: str) -> str:
    return f"lorapool:{{{tenant}/{adapter}}}:lock"


def fence_key(tenant: str, adapter: str) -> str:
    return f"lorapool:{{{tenant}/{adapter}}}:fence"


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
