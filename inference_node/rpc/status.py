"""The one table from error to gRPC status, and the google.rpc details that go with it."""

from __future__ import annotations

import logging
import math
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from inference_node import errors
from inference_node.addresses import PUSHBACK_HEADER

DOMAIN = "lorapool.dev"
RESOURCE = "lorapool.v1/adapter"
DETAILS_KEY = "grpc-status-details-bin"
MAX_TEXT = 512
"""Longest message or detail: trailers share 8 KiB, and part of the text is the caller's own."""

CODES: dict[type[errors.NodeError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.RequestInFlight: grpc.StatusCode.ALREADY_EXISTS,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.CredentialsExpired: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.AdapterNotFound: grpc.StatusCode.NOT_FOUND,
    errors.AdapterIncompatible: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AdapterUntrusted: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StaleNode: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnsupportedModel: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AdapterCorrupt: grpc.StatusCode.DATA_LOSS,
    errors.AdapterNotLoaded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AdapterUnloaded: grpc.StatusCode.UNAVAILABLE,
    errors.PinRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PoolFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.LoadFailed: grpc.StatusCode.UNAVAILABLE,
    errors.StoreDown: grpc.StatusCode.UNAVAILABLE,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.BaseModelUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExpired: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.ModelFailure: grpc.StatusCode.INTERNAL,
    errors.EngineFailure: grpc.StatusCode.INTERNAL,
    errors.BadConfiguration: grpc.StatusCode.INTERNAL,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as gRPC says it."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


class Answering:
    """Turns what the body raises into the call's status."""

    # No generator: that costs six times as much, and every call goes through two of them.
    __slots__ = ("_context",)

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            answer = refusal(error)
            await self._context.abort(answer.code, answer.message, answer.trailers)


def refusal(error: Exception) -> Refusal:
    """How to answer `error`. Anything but a NodeError is logged and answered without its text."""
    if not isinstance(error, errors.NodeError):
        error = _incident(error)
    code = next((CODES[c] for c in type(error).__mro__ if c in CODES), grpc.StatusCode.INTERNAL)
    message = _cut(str(error))
    if error.hint:
        message = f"{message}; {_cut(error.hint)}"
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in _details(error, code):
        status.details.add().Pack(detail)
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if error.retry_after is not None:
        trailers.append((PUSHBACK_HEADER, str(math.ceil(error.retry_after * 1000))))
    return Refusal(code, message, tuple(trailers))


def _details(error: errors.NodeError, code: grpc.StatusCode) -> list[Message]:
    metadata = {key: _cut(value) for key, value in error.details.items()}
    if error.hint:
        metadata["hint"] = _cut(error.hint)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    ]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(math.ceil(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.QuotaExceeded):
        over = error_details_pb2.QuotaFailure.Violation(
            subject=f"quota:{metadata.get('quota', '')}", description=_cut(str(error))
        )
        details.append(error_details_pb2.QuotaFailure(violations=[over]))
    if isinstance(error, errors.InvalidRequest):
        problem = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_cut(error.problem), reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[problem]))
    if code is grpc.StatusCode.NOT_FOUND:
        missing = error_details_pb2.ResourceInfo(
            resource_type=RESOURCE,
            resource_name=metadata.get("adapter", ""),
            description=_cut(str(error)),
        )
        details.append(missing)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        failed = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason,
            subject=metadata.get("adapter", ""),
            description=_cut(str(error)),
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[failed]))
    return details


def _incident(error: Exception) -> errors.NodeError:
    incident = uuid.uuid4().hex[:12]
    _log.error("incident %s", incident, exc_info=error)
    return errors.EngineFailure(
        f"internal error, incident {incident}",
        hint="the node's log has the details under that name",
        details={"incident": incident},
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
