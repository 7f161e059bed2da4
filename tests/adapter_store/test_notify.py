from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from redis import Redis

from adapter_store.coordination import Hint
from adapter_store.embedded import EmbeddedStack
from adapter_store.notify import (
    STREAM,
    HintStream,
    RedisAnnouncer,
    open_announcer,
    open_hints,
)
from adapter_store.redis_client import open_redis
from adapter_store.settings import REDIS_SERVICE
from tests.adapter_store.waiting import wait_until

pytestmark = pytest.mark.services
AWAY = "redis://127.0.0.1:1/0"


@pytest.fixture
def announcer(redis_client: Redis) -> RedisAnnouncer:
    return RedisAnnouncer(redis_client)


@pytest.fixture
def hints(redis_url: str) -> HintStream:
    """A listener that already listens."""
    stream = open_hints(redis_url)
    assert stream.poll(0) == []
    return stream


def test_a_listener_hears_every_announcement_once_and_in_order(
    announcer: RedisAnnouncer, hints: HintStream
) -> None:
    for gen in (1, 2, 3):
        announcer.announce("acme", "tone", gen)
    heard = hints.poll(5)
    assert heard == [Hint("acme", "tone", gen) for gen in (1, 2, 3)]
    assert hints.poll(0) == []
    assert hints.healthy
    assert hints.gaps == 0


def test_a_listener_does_not_hear_what_was_said_before_it_came(
    announcer: RedisAnnouncer, redis_url: str
) -> None:
    announcer.announce("acme", "tone", 1)
    late = open_hints(redis_url)
    assert late.poll(0) == []
    announcer.announce("acme", "tone", 2)
    assert late.poll(5) == [Hint("acme", "tone", 2)]


def test_a_waiting_listener_wakes_at_the_announcement(
    announcer: RedisAnnouncer, hints: HintStream
) -> None:
    started = time.monotonic()
    speaker = threading.Timer(0.1, announcer.announce, ("acme", "tone", 1))
    speaker.start()
    assert hints.poll(20) == [Hint("acme", "tone", 1)]
    speaker.join()
    assert time.monotonic() - started < 5


def test_the_head_hint_only_rises(announcer: RedisAnnouncer, hints: HintStream) -> None:
    assert hints.head_hint("acme", "tone") is None
    for gen in (2, 5, 3):
        announcer.announce("acme", "tone", gen)
    assert hints.head_hint("acme", "tone") == 5
    assert hints.head_hint("other", "tone") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "acme", "adapter": "tone"},
        {"tenant": "acme", "adapter": "../tone", "gen": "1"},
        {"tenant": "", "adapter": "tone", "gen": "1"},
        {"tenant": "acme", "adapter": "tone", "gen": "newest"},
    ],
)
def test_an_entry_that_is_no_hint_is_passed_over(
    announcer: RedisAnnouncer, hints: HintStream, redis_client: Redis, fields: dict[Any, Any]
) -> None:
    redis_client.xadd(STREAM, fields)
    announcer.announce("acme", "tone", 7)
    assert hints.poll(5) == [Hint("acme", "tone", 7)]


def test_without_redis_announcing_is_silent_and_polling_waits_out_its_time() -> None:
    open_announcer(AWAY).announce("acme", "tone", 1)
    hints = open_hints(AWAY)
    started = time.monotonic()
    assert hints.poll(0.3) == []
    assert time.monotonic() - started >= 0.3
    assert not hints.healthy
    assert hints.head_hint("acme", "tone") is None


def test_a_listener_outlives_a_redis_that_was_killed_and_came_back_empty(
    stack: EmbeddedStack,
) -> None:
    announcer = RedisAnnouncer(open_redis(stack.endpoints.redis_url))
    hints = open_hints(stack.endpoints.redis_url)
    hints.poll(0)
    announcer.announce("acme", "tone", 1)
    assert hints.poll(5) == [Hint("acme", "tone", 1)]
    stack.kill(REDIS_SERVICE)
    try:
        assert hints.poll(0) == []
        assert not hints.healthy
    finally:
        stack.restart(REDIS_SERVICE)
    announcer.announce("acme", "tone", 2)
    assert hints.poll(5) == [Hint("acme", "tone", 2)]
    assert hints.healthy
    assert hints.gaps >= 1


def run_ids_backwards(redis_client: Redis, hints: HintStream) -> None:
    """As a Redis does that lost its stream and whose clock is behind the old one's."""
    redis_client.xadd(STREAM, {"tenant": "acme", "adapter": "tone", "gen": 1}, id="9999999999999-0")
    assert hints.poll(5) == [Hint("acme", "tone", 1)]
    redis_client.flushdb()


def test_after_a_flush_hints_are_heard_even_when_ids_run_backwards(
    announcer: RedisAnnouncer, hints: HintStream, redis_client: Redis
) -> None:
    run_ids_backwards(redis_client, hints)
    announcer.announce("acme", "tone", 2)
    assert hints.poll(5) == [Hint("acme", "tone", 2)]
    assert hints.gaps == 1
    assert hints.poll(0) == []
    assert hints.gaps == 1


def test_a_listener_that_trusted_its_last_id_would_be_deaf_after_a_flush(
    announcer: RedisAnnouncer, hints: HintStream, redis_client: Redis
) -> None:
    run_ids_backwards(redis_client, hints)
    announcer.announce("acme", "tone", 2)
    assert not redis_client.xread({STREAM: "9999999999999-0"}, block=50)


def test_a_listener_that_fell_behind_the_trimmed_stream_knows_of_the_gap(
    announcer: RedisAnnouncer, hints: HintStream, redis_client: Redis
) -> None:
    announcer.announce("acme", "tone", 1)
    assert len(hints.poll(5)) == 1
    for gen in (2, 3, 4):
        announcer.announce("acme", "tone", gen)
    redis_client.xtrim(STREAM, maxlen=2, approximate=False)
    assert hints.poll(5) == [Hint("acme", "tone", 3), Hint("acme", "tone", 4)]
    assert hints.gaps == 1


def test_closing_wakes_a_waiting_listener(hints: HintStream) -> None:
    waiting = threading.Thread(target=hints.poll, args=(60,))
    waiting.start()
    hints.close()
    wait_until(lambda: not waiting.is_alive())
    waiting.join()
