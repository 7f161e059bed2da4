"""A network and a store that misbehave on order: an HTTP proxy on loopback, one fault a request.

A `Plan` looks at each request and names a fault or none. Requests and answers pass through byte
for byte otherwise. STRIP plays the store that ignores `If-None-Match`: the header is signed, so
the proxy signs the request again, with the credentials it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from adapter_store.settings import Endpoints
from tests.chaos.loopback import STARTED_S, LoopbackServer, reset

_DELAY_S = 0.03
_REFUSALS = {
    "answered 503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "answered 500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "answered 409": b"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n",
}


class Fault(Enum):
    DELAY = "delayed"
    LOSE_REQUEST = "request lost"
    LOSE_ANSWER = "answer lost"
    CUT_OFF = "request lost in an outage"
    UNAVAILABLE = "answered 503"
    STRIP = "condition stripped"
    SWALLOW = "swallowed, arrives later"
    ERROR = "answered 500"
    CONFLICT = "answered 409"
    RESET = "connection reset"
    SHORT_BODY = "answer cut short"
    FLIPPED_BYTE = "one byte flipped"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, whole."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def without(self, *names: str) -> HttpRequest:
        kept = tuple((key, value) for key, value in self.headers if key.lower() not in names)
        return replace(self, headers=kept)

    def encode(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        lines += [f"{key}: {value}" for key, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body

    @property
    def is_commit(self) -> bool:
        return self.method == "PUT" and "/log/" in self.target


Plan = Callable[[HttpRequest], Fault | None]


class Proxy(LoopbackServer):
    """Stands before the S3 of `endpoints`; counts the faults it did, by kind."""

    def __init__(self, endpoints: Endpoints, plan: Plan) -> None:
        super().__init__("proxy")
        self._upstream = urlsplit(endpoints.s3_endpoint)
        self._credentials = Credentials(endpoints.s3_access_key, endpoints.s3_secret_key)
        self._region = endpoints.s3_region
        self._plan = plan
        self._swallowed: list[HttpRequest] = []
        self.faults: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deliver(self) -> int:
        """Send the store every request that was swallowed, oldest first; how many there were."""
        held, self._swallowed = self._swallowed, []
        for request in held:
            asyncio.run_coroutine_threadsafe(self._send(request), self.loop).result(STARTED_S)
        return len(held)

    async def _send(self, request: HttpRequest) -> None:
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        try:
            writer.write(request.encode())
            await _read_answer(reader, request.method)
        finally:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, with one of its own to the store."""
        upstream = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        try:
            while True:
                request = await _read_request(reader, writer)
                fault = self._plan(request)
                if fault is not None:
                    self.faults[fault.value] += 1
                if fault in (Fault.LOSE_REQUEST, Fault.CUT_OFF):
                    return
                if fault is not None and fault.value in _REFUSALS:
                    writer.write(_REFUSALS[fault.value])
                    continue
                if fault is Fault.RESET:
                    reset(writer)
                    return
                if fault is Fault.SWALLOW:
                    self._swallowed.append(request)
                    await reader.read()
                    return
                if fault is Fault.FLIPPED_BYTE and request.body:
                    request = replace(request, body=_flipped(request.body))
                if fault is Fault.STRIP:
                    request = self._signed(request.without("if-none-match"))
                if fault is Fault.DELAY:
                    await asyncio.sleep(_DELAY_S)
                upstream[1].write(request.encode())
                answer = await _read_answer(upstream[0], request.method)
                if fault is Fault.LOSE_ANSWER:
                    return
                head, gap, body = answer.partition(b"\r\n\r\n")
                if fault is Fault.SHORT_BODY:
                    writer.write(head + gap + body[: len(body) // 2] if body else head)
                    return
                if fault is Fault.FLIPPED_BYTE and body:
                    answer = head + gap + _flipped(body)
                writer.write(answer)
                await writer.drain()
        finally:
            upstream[1].close()

    def _signed(self, request: HttpRequest) -> HttpRequest:
        bare = request.without("authorization", "x-amz-date", "x-amz-content-sha256")
        url = f"http://{request.header('host')}{request.target}"
        signing = AWSRequest(request.method, url, dict(bare.headers), request.body)
        S3SigV4Auth(self._credentials, "s3", self._region).add_auth(signing)
        return replace(request, headers=tuple(signing.headers.items()))


@contextlib.contextmanager
def proxied(endpoints: Endpoints, plan: Plan) -> Iterator[tuple[Proxy, Endpoints]]:
    """A running proxy, and the endpoints by which one reaches the store through it."""
    with Proxy(endpoints, plan) as proxy:
        yield proxy, replace(endpoints, s3_endpoint=proxy.url)


def strip_conditions(request: HttpRequest) -> Fault | None:
    """The plan of a store that ignores `If-None-Match`."""
    return Fault.STRIP if request.header("if-none-match") else None


def _flipped(body: bytes) -> bytes:
    """One bit of one byte changed: a digit past the middle if there is one, so that it parses."""
    middle = len(body) // 2
    digits = (n for n in range(middle, len(body)) if chr(body[n]).isdigit() and body[n] < 128)
    place = next(digits, middle)
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> HttpRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    headers = [line.partition(":") for line in head[1:] if line]
    request = HttpRequest(method, target, tuple((k, v.strip()) for k, _, v in headers), b"")
    if request.header("expect"):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = request.without("expect")
    length = int(request.header("content-length") or 0)
    return replace(request, body=await reader.readexactly(length))


async def _read_answer(reader: asyncio.StreamReader, method: str) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = head.lower()
    status = int(head.split(b" ", 2)[1])
    if method == "HEAD" or status in (204, 304):
        return head
    if b"transfer-encoding: chunked" in fields:
        return head + await _read_chunks(reader)
    length = fields.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    return head + await reader.readexactly(int(length or 0))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body as it is on the wire."""
    parts = []
    while True:
        size = await reader.readuntil(b"\r\n")
        parts += [size, await reader.readexactly(int(size.split(b";")[0], 16) + 2)]
        if int(size.split(b";")[0], 16) == 0:
            return b"".join(parts)
