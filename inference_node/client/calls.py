"""A call written once for threads and for asyncio: what goes, and how what comes is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from inference_node.client.failures import to_error

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A method by its name, what goes, and how what comes is read."""

    method: str
    message: Any
    read: Callable[[Any], T]


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
