"""JSON over HTTP as gRPC calls, by the mapping that Envoy's transcoder has.

POST `/package.Service/Method` with the request; the answer is JSON, for a stream one object a line.
Stricter than Envoy in one thing: a field that the request does not have is refused.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from inference_node.addresses import AFFINITY_HEADER
from inference_node.errors import InvalidRequest
from inference_node.pb.lorapool.v1 import catalog_pb2, inference_pb2

SECONDS = 120.0
DETAILS_KEY = "grpc-status-details-bin"
_DETAILS = error_details_pb2
"""Loaded, so that what a status carries is written as JSON by its type."""

_HTTP = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
"""Of google.rpc.Code; what is not named is 500."""


@dataclass(frozen=True, slots=True)
class Method:
    """An RPC as its descriptor has it."""

    path: str
    request: type[Message]
    response: type[Message]
    streams: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as HTTP says it."""

    http: int
    status: dict[str, Any]
    """google.rpc.Status."""


def methods() -> dict[str, Method]:
    """InferenceService and CatalogService, by path."""
    found = {}
    for module in (inference_pb2, catalog_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                found[path] = Method(
                    path,
                    message_factory.GetMessageClass(method.input_type),
                    message_factory.GetMessageClass(method.output_type),
                    method.server_streaming,
                )
    return found


def parse(method: Method, body: str) -> Message:
    """Raises InvalidRequest."""
    try:
        return json_format.Parse(body or "{}", method.request())
    except (json_format.ParseError, RecursionError) as error:
        raise InvalidRequest("body", str(error)) from error


async def call(
    channel: grpc.aio.Channel, method: Method, message: Message, adapter: str
) -> AsyncGenerator[Message, None]:
    """Every message of the answer; closing it ends the call. Raises grpc.aio.AioRpcError."""
    metadata = ((AFFINITY_HEADER, adapter),) if adapter else ()
    serialize, read = method.request.SerializeToString, method.response.FromString
    if method.streams:
        stream = channel.unary_stream(method.path, serialize, read)(
            message, timeout=SECONDS, metadata=metadata
        )
        try:
            async for answer in stream:
                yield answer
        finally:
            stream.cancel()
    else:
        unary = channel.unary_unary(method.path, serialize, read)
        yield await unary(message, timeout=SECONDS, metadata=metadata)


def written(message: Message) -> str:
    """On one line."""
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False)


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    return Refusal(_HTTP.get(error.code(), 500), _status(error))


def refused_input(error: InvalidRequest) -> Refusal:
    """What was refused before anybody was called."""
    return Refusal(400, {"code": grpc.StatusCode.INVALID_ARGUMENT.value[0], "message": str(error)})


def _status(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    trailers: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == DETAILS_KEY and isinstance(value, bytes):
            found: dict[str, Any] = json_format.MessageToDict(status_pb2.Status.FromString(value))
            return found
    return {"code": error.code().value[0], "message": error.details() or ""}
