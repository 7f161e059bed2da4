"""One way to reach Redis: bounded waits, one quiet reconnect, never a reason to fail a publish."""

from __future__ import annotations

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

LONGEST_BLOCK_S = 2.0
"""No single blocking read asks Redis to wait longer than this."""


def open_redis(url: str) -> Redis:
    """A client that sends nothing yet. Raises ValueError on a malformed URL.

    A command whose answer was lost is sent a second time, so callers send only commands that may
    be repeated.
    """
    client: Redis = Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=2.0,
        socket_timeout=LONGEST_BLOCK_S + 2.0,
        retry=Retry(NoBackoff(), 1),
        health_check_interval=0,
    )
    return client
