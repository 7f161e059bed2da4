"""One node under load: from its first request until nothing is left of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from inference_node.client import AsyncClient, AsyncOperator, Tier
from tests.chaos.resources import Resources, leaked, resources_of
from tests.chaos.soak.callers import Callers, is_idle
from tests.chaos.soak.judge import Judge
from tests.chaos.soak.publishing import Publishing
from tests.chaos.soak.site import SoakNode
from tests.chaos.soak.weather import Weather

WARM_SHARE = 0.1
"""Of all answers: after so many, and a first time without its store, it holds what it will hold:
so many are then answered at once as never else.
"""
TELL_S = 5.0
IDLE_S, CONTROL_IDLE_S = 15.0, 4.0
"""How long a node whose callers have gone may take to have nothing left of them."""
NOTICE_S = 60.0
ROUND = 60
"""Answers after which a control's node is left alone for a moment, to see what it holds."""


class Session:
    """Drives one node; what it finds is in its judge."""

    def __init__(
        self,
        node: SoakNode,
        publishing: Publishing,
        judge: Judge,
        *,
        seed: int,
        weather: Weather | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.node = node
        self._publishing = publishing
        self._judge = judge
        self._seed = seed
        self._weather = weather
        self._tell = tell
        self._warm: Resources | None = None
        self.figures: dict[str, float] = {}

    async def soak(self, wanted: int, rate: float) -> None:
        """So many answers, at least; ends early when one is wrong."""
        assert self._weather is not None
        judge = self._judge
        async with AsyncClient(self.node.process.address) as client:
            callers = self._callers(client)
            newest = {name: known.gen for name, known in self._publishing.newest.items()}
            await callers.ask_each(newest)
            beside = [
                asyncio.create_task(self._weather.run()),
                asyncio.create_task(self._report(wanted)),
            ]
            try:
                await callers.run(rate, lambda: self._is_warm(wanted))
                await self._settle(client)
                self._warm = resources_of(self.node.pid)
                await callers.run(rate, lambda: self._is_over(wanted))
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
            self._tell(self._progress(wanted))
            judge.hold(all(task.cancelled() for task in beside), "weather or report broke down")

    async def end(self, heads: Mapping[str, int]) -> None:
        """Everybody gets the newest version; then nothing is left of anybody."""
        assert self._warm is not None
        async with AsyncClient(self.node.process.address) as client:
            await self._callers(client).ask_each(heads)
            await self._settle(client)
            after = resources_of(self.node.pid)
        for text in leaked(self._warm, after):
            self._judge.hold(False, text)
        await self._free_pages()
        for when, found in (("warm", self._warm), ("at the end", after)):
            self.figures |= {
                f"MiB resident, {when}": round(found.resident_mib, 1),
                f"files, {when}": found.files,
                f"threads, {when}": found.threads,
            }

    async def seconds_to_notice(self, rate: float) -> float | None:
        """How long it takes until something is wrong; None when nothing is within a minute."""
        began, judge = time.monotonic(), self._judge
        async with AsyncClient(self.node.process.address) as client:
            callers = self._callers(client)
            while not judge.broken and time.monotonic() < began + NOTICE_S:
                goal = judge.answers + ROUND
                await callers.run(rate, lambda goal=goal: self._is_over(goal))  # type: ignore[misc]
                if not judge.broken:
                    await self._settle(client, CONTROL_IDLE_S)
        return round(time.monotonic() - began, 1) if judge.broken else None

    def _callers(self, client: AsyncClient) -> Callers:
        troubled = self._weather.store_troubled if self._weather else lambda since: False
        return Callers(
            client, self._publishing, self._judge, seed=self._seed, store_troubled=troubled
        )

    def _is_warm(self, wanted: int) -> bool:
        assert self._weather is not None
        enough = self._judge.answers >= wanted * WARM_SHARE and self._weather.has_cleared()
        return enough or self._is_over(wanted)

    def _is_over(self, goal: int) -> bool:
        return self._judge.answers >= goal or self._judge.broken > 0

    async def _settle(self, client: AsyncClient, within_s: float = IDLE_S) -> None:
        """Nobody asks any more, so nothing is held."""
        idle = await _becomes(lambda: is_idle(client), within_s)
        self._judge.hold(idle, f"requests or leases are left after {within_s:.0f} s")

    async def _free_pages(self) -> None:
        """Take every version off the device: all pages are free, as before the first."""
        async with AsyncOperator(self.node.admin) as operator:
            loaded = [one async for one in operator.loaded() if one.tier is Tier.DEVICE]
            for one in loaded:
                await operator.unload(f"{one.served.adapter}@sha256:{one.served.digest}")

            async def all_free() -> bool:
                groups = (await operator.pool()).groups
                return all(group.free == group.total for group in groups)

            free = await _becomes(all_free, IDLE_S)
            groups = (await operator.pool()).groups
        self.figures |= {
            "versions unloaded at the end": len(loaded),
            "pages": sum(group.total for group in groups),
            "pages free at the end": sum(group.free for group in groups),
        }
        self._judge.hold(free, f"pages are not free: {groups}")

    async def _report(self, wanted: int) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            self._tell(self._progress(wanted))

    def _progress(self, wanted: int) -> str:
        judge, tally = self._judge, self._publishing.tally
        weather = self._weather.now if self._weather else ""
        held = resources_of(self.node.pid)
        return (
            f"{judge.answers:6,} of {wanted:,} answers, {judge.wrong} wrong;"
            f" {judge.tally['swaps seen']} swaps seen, {tally['published']} published,"
            f" {tally['rolled back']} rolled back;"
            f" {judge.tally['cancelled']} cancelled, {judge.tally['StoreDown']} without a store;"
            f" {held.resident_mib:.0f} MiB, {held.files} files, {held.threads} threads"
            + (f"; cut: {weather}" if weather else "")
        )


async def _becomes(condition: Callable[[], Awaitable[bool]], within_s: float) -> bool:
    """Whether it is so in time."""
    deadline = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True
