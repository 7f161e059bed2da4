"""An engine that follows a script: the wire's tests need no model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from inference_node.errors import Cancelled, Draining, NodeError
from inference_node.request import (
    Candidate,
    Completed,
    Delta,
    Echo,
    Failed,
    FinishReason,
    ModelInfo,
    OnEvent,
    PoolStatus,
    Request,
    Served,
    Started,
    Timings,
    TokenScore,
    Usage,
)
from inference_node.text import ChatMessage

DIGEST = "ab" * 32
Script = Callable[[Request, OnEvent, threading.Event], None]
"""Runs on a thread of its own with the request, where events go, and its cancellation."""


class ByteEncoder:
    """One token per byte."""

    vocab_size = 300

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def written(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        return self.encode("".join(f"<{m.role}>{m.content}" for m in messages))


def served(request: Request) -> Served:
    if not request.adapter:
        return Served(request.tenant, "", "", 0, "")
    return Served(request.tenant, request.adapter.partition("@")[0], "v3", 7, DIGEST)


def completed(request: Request, tokens: int) -> Completed:
    return Completed(
        served=served(request),
        finish_reason=FinishReason.STOP,
        stop_sequence="",
        usage=Usage(len(request.prompt), tokens),
        timings=Timings(0.1, 0.05, 0.2, 0.3),
        seed=request.sampling.seed or 42,
    )


def scored(request: Request, *token_ids: int) -> list[TokenScore]:
    """Made-up scores, where they are asked for."""
    top = tuple(Candidate(65 + n, -0.5 - n) for n in range(request.output.top_logprobs))
    return [TokenScore(token, -1.5, 2, top) for token in token_ids if request.output.logprobs]


def says(*pieces: str) -> Script:
    """Answer with these pieces, one token each."""

    def script(request: Request, emit: OnEvent, cancelled: threading.Event) -> None:
        emit(Started(served(request)))
        if request.output.echo:
            emit(Echo(request.prompt, tuple(scored(request, *request.prompt))))
        for index, piece in enumerate(pieces):
            emit(Delta(piece, (index % 256,), tuple(scored(request, index % 256))))
        emit(completed(request, len(pieces)))

    return script


def fails(error: NodeError) -> Script:
    """Start, then fail."""

    def script(request: Request, emit: OnEvent, cancelled: threading.Event) -> None:
        emit(Started(served(request)))
        emit(Failed(error, served(request)))

    return script


def hangs(request: Request, emit: OnEvent, cancelled: threading.Event) -> None:
    """Say one word, then go on until cancelled."""
    emit(Started(served(request)))
    emit(Delta("one ", (1,)))
    cancelled.wait(30)
    emit(Failed(Cancelled("cancelled"), served(request)))


def follows(*, words: Sequence[str], gate: threading.Event) -> Script:
    """Say the first word at once and the rest when `gate` opens."""

    def script(request: Request, emit: OnEvent, cancelled: threading.Event) -> None:
        emit(Started(served(request)))
        emit(Delta(words[0], (0,)))
        gate.wait(30)
        for index, word in enumerate(words[1:], start=1):
            emit(Delta(word, (index,)))
        emit(completed(request, len(words)))

    return script


class ScriptedEngine:
    """Implements `inference_node.rpc.engine_port.Engine`."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or says("hello ", "wörld")
        self.tokenizer = ByteEncoder()
        self.refuses: Exception | None = None
        """Raised by the next submits."""
        self.alive = True
        self.stopped = False
        self.submitted: list[Request] = []
        self.cancelled: list[str] = []
        self.all_threads: list[threading.Thread] = []
        self._draining = False
        self._cancellations: dict[str, threading.Event] = {}

    def submit(self, request: Request, on_event: OnEvent) -> None:
        if self._draining:
            raise Draining("the node is stopping")
        if self.refuses is not None:
            raise self.refuses
        self.submitted.append(request)
        cancelled = self._cancellations[request.request_id] = threading.Event()
        thread = threading.Thread(
            target=self.script, args=(request, on_event, cancelled), daemon=True
        )
        self.all_threads.append(thread)
        thread.start()

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        if request_id in self._cancellations:
            self._cancellations[request_id].set()

    def info(self) -> ModelInfo:
        return ModelInfo(
            name="scripted",
            architecture="Script",
            base_fingerprint=DIGEST,
            device="cpu",
            kernel="nf4",
            base_bytes=100,
            base_bytes_bf16=400,
            max_context=256,
            max_rank=64,
            groups=("q_proj", "v_proj"),
            pool=PoolStatus(8, 7, 1024, 1, 0),
            running=1,
            waiting=2,
        )

    def healthy(self) -> bool:
        return self.alive

    def drain(self, timeout: float) -> bool:
        self._draining = True
        for thread in self.all_threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self.all_threads)

    def stop(self) -> None:
        self.stopped = True
        for cancelled in self._cancellations.values():
            cancelled.set()
