"""Every error the node names has one status, and nothing else leaks out."""

from __future__ import annotations

import logging

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from inference_node import errors
from inference_node.addresses import PUSHBACK_HEADER
from inference_node.rpc.status import CODES, DETAILS_KEY, refusal


def named_errors() -> list[type[errors.NodeError]]:
    found = [errors.NodeError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found[1:] if kind.__module__ == errors.__name__]


def details(error: Exception) -> tuple[status_pb2.Status, dict[str, Message]]:
    status = status_pb2.Status.FromString(bytes(dict(refusal(error).trailers)[DETAILS_KEY]))
    unpacked: dict[str, Message] = {}
    for packed in status.details:
        kind = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])
        unpacked[kind.__name__] = kind()
        packed.Unpack(unpacked[kind.__name__])
    return status, unpacked


@pytest.mark.parametrize("kind", named_errors())
def test_every_named_error_has_a_status_and_says_its_reason(kind: type[errors.NodeError]) -> None:
    assert kind in CODES
    if issubclass(kind, errors.InvalidRequest):
        error: errors.NodeError = kind("field", "what")
    else:
        error = kind("what", hint="do this", retry_after=0.25, details={"adapter": "ada"})
    answer = refusal(error)
    status, found = details(error)
    assert answer.code is CODES[kind]
    assert status.code == answer.code.value[0]
    assert status.message == answer.message
    info = found["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (kind.reason, "lorapool.dev")
    if error.retry_after is not None:
        retry = found["RetryInfo"]
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToMilliseconds() == 250
        assert dict(answer.trailers)[PUSHBACK_HEADER] == "250"
        assert info.metadata == {"adapter": "ada", "hint": "do this"}
        assert answer.message == "what; do this"
    else:
        bad = found["BadRequest"]
        assert isinstance(bad, error_details_pb2.BadRequest)
        assert bad.field_violations[0].field == "field"
    if answer.code is grpc.StatusCode.NOT_FOUND:
        missing = found["ResourceInfo"]
        assert isinstance(missing, error_details_pb2.ResourceInfo)
        assert (missing.resource_name, missing.description) == ("ada", "what")
    assert ("PreconditionFailure" in found) == (answer.code is grpc.StatusCode.FAILED_PRECONDITION)


def test_an_unknown_exception_is_logged_under_an_incident_and_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise ZeroDivisionError("secret-path")
    except ZeroDivisionError as error:
        with caplog.at_level(logging.ERROR):
            answer = refusal(error)
            _, found = details(error)
    assert answer.code is grpc.StatusCode.INTERNAL
    assert "secret" not in answer.message
    assert not any(b"secret" in bytes(v) for k, v in answer.trailers if isinstance(v, bytes))
    info = found["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.metadata["incident"] in caplog.text
    assert "secret-path" in caplog.text
    assert "Traceback" in caplog.text


def test_a_caller_cannot_make_the_trailers_long() -> None:
    answer = refusal(errors.InvalidRequest("adapter", "é" * 100_000, hint="x" * 100_000))
    assert len(bytes(dict(answer.trailers)[DETAILS_KEY])) < 6000
    assert len(answer.message) < 1200
