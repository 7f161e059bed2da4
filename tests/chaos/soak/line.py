"""The way to a service over TCP, which can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from enum import Enum

from tests.chaos.loopback import STARTED_S, LoopbackServer, reset

_PIECE = 65536


class Cut(Enum):
    RESET = "reset"
    """Connections are reset, and new ones too."""
    SILENT = "silent"
    """Nothing comes through, either way; what was sent arrives once it is over."""


class Line(LoopbackServer):
    """Passes bytes on as they come, unless it is cut."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"line to {port}")
        self._upstream = (host, port)
        self._cut: Cut | None = None
        self._passing = asyncio.Event()
        self._passing.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self, how: Cut) -> None:
        """Returns once it is."""
        self._call(how)

    def mend(self) -> None:
        self._call(None)

    def _call(self, how: Cut | None) -> None:
        done = threading.Event()

        def change() -> None:
            self._cut = how
            if how is Cut.SILENT:
                self._passing.clear()
            else:
                self._passing.set()
            if how is Cut.RESET:
                for writer in self._writers:
                    reset(writer)
            done.set()

        self.loop.call_soon_threadsafe(change)
        assert done.wait(STARTED_S)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        if self._cut is Cut.RESET:
            reset(writer)
            return
        there, back = await asyncio.open_connection(*self._upstream)
        ends = {writer, back}
        self._writers |= ends
        try:
            ways = [self._pass(reader, back), self._pass(there, writer)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        finally:
            self._writers -= ends
            back.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
