"""A call written once for threads and for asyncio: what goes, and how what comes is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from inference_node.client.failures import to_error

T = TypeVar("T")
LOOK_SECONDS = 10.0
"""For what a node knows or reads, and loads nothing for."""
PAGE = 200
"""How much of a list is asked for at a time."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A method by its name, what goes, and how what comes is read."""

    method: str
    message: Any
    read: Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list."""

    found: tuple[T, ...]
    next: str
    """The token of the page after it; empty after the last one."""


def send(stub: object, call: Call[T], timeout: float) -> T:
    """Raises NodeError."""
    try:
        return call.read(getattr(stub, call.method)(call.message, timeout=timeout))
    except grpc.RpcError as error:
        raise to_error(error) from None


async def send_async(stub: object, call: Call[T], timeout: float) -> T:
    """Raises NodeError."""
    try:
        return call.read(await getattr(stub, call.method)(call.message, timeout=timeout))
    except grpc.aio.AioRpcError as error:
        raise to_error(error) from None


def send_pages(stub: object, page: Callable[[str], Call[Page[T]]], timeout: float) -> Iterator[T]:
    """Every item of a list; each page is given `timeout` seconds. Raises NodeError."""
    token = ""
    while True:
        answer = send(stub, page(token), timeout)
        yield from answer.found
        token = answer.next
        if not token:
            return


async def send_pages_async(
    stub: object, page: Callable[[str], Call[Page[T]]], timeout: float
) -> AsyncIterator[T]:
    """Every item of a list; each page is given `timeout` seconds. Raises NodeError."""
    token = ""
    while True:
        answer = await send_async(stub, page(token), timeout)
        for item in answer.found:
            yield item
        token = answer.next
        if not token:
            return
