"""T16's troublemakers: callers that ask for too much of everything, in a process of their own.

`python -m tests.chaos.troublemakers PORT NAMES SEED` answers on standard input (wire.py).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from benchmarks.cpu.wire import serve
from inference_node.client import Client, Output, Stopping
from inference_node.errors import NodeError, QueueFull, QuotaExceeded
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from tests.adapter_store.crowd import name

FLOOD = "flood"
"""The tenant that they all are."""
COLD_A_SECOND = 50
IDLE = 1000
SLOW = 32
LONG = Stopping(max_new_tokens=100, ignore_eos=True)
WORDY = Output(logprobs=True, top_logprobs=20)
"""More than fits between node and caller."""


class Troublemakers:
    """Each kind makes trouble on threads of its own until `stop`; answers are counted by kind."""

    def __init__(self, port: int, names: int, seed: int) -> None:
        self._port = port
        self._names = names
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._said: Counter[str] = Counter()
        self._client = Client(f"127.0.0.1:{port}")

    def start(self, kinds: list[str]) -> None:
        self._stop.clear()
        for kind in kinds:
            work: Callable[[], None] = getattr(self, f"_{kind}")
            self._threads.append(threading.Thread(target=work, daemon=True))
            self._threads[-1].start()

    def stop(self) -> dict[str, int]:
        """What the node said to whom, so often."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self._threads.clear()
        said, self._said = dict(self._said), Counter()
        return said

    def _cold(self) -> None:
        with ThreadPoolExecutor(16) as pool:
            while not self._stop.wait(1 / COLD_A_SECOND):
                pool.submit(self._ask, "cold", name(self._random.randrange(self._names)))

    def _ask(self, kind: str, adapter: str) -> None:
        try:
            self._client.generate(
                "hi", adapter=adapter, tenant=FLOOD, stopping=Stopping(max_new_tokens=1), timeout=5
            )
            self._said[f"{kind} answered"] += 1
        except NodeError as error:
            self._note(kind, error)

    def _note(self, kind: str, error: NodeError) -> None:
        self._said[f"{kind} {error.reason}"] += 1
        # By the class, since a full transport says the same status for other reasons.
        if isinstance(error, QuotaExceeded | QueueFull) and error.retry_after is None:
            self._said["refused without saying when to come back"] += 1

    def _oversize(self) -> None:
        turns = itertools.cycle((2**20, 400_000, 20_000))
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            while not self._stop.wait(0.1):
                request = pb.GenerateRequest(prompt="x" * next(turns), tenant=FLOOD)
                metadata = (("x-padding", "y" * 20_000),) if self._random.random() < 0.3 else ()
                try:
                    stub.Generate(request, timeout=5, metadata=metadata)
                except grpc.RpcError as error:
                    code = error.code() if isinstance(error, grpc.Call) else None
                    self._said[f"oversize {code.name if code else error}"] += 1
                else:
                    self._said["oversize answered"] += 1

    def _timeless(self) -> None:
        message = pb.StreamGenerateRequest(
            request=pb.GenerateRequest(
                prompt="hi", tenant=FLOOD, stopping=pb.Stopping(max_new_tokens=400, ignore_eos=True)
            )
        )
        while not self._stop.wait(0.2):
            with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
                call = inference_pb2_grpc.InferenceServiceStub(channel).StreamGenerate(message)
                with contextlib.suppress(grpc.RpcError, StopIteration):
                    next(call)
                    self._said["timeless begun"] += 1

    def _idle(self) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(IDLE):
                if self._stop.is_set():
                    return
                try:
                    one = socket.create_connection(("127.0.0.1", self._port), 5)
                except OSError:
                    self._said["idle refused"] += 1
                else:
                    stack.enter_context(contextlib.closing(one))
                    self._said["idle connected"] += 1
            self._stop.wait()

    def _slow(self) -> None:
        with contextlib.ExitStack() as stack:
            streams = []
            for _ in range(SLOW):
                stream = stack.enter_context(
                    self._client.stream("hi", tenant=FLOOD, stopping=LONG, output=WORDY, timeout=60)
                )
                try:
                    assert stream.served is not None
                    streams.append(stream)
                    self._said["slow begun"] += 1
                except NodeError as error:
                    self._note("slow", error)
            self._stop.wait()


def _start() -> tuple[Any, Mapping[str, Callable[..., Any]]]:
    troublemakers = Troublemakers(*map(int, sys.argv[1:4]))
    return {}, {"start": troublemakers.start, "stop": troublemakers.stop}


if __name__ == "__main__":
    serve(_start)
