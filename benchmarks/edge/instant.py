"""An engine that has every token ready: what is measured then is the edge alone."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from inference_node.request import (
    Completed,
    Delta,
    FinishReason,
    ModelInfo,
    OnEvent,
    PoolStatus,
    Request,
    Served,
    Started,
    Timings,
    Usage,
)
from inference_node.text import ChatMessage

WORD = " word"
ARRIVAL = 0.001
"""A fraction of a real step."""
DIGEST = "ab" * 32


class Letters:
    """One token for each byte."""

    vocab_size = 50_000

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def written(self, token_ids: Sequence[int]) -> str:
        return WORD * len(token_ids)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        return self.encode("".join(message.content for message in messages))


@dataclass(slots=True)
class _Row:
    request: Request
    emit: OnEvent
    served: Served
    left: int


class InstantEngine:
    """Implements `inference_node.rpc.engine_port.Engine`, on a thread of its own like the real one.

    A step gives one token to every request, and the next one begins when the loop of the calls has
    been round once: as if the model took no time, and the caller as little as it needs. Who comes
    while nothing runs waits ARRIVAL seconds for others, as they would for the end of a real step.
    While it is held, requests that have had their first token get no more.
    """

    def __init__(self) -> None:
        self.tokenizer = Letters()
        self._arrived: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._round = threading.Event()
        self._going_on = threading.Event()
        self._going_on.set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def hold(self) -> None:
        self._going_on.clear()

    def go_on(self) -> None:
        self._going_on.set()

    def submit(self, request: Request, on_event: OnEvent) -> None:
        self._loop = asyncio.get_running_loop()
        name = request.adapter.partition("@")[0]
        served = Served(request.tenant, name, "v1", 1, DIGEST)
        self._arrived.put(_Row(request, on_event, served, request.stopping.max_new_tokens))

    def cancel(self, request_id: str) -> None:
        self._cancelled.add(request_id)

    def info(self) -> ModelInfo:
        pool = PoolStatus(pages_total=0, pages_free=0, page_bytes=0, resident=0, leases=0)
        return ModelInfo(
            name="instant",
            architecture="none",
            base_fingerprint=DIGEST,
            device="none",
            kernel="none",
            base_bytes=0,
            base_bytes_bf16=0,
            max_context=4096,
            max_rank=64,
            groups=(),
            pool=pool,
            running=0,
            waiting=0,
        )

    def healthy(self) -> bool:
        return self._thread.is_alive()

    def drain(self, timeout: float) -> bool:
        self._going_on.set()
        self._arrived.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def stop(self) -> None:
        self._going_on.set()
        self._arrived.put(None)

    def _run(self) -> None:
        rows: list[_Row] = []
        while True:
            arrived = self._take(block=not rows or not self._going_on.is_set())
            if None in arrived:
                return
            for row in filter(None, arrived):
                row.emit(Started(row.served))
                self._step(row)
                rows.append(row)
            if self._going_on.is_set():
                for row in rows:
                    self._step(row)
            rows = [row for row in rows if row.left and not self._is_cancelled(row)]
            if rows:
                self._wait_for_the_loop()

    def _take(self, *, block: bool) -> list[_Row | None]:
        found: list[_Row | None] = []
        try:
            if block:
                found.append(self._arrived.get(timeout=0.02))
                time.sleep(ARRIVAL)
            while True:
                found.append(self._arrived.get_nowait())
        except queue.Empty:
            return found

    def _step(self, row: _Row) -> None:
        if not row.left:
            return
        row.left -= 1
        row.emit(Delta(WORD, (7,)))
        if not row.left:
            new, prompt = row.request.stopping.max_new_tokens, len(row.request.prompt)
            row.emit(
                Completed(
                    row.served,
                    FinishReason.LENGTH,
                    "",
                    Usage(prompt, new),
                    Timings(0.0, 0.0, 0.0, 0.0),
                    1,
                )
            )

    def _is_cancelled(self, row: _Row) -> bool:
        return row.request.request_id in self._cancelled

    def _wait_for_the_loop(self) -> None:
        assert self._loop is not None
        self._round.clear()
        self._loop.call_soon_threadsafe(self._round.set)
        self._round.wait(1.0)
