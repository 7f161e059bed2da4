"""Hints that a log has grown, over a Redis stream. Lost, late or false hints cost time, no more.

`lorapool:hints` is a capped stream of (tenant, adapter, gen); `lorapool:{tenant/adapter}:head` is
the highest generation anyone announced. Neither is ever believed: a node that hears of a
generation looks in the store. A hint may name nodes that are to fetch ahead (registry.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from adapter_store.coordination import Hint
from adapter_store.errors import InvalidName
from adapter_store.layout import check_id
from adapter_store.redis_client import LONGEST_BLOCK_S, open_redis

STREAM = "lorapool:hints"
KEPT_HINTS = 10_000
_START = "0-0"
_log = logging.getLogger(__name__)

# KEYS[1] head hint; ARGV[1] generation. Returns the larger of the two, which is now stored.
_RAISE_HEAD = """
local known = tonumber(redis.call('GET', KEYS[1]) or '0')
if tonumber(ARGV[1]) > known then
  redis.call('SET', KEYS[1], ARGV[1])
  return tonumber(ARGV[1])
end
return known
"""


class RedisAnnouncer:
    """The Announcer that writes to the stream."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._raise_head = client.register_script(_RAISE_HEAD)

    def announce(self, tenant: str, adapter: str, gen: int) -> None:
        try:
            self._raise_head(keys=[head_key(tenant, adapter)], args=[gen])
            self._client.xadd(
                STREAM,
                {"tenant": tenant, "adapter": adapter, "gen": gen},
                maxlen=KEPT_HINTS,
                approximate=True,
            )
        except RedisError as error:
            _log.info("nodes will find generation %d by polling: %s", gen, error)


class HintStream:
    """What a node listens to: hints from the moment of the first successful poll on.

    Not for use by several threads at once, but for `close`.
    """

    def __init__(
        self, client: Redis, *, node: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`node` is the id by which the listener can be asked to fetch ahead."""
        self._client = client
        self._node = node
        self._clock = clock
        self._closed = threading.Event()
        self._last_id: str | None = None
        self.healthy = False
        """Whether the last poll reached Redis: while not, poll the store more often."""
        self.gaps = 0
        """How often hints may have been lost: when it rises, look at everything you follow."""
        self._stumbled = False

    def poll(self, timeout_s: float) -> list[Hint]:
        """New hints, waiting up to `timeout_s` for the first; empty also when Redis is away."""
        deadline = self._clock() + timeout_s
        while not self._closed.is_set():
            left = deadline - self._clock()
            try:
                entries = self._read(min(max(left, 0.0), LONGEST_BLOCK_S))
            except RedisError as error:
                self._stumble(error)
                self._closed.wait(max(deadline - self._clock(), 0.0))
                return []
            self.healthy = True
            self.gaps += self._stumbled
            self._stumbled = False
            hints = [hint for fields in entries if (hint := self._hint(fields)) is not None]
            if hints or self._clock() >= deadline:
                return hints
        return []

    def head_hint(self, tenant: str, adapter: str) -> int | None:
        """The highest generation announced here; None when none is known or Redis is away."""
        try:
            value = self._client.get(head_key(tenant, adapter))
            return int(str(value)) if value is not None else None
        except (RedisError, ValueError):
            return None

    def close(self) -> None:
        """Make a waiting `poll` return within LONGEST_BLOCK_S."""
        self._closed.set()

    def _read(self, block_s: float) -> list[Mapping[str, str]]:
        """Entries past the last one seen, waiting up to `block_s`. Raises RedisError."""
        if self._last_id is None:
            newest: Any = self._client.xrevrange(STREAM, count=1)
            self._last_id = newest[0][0] if newest else _START
        elif self._last_id != _START and not self._client.xrange(
            STREAM, self._last_id, self._last_id, count=1
        ):
            # Trimmed past us, flushed, or a restarted Redis whose ids may run behind ours.
            self.gaps += 1
            self._last_id = _START
        answer: Any = self._client.xread(
            {STREAM: self._last_id}, block=max(1, round(block_s * 1000))
        )
        entries = [entry for _, batch in _streams(answer) for entry in batch]
        if entries:
            self._last_id = entries[-1][0]
        return [fields for _, fields in entries]

    def _hint(self, fields: Mapping[str, str]) -> Hint | None:
        """The entry as a Hint; None when it is malformed, since anyone may write to the stream."""
        try:
            tenant = check_id("tenant", fields["tenant"])
            adapter = check_id("adapter", fields["adapter"])
            ahead = bool(self._node) and self._node in fields.get("ahead", "").split(",")
            return Hint(tenant, adapter, int(fields["gen"]), ahead)
        except (InvalidName, KeyError, ValueError):
            return None

    def _stumble(self, error: RedisError) -> None:
        if not self._stumbled:
            _log.info("no hints from Redis, the store is polled instead: %s", error)
        self._stumbled = True
        self.healthy = False


def open_announcer(url: str) -> RedisAnnouncer:
    """An announcer at `url`; sends nothing yet. Raises ValueError on a malformed URL."""
    return RedisAnnouncer(open_redis(url))


def open_hints(url: str, *, node: str = "") -> HintStream:
    """A listener at `url`; sends nothing yet. Raises ValueError on a malformed URL."""
    return HintStream(open_redis(url), node=node)


def head_key(tenant: str, adapter: str) -> str:
    return f"lorapool:{{{tenant}/{adapter}}}:head"


def _streams(answer: Any) -> list[tuple[str, list[tuple[str, Mapping[str, str]]]]]:
    """XREAD's answer in either of the protocol's two shapes."""
    if not answer:
        return []
    return list(answer.items()) if isinstance(answer, dict) else list(answer)
