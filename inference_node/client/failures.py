"""Statuses to the errors they stand for."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2

from inference_node import errors
from inference_node.errors import InvalidRequest, NodeError


class NodeUnreachable(NodeError):
    """No node answered at the address, or it went away mid-call."""

    reason = "NODE_UNREACHABLE"


class CallFailed(NodeError):
    """The call failed in a way this version has no word for; `details` has the node's own."""

    reason = "CALL_FAILED"


def to_error(error: grpc.RpcError) -> NodeError:
    """The error the node meant, or what is known when no node said anything."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), error
    code, text = error.code(), error.details() or ""
    info, retry = _details(error)
    if info is None:
        return _without_details(code, text)
    metadata = dict(info.metadata)
    hint = metadata.pop("hint", "")
    text = text.removesuffix(f"; {hint}")
    kind = _named_errors().get(info.reason)
    if kind is None:
        return CallFailed(
            text, hint=hint, retry_after=retry, details=metadata | {"reason": info.reason}
        )
    if issubclass(kind, InvalidRequest):
        field = metadata.get("field", "")
        return kind(field, text.removeprefix(f"{field}: "), hint=hint)
    return kind(text, hint=hint, retry_after=retry, details=metadata)


def _details(
    error: grpc.Call | grpc.aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    info, retry = None, None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
            if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                found = error_details_pb2.RetryInfo()
                detail.Unpack(found)
                retry = found.retry_delay.ToMilliseconds() / 1000
    return info, retry


def _without_details(code: grpc.StatusCode, text: str) -> NodeError:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return NodeUnreachable(
                f"no node answers: {text}", hint="is a node running there? `inference-node serve`"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExpired(text)
        case grpc.StatusCode.CANCELLED:
            return errors.Cancelled(text)
        case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN if "RST_STREAM" in text:
            # A node's own word brings details: a gateway lost the node that had begun to answer.
            return NodeUnreachable(
                f"the node went away in the middle of the call: {text}",
                hint="ask again: another node answers",
            )
        case _:
            return CallFailed(f"{code.name}: {text}", details={"code": code.name})


def _named_errors() -> dict[str, type[NodeError]]:
    """Every error a node may name, by reason; EngineFailure stands for INTERNAL."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return {
        kind.reason: kind for kind in kinds if issubclass(kind, NodeError) and kind is not NodeError
    }
