"""A measured server in a process of its own: `python -m benchmarks.edge.server SIDE`.

bare      grpc.aio with the generated servicer: the headers and answers that the node gives, made
          before anybody asked
headless  the same without the headers
open      the node's own server over the instant engine, as it listens on loopback
guarded   the same with bearer tokens and quotas in force
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from benchmarks.cpu.wire import serve
from benchmarks.edge.instant import DIGEST, WORD, InstantEngine
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from inference_node.request import Served
from inference_node.rpc import answers
from inference_node.rpc.auth import AuthConfig
from inference_node.rpc.limits import ServerConfig, channel_options
from inference_node.rpc.server import NodeServer
from tests.inference_node.rpc.issuer import Issuer

CORE = 0
"""Of those this process may use: the servers' own, the caller has the others."""
QUOTAS = "[default]\nrequests_per_second = 1e9\ntokens_per_second = 1e12\nconcurrent = 1e6\n"
SERVED = pb.Served(tenant="default", adapter="ada", version="v1", generation=1, digest=DIGEST)
HEADERS = answers.served_metadata(Served("default", "ada", "v1", 1, DIGEST))
COMPLETED = pb.Completed(
    finish_reason=pb.FINISH_REASON_LENGTH, usage=pb.Usage(prompt_tokens=2), served=SERVED, seed=1
)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens."""

    port: int
    hold: Callable[[], object]
    go_on: Callable[[], object]
    server: object
    """Kept: one that nobody refers to is stopped."""
    token: str = ""


class Bare(inference_pb2_grpc.InferenceServiceServicer):
    """Says what it is asked for and looks at nothing else."""

    def __init__(self, headers: tuple[tuple[str, str], ...]) -> None:
        self._headers = headers
        self.going_on = asyncio.Event()
        self.going_on.set()
        self._answer = pb.GenerateResponse(
            text=WORD, token_ids=[7], finish_reason=pb.FINISH_REASON_LENGTH, served=SERVED, seed=1
        )
        self._started = pb.StreamGenerateResponse(started=pb.Started(served=SERVED))
        self._delta = pb.StreamGenerateResponse(delta=pb.Delta(text=WORD, token_ids=[7]))
        self._completed = pb.StreamGenerateResponse(completed=COMPLETED)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        if self._headers:
            await context.send_initial_metadata(self._headers)
        return self._answer

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        if self._headers:
            await context.send_initial_metadata(self._headers)
        yield self._started
        yield self._delta
        await self.going_on.wait()
        for _ in range(request.request.stopping.max_new_tokens - 1):
            yield self._delta
        yield self._completed


async def bare(headers: tuple[tuple[str, str], ...] = HEADERS) -> Running:
    servicer = Bare(headers)
    server = grpc.aio.server(options=channel_options())
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop = asyncio.get_running_loop()
    return Running(
        port,
        lambda: loop.call_soon_threadsafe(servicer.going_on.clear),
        lambda: loop.call_soon_threadsafe(servicer.going_on.set),
        server,
    )


async def unguarded(config: ServerConfig | None = None, token: str = "") -> Running:
    engine = InstantEngine()
    node = NodeServer(engine, config or ServerConfig(listen="127.0.0.1:0"))
    await node.start()
    return Running(node.port, engine.hold, engine.go_on, node, token)


async def guarded() -> Running:
    folder = Path(tempfile.mkdtemp(prefix="lorapool-edge-"))
    issuer = Issuer(folder / "jwks.json")
    quotas = folder / "quotas.toml"
    quotas.write_text(QUOTAS)
    config = replace(
        ServerConfig(listen="127.0.0.1:0"), auth=AuthConfig(tokens=issuer.rules), quotas=quotas
    )
    scope = {"tenants": ["default"], "adapters": ["*"], "roles": ["generate"]}
    token = issuer.token(lorapool=scope, exp=int(time.time()) + 890)
    return await unguarded(config, token)


SIDES: Mapping[str, Callable[[], Coroutine[Any, Any, Running]]] = {
    "bare": bare,
    "headless": partial(bare, ()),
    "open": unguarded,
    "guarded": guarded,
}


def _start() -> tuple[Any, Mapping[str, Callable[..., Any]]]:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[CORE]})
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    running = asyncio.run_coroutine_threadsafe(SIDES[sys.argv[1]](), loop).result(30)

    operations = {"hold": lambda: _done(running.hold), "go_on": lambda: _done(running.go_on)}
    return {"port": running.port, "token": running.token}, operations


def _done(act: Callable[[], object]) -> None:
    act()


if __name__ == "__main__":
    serve(_start)
