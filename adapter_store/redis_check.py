"""May this user do in Redis what publishers and nodes do? Asked without changing anything.

Each command is sent as the product sends it, to a key of its own that is gone in a second. The
stream is never written to: an entry with an impossible id is refused, and by whom is the answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from adapter_store.locks import fence_key, lock_key
from adapter_store.notify import STREAM, head_key
from adapter_store.redis_client import open_redis

_PROBE_MS = 1000
_HEARING = frozenset({"XREAD", "XRANGE", "XREVRANGE"})


@dataclass(frozen=True, slots=True)
class RedisAnswer:
    """What a Redis said; `error` when it said nothing."""

    error: str
    refused: tuple[str, ...]
    """Commands that this user may not run on our keys."""

    @property
    def hears(self) -> bool:
        """Whether it may listen to hints, as a node does that only reads."""
        return not self.error and _HEARING.isdisjoint(self.refused)


def check_redis(url: str) -> RedisAnswer:
    """Never raises for what Redis does. Raises ValueError on a malformed URL."""
    client = open_redis(url)
    try:
        client.ping()
    except NoPermissionError:
        pass
    except RedisError as error:
        return RedisAnswer(str(error), ())
    try:
        refused = tuple(name for name, send in _probes(client) if not _allowed(send))
    except RedisError as error:
        return RedisAnswer(str(error), ())
    finally:
        client.close()
    return RedisAnswer("", refused)


def _probes(client: Redis) -> list[tuple[str, Callable[[], object]]]:
    name = f"doctor-{secrets.token_hex(8)}"
    lock, fence, head = lock_key("default", name), fence_key("default", name), head_key("x", name)
    keep = "return redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])"
    return [
        ("SET", lambda: client.set(lock, "1", px=_PROBE_MS, nx=True)),
        ("GET", lambda: client.get(head)),
        ("PTTL", lambda: client.pttl(lock)),
        ("PEXPIRE", lambda: client.pexpire(lock, _PROBE_MS)),
        ("EVAL", lambda: client.eval(keep, 1, fence, _PROBE_MS)),
        ("EVALSHA", lambda: client.evalsha("0" * 40, 1, lock)),
        ("SCRIPT LOAD", lambda: client.script_load("return 1")),
        ("DEL", lambda: client.delete(lock)),
        ("XADD", lambda: client.xadd(STREAM, {"probe": "1"}, id="never")),
        ("XREAD", lambda: client.xread({STREAM: "$"})),
        ("XRANGE", lambda: client.xrange(STREAM, "0-1", "0-1", count=1)),
        ("XREVRANGE", lambda: client.xrevrange(STREAM, count=1)),
    ]


def _allowed(send: Callable[[], object]) -> bool:
    """Whether the user may; what the command would have done is not the question."""
    try:
        send()
    except NoPermissionError:
        return False
    except ResponseError as error:
        return "can't run this command" not in str(error)
    return True
