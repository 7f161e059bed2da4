"""The page and its calls over HTTP, on a thread of their own, for whoever sits at this machine.

A browser here runs pages of others too. None of them gets a call through: the Host must be this
address, so that no other name leads here; the Origin must be ours; and the body must say that it
is JSON, which other origins may not send without asking first.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator, Coroutine
from importlib import resources
from typing import Any, Self

import grpc
from aiohttp import web
from aiohttp.typedefs import Handler
from google.protobuf.message import Message

from inference_node.addresses import AFFINITY_HEADER, parse_address
from inference_node.errors import BadConfiguration, InvalidRequest
from inference_node.playground import relay

MAX_BODY = 2 * 2**20
START_SECONDS = 10.0
_HERE = ("127.0.0.1", "localhost", "[::1]")


class Playground:
    """`with Playground(listen, node=address):` serves it for the block."""

    def __init__(self, listen: str, *, node: str) -> None:
        """`node` is where calls go, in the clear. Nobody is asked who he is: listen on loopback.

        Entering raises BadConfiguration when the address cannot be had.
        """
        self._listen = parse_address(listen, "playground")
        self._node = node
        self._methods = relay.methods()
        self._page = resources.files("inference_node.playground").joinpath("page.html").read_text()
        self._policy = _policy(self._page)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="playground")
        self._life = contextlib.AsyncExitStack()
        self._channel: grpc.aio.Channel | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._on_loop(self._open())
        except OSError as error:
            self._end()
            raise BadConfiguration(
                f"cannot listen on {self._listen}: {error.strerror}",
                hint="set LORAPOOL_PLAYGROUND_LISTEN",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def url(self) -> str:
        return f"http://{self._listen}/"

    async def _open(self) -> None:
        self._channel = await self._life.enter_async_context(grpc.aio.insecure_channel(self._node))
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.router.add_get("/", self._show)
        app.router.add_post("/{service}/{method}", self._relay)
        # A page that is closed cancels its handler at once, not at the next thing it would write.
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True
        )
        await runner.setup()
        self._life.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, self._listen.host, self._listen.port)
        await site.start()

    def _end(self) -> None:
        self._on_loop(self._life.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.host not in {f"{name}:{self._listen.port}" for name in _HERE}:
            raise web.HTTPMisdirectedRequest(text="this is not the address of the playground\n")
        if request.headers.get("origin", f"http://{request.host}") != f"http://{request.host}":
            raise web.HTTPForbidden(text="pages of other addresses may not call\n")
        return await handler(request)

    async def _show(self, request: web.Request) -> web.Response:
        headers = {
            "content-security-policy": self._policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-store",
        }
        return web.Response(text=self._page, content_type="text/html", headers=headers)

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        assert self._channel is not None
        method = self._methods.get(request.path)
        if method is None:
            raise web.HTTPNotFound(text="there is no such method\n")
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send application/json\n")
        try:
            message = relay.parse(method, await request.text())
        except InvalidRequest as error:
            return _refused(relay.refused_input(error))
        adapter = request.headers.get(AFFINITY_HEADER, "")
        answers = relay.call(self._channel, method, message, adapter)
        async with contextlib.aclosing(answers):
            return await _answer(request, answers)


async def _answer(request: web.Request, answers: AsyncIterator[Message]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    # Who has closed the page is told nothing more, and the call ends.
    with contextlib.suppress(ConnectionResetError):
        try:
            async for answer in answers:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(f"{relay.written(answer)}\n".encode())
        except grpc.aio.AioRpcError as error:
            refusal = relay.refusal(error)
            if not response.prepared:
                return _refused(refusal)
            # The status line is gone; a line that no answer has says it.
            await response.write(f"{json.dumps({'error': refusal.status})}\n".encode())
        await response.write_eof()
    return response


def _refused(refusal: relay.Refusal) -> web.Response:
    return web.json_response(refusal.status, status=refusal.http)


def _policy(page: str) -> str:
    """Only the script and the style of this very page, and only calls to where it came from."""
    hashes = {
        kind: base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        for kind in ("script", "style")
        if (found := re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL))
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
