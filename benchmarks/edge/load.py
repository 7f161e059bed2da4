"""The load: calls and streams from one process, as many at once as one likes, bytes in and out.

Nothing is decoded, so that the caller costs less than the server it measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc

from inference_node.pb.lorapool.v1 import inference_pb2 as pb

UNARY = "/lorapool.v1.InferenceService/Generate"
STREAM = "/lorapool.v1.InferenceService/StreamGenerate"
CONNECTIONS = 4
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """What came back in how long, and how long each call took, in seconds."""

    messages: int
    seconds: float
    latencies: Sequence[float]

    @property
    def rate(self) -> float:
        return self.messages / self.seconds


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and as whom to call it."""

    port: int
    token: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    @contextlib.asynccontextmanager
    async def channels(self, count: int = CONNECTIONS) -> AsyncIterator[list[grpc.aio.Channel]]:
        """Connections of their own: equal channels would share one."""
        async with contextlib.AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(
                        f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
                    )
                )
                for _ in range(count)
            ]


def asked(tokens: int) -> pb.GenerateRequest:
    stopping = pb.Stopping(max_new_tokens=tokens, ignore_eos=True)
    return pb.GenerateRequest(prompt="hi", adapter="ada", stopping=stopping)


async def unary(target: Target, *, at_once: int, seconds: float) -> Served:
    """Calls of one token each, one after the other in each of `at_once` lines."""
    message = asked(1).SerializeToString()

    async def call(channel: grpc.aio.Channel) -> int:
        method = channel.unary_unary(UNARY)
        await method(message, metadata=target.metadata, timeout=PATIENCE)
        return 1

    return await _keep_asking(target, call, at_once=at_once, seconds=seconds)


async def streamed(target: Target, *, at_once: int, tokens: int, seconds: float) -> Served:
    """Streams of so many tokens; every message counts."""
    message = pb.StreamGenerateRequest(request=asked(tokens)).SerializeToString()

    async def call(channel: grpc.aio.Channel) -> int:
        stream = channel.unary_stream(STREAM)(message, metadata=target.metadata, timeout=PATIENCE)
        count = 0
        while await stream.read() is not grpc.aio.EOF:
            count += 1
        return count

    return await _keep_asking(target, call, at_once=at_once, seconds=seconds)


async def opened(
    target: Target, count: int, go_on: Callable[[], None], tokens: int
) -> tuple[float, int]:
    """Seconds until `count` streams have had their first token, all open; how many then ended well.

    `go_on` lets the server finish them.
    """
    message = pb.StreamGenerateRequest(request=asked(tokens)).SerializeToString()
    async with target.channels() as channels:
        began = time.perf_counter()
        streams = [
            channels[number % len(channels)].unary_stream(STREAM)(
                message, metadata=target.metadata, timeout=PATIENCE
            )
            for number in range(count)
        ]
        for stream in streams:
            await stream.read()
            await stream.read()
        taken = time.perf_counter() - began
        assert not any(stream.done() for stream in streams)
        go_on()

        async def finished(stream: grpc.aio.UnaryStreamCall[bytes, bytes]) -> bool:
            while await stream.read() is not grpc.aio.EOF:
                pass
            return await stream.code() is grpc.StatusCode.OK

        ended = await asyncio.gather(*map(finished, streams))
    return taken, sum(ended)


async def _keep_asking(
    target: Target,
    call: Callable[[grpc.aio.Channel], Awaitable[int]],
    *,
    at_once: int,
    seconds: float,
) -> Served:
    async with target.channels() as channels:
        for channel in channels:
            await call(channel)
        latencies: list[float] = []
        began = time.perf_counter()
        until = began + seconds
        done = 0

        async def line(channel: grpc.aio.Channel) -> None:
            nonlocal done
            while (now := time.perf_counter()) < until:
                messages = await call(channel)
                done += messages
                latencies.append(time.perf_counter() - now)

        await asyncio.gather(*(line(channels[n % len(channels)]) for n in range(at_once)))
        return Served(done, time.perf_counter() - began, latencies)
