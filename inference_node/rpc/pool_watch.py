"""The node seen again and again, and to each watcher what has changed since it last looked.

One look serves all watchers. Nothing is queued: a watcher that reads slowly finds, when it comes
back, the newest look alone, and is told the difference to what it was told last. It costs one
remembered look, however slowly it reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from inference_node.errors import NodeError
from inference_node.residency import LoadedVersion, PoolUse
from inference_node.rpc.tally import Totals

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Owner and digest."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the node, and what it has answered."""

    running: int
    waiting: int
    totals: Totals


@dataclass(frozen=True, slots=True)
class Look:
    """The node at one moment."""

    pool: PoolUse
    loaded: tuple[LoadedVersion, ...]
    load: Load


@dataclass(frozen=True, slots=True)
class Change:
    """From one look to the next."""

    pool: PoolUse
    load: Load
    changed: tuple[LoadedVersion, ...]
    gone: tuple[LoadedVersion, ...]


def difference(before: Look | None, now: Look) -> Change:
    """What `now` adds, changes and lacks; everything when there is no `before`."""
    old = _by_key(before.loaded) if before else {}
    new = _by_key(now.loaded)
    changed = [
        version
        for key, version in new.items()
        if key not in old or _lasting(old[key]) != _lasting(version)
    ]
    gone = [version for key, version in old.items() if key not in new]
    return Change(now.pool, now.load, tuple(changed), tuple(gone))


class PoolWatch:
    """Looks while somebody watches. Belongs to one event loop."""

    def __init__(
        self, look: Callable[[], Awaitable[Look]], *, period: float, heartbeat: float
    ) -> None:
        """Looks every `period` seconds; a watcher is told something every `heartbeat` at least."""
        self._look = look
        self._period = period
        self._heartbeat = heartbeat
        self._newest: Look | None = None
        self._news = asyncio.Condition()
        self._watchers = 0
        self._looking: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._ended: NodeError | None = None

    @property
    def watchers(self) -> int:
        return self._watchers

    async def changes(self) -> AsyncGenerator[Change]:
        """Everything first, then what changes. Raises NodeError when the node cannot be seen."""
        self._watchers += 1
        if self._looking is None:
            self._newest = self._error = None
            self._looking = asyncio.create_task(self._keep_looking())
        told: Look | None = None
        try:
            while True:
                told, change = await self._next(told)
                yield change
        finally:
            self._watchers -= 1
            if not self._watchers and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def end(self, error: NodeError) -> None:
        """Every watcher, now and later, is told `error`."""
        self._ended = error
        async with self._news:
            self._news.notify_all()

    async def _next(self, told: Look | None) -> tuple[Look, Change]:
        """The next look that is worth telling to whoever knows `told`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._heartbeat
        seen = told
        while True:
            async with self._news:
                await self._news.wait_for(partial(self._is_newer, seen))
            if problem := self._ended or self._error:
                raise problem
            seen = self._newest
            assert seen is not None
            change = difference(told, seen)
            quiet = told is not None and _standing(told) == _standing(seen)
            if not quiet or change.changed or change.gone or loop.time() >= until:
                return seen, change

    def _is_newer(self, seen: Look | None) -> bool:
        return self._newest is not seen or bool(self._ended or self._error)

    async def _keep_looking(self) -> None:
        while True:
            try:
                self._newest = await self._look()
            except Exception as error:
                if not isinstance(error, NodeError):
                    log.exception("the node could not be looked at")
                self._error = error
            async with self._news:
                self._news.notify_all()
            if self._error is not None:
                return
            await asyncio.sleep(self._period)


def _standing(look: Look) -> tuple[PoolUse, Load]:
    """What is worth telling when it changes; the age of news alone is not."""
    return replace(look.pool, stale_seconds=0.0), look.load


def _by_key(versions: tuple[LoadedVersion, ...]) -> dict[Key, LoadedVersion]:
    return {(v.served.tenant, v.served.digest): v for v in versions}


def _lasting(version: LoadedVersion) -> LoadedVersion:
    return replace(version, idle_seconds=0.0)
