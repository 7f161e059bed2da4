"""Store and Redis are out of reach for five seconds, each once a minute."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import count, cycle

from tests.chaos.soak.line import Cut, Line

CUT_S = 5.0
EVERY_S = 60.0
STORE_AT_S, REDIS_AT_S = 15.0, 35.0
"""In each minute."""
REMEMBERED_S = 15.0
"""How long after the store is back a node may leave it alone, at most."""


class Weather:
    """Two lines, cut by turns: some cuts reset every connection, some only swallow what is sent."""

    def __init__(self, store: Line, redis: Line) -> None:
        self._lines = {"S3": store, "Redis": redis}
        self._hows = {"S3": cycle((Cut.RESET, Cut.SILENT)), "Redis": cycle((Cut.SILENT, Cut.RESET))}
        self._store_back = float("-inf")
        self.now = ""
        """What is cut, and how."""
        self.faults: Counter[str] = Counter()

    def store_troubled(self, since: float) -> bool:
        """Whether a node may still have been without the store at some time since."""
        return since < self._store_back + REMEMBERED_S

    def has_cleared(self) -> bool:
        """Whether the store was away, and that is over."""
        return bool(self.faults) and not self.store_troubled(time.monotonic())

    async def run(self) -> None:
        """For ever; cancelled in the middle of a cut it mends it first."""
        began = time.monotonic()
        for minute in count():
            for name, at in (("S3", STORE_AT_S), ("Redis", REDIS_AT_S)):
                due = began + minute * EVERY_S + at
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self._cut(name)

    async def _cut(self, name: str) -> None:
        line, how = self._lines[name], next(self._hows[name])
        self.now = f"{name} {how.value}"
        self.faults[f"{name} cut, {how.value}"] += 1
        if name == "S3":
            self._store_back = float("inf")
        line.cut(how)
        try:
            await asyncio.sleep(CUT_S)
        finally:
            line.mend()
            self.now = ""
            if name == "S3":
                self._store_back = time.monotonic()
