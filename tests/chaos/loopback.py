"""A server on loopback that stands between a client and a real service, on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from abc import ABC, abstractmethod
from typing import Self

STARTED_S = 10.0


class LoopbackServer(ABC):
    """Serves each connection by a task; `with` starts and stops it."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self._open: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection; OSError and IncompleteReadError end it."""

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(STARTED_S), f"{self._thread.name} does not start"

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self.loop.run_forever()
        server.close()
        for task in self._open:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*self._open, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self.serve(reader, writer)
        except asyncio.CancelledError:
            return
        finally:
            self._open.discard(task)
            writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye: the other side sees a reset."""
    plug = writer.get_extra_info("socket")
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
