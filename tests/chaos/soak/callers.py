"""Callers of every kind: they stay, leave, have little time, pin a version, ask for the newest."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping

from inference_node.client import AsyncClient, AsyncStream, NodeUnreachable, Stopping
from inference_node.errors import NodeError
from tests.chaos.soak.judge import Asked, Judge
from tests.chaos.soak.publishing import HOT, Publishing
from tests.chaos.soak.stock import ADAPTERS, name_of

IN_FLIGHT = 800
"""Many wait for what is not on the node while the store is away; the others are answered."""
PATIENCE_S = 60.0
_PROMPTS = tuple(
    tuple(range(100 * text, 100 * text + length))
    for text in (1, 2)
    for length in (1, 5, 17, 40, 90)
)
"""Few, so that their beginnings are in the cache."""
_LENGTHS = (4, 4, 8, 8, 8, 8, 12, 12, 16, 16, 32, 96)
"""The longest outlast a publish."""
_BASE_SHARE, _HOT_SHARE = 0.03, 0.5
_LABEL_SHARE, _DIGEST_SHARE, _NEWEST_SHARE = 0.05, 0.05, 0.08
_LEAVE_SHARE, _HASTE_SHARE = 0.05, 0.03


class Callers:
    """Asks one node, at most so many requests a second, and has every answer judged."""

    def __init__(
        self,
        client: AsyncClient,
        publishing: Publishing,
        judge: Judge,
        *,
        seed: int,
        store_troubled: Callable[[float], bool] = lambda since: False,
    ) -> None:
        """`store_troubled` says whether the store was away at some time since a moment."""
        self._client = client
        self._publishing = publishing
        self._judge = judge
        self._random = random.Random(seed)
        self._store_troubled = store_troubled
        self._open: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(IN_FLIGHT)

    async def run(self, rate: float, until: Callable[[], bool]) -> None:
        """Ask until it is so, and wait for what is under way."""
        due = time.monotonic()
        while not until():
            await self._begin(self._draw())
            due = max(due + 1 / rate, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await self._finish()

    async def ask_each(self, generations: Mapping[str, int]) -> None:
        """Adapters by name, each once, and by no generation that is older."""
        for name, gen in generations.items():
            await self._begin(
                Asked(
                    name,
                    name,
                    _PROMPTS[1],
                    tokens=4,
                    at=time.monotonic(),
                    floor=self._judge.floors[name],
                    min_generation=gen,
                )
            )
        await self._finish()

    async def _begin(self, asked: Asked) -> None:
        await self._places.acquire()
        task = asyncio.create_task(self._ask(asked))
        self._open.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._places.release()
        error = task.exception()
        if error is not None:
            self._judge.hold(False, f"a caller ends with {error!r}")

    async def _finish(self) -> None:
        if self._open:
            await asyncio.wait(set(self._open))

    def _draw(self) -> Asked:
        """Any request."""
        draw = self._random
        prompt = draw.choice(_PROMPTS)
        tokens = draw.choice(_LENGTHS)
        leave_after = draw.randint(0, tokens - 1) if draw.random() < _LEAVE_SHARE else None
        timeout = draw.uniform(0.02, 0.5) if draw.random() < _HASTE_SHARE else None
        name = name_of(draw.randrange(HOT if draw.random() < _HOT_SHARE else ADAPTERS))
        ref, vdig, least = name, "", 0
        kind = draw.random()
        pinned = draw.choice(self._publishing.labels[name])
        if kind < _BASE_SHARE:
            name = ref = ""
        elif kind < _BASE_SHARE + _LABEL_SHARE:
            ref, vdig = f"{name}@{pinned.label}", pinned.vdig
        elif kind < _BASE_SHARE + _LABEL_SHARE + _DIGEST_SHARE:
            ref, vdig = f"{name}@sha256:{pinned.vdig}", pinned.vdig
        elif kind < _BASE_SHARE + _LABEL_SHARE + _DIGEST_SHARE + _NEWEST_SHARE:
            least = self._publishing.newest[name].gen
        return Asked(
            name,
            ref,
            prompt,
            tokens,
            time.monotonic(),
            floor=self._judge.floors[name],
            min_generation=least,
            vdig=vdig,
            leave_after=leave_after,
            timeout=timeout,
        )

    async def _ask(self, asked: Asked) -> None:
        stream = self._client.stream(
            asked.prompt,
            adapter=asked.ref,
            stopping=Stopping(max_new_tokens=asked.tokens, ignore_eos=True),
            min_generation=asked.min_generation,
            timeout=asked.timeout or PATIENCE_S,
        )
        try:
            self._judge.started(asked, await stream.started())
            if asked.leave_after is not None:
                await self._leave(asked, stream)
                return
            answer = await stream.finish()
        except NodeError as error:
            troubled = self._store_troubled(asked.at)
            self._judge.failed(asked, error, store_troubled=troubled)
        else:
            same = answer.served == stream.served
            self._judge.hold(same, f"{asked} began as {stream.served}, ended as {answer.served}")
            self._judge.answered(asked, answer.served, answer.token_ids)

    async def _leave(self, asked: Asked, stream: AsyncStream) -> None:
        received = stream._assembly._token_ids
        async for _ in stream:
            if len(received) >= (asked.leave_after or 0):
                break
        stream.cancel()
        self._judge.left(asked, stream.served, received)


async def is_idle(client: AsyncClient) -> bool:
    """Whether nobody is answered, waits or holds an adapter."""
    try:
        info = await client.model_info()
    except NodeUnreachable:
        return False
    return (info.running, info.waiting, info.pool.leases) == (0, 0, 0)
