"""From a folder on a publisher's disk to tokens over the wire, and what is refused on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inference_node.client import Client, Message, Served
from inference_node.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterNotFound,
    InvalidRequest,
    NodeError,
)
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from tests.integration.asking import PROMPT, begin, exactly, refused, wait_idle
from tests.integration.conftest import Truth
from tests.integration.node_process import NodeProcess
from tests.integration.site import Site

Code = grpc.StatusCode


def test_what_push_published_answers_the_next_request_and_is_named_by_it(
    site: Site, client: Client, voices: list[Path], truth: Truth
) -> None:
    pushed = site.adapter_store("push", str(voices[0]), "--name", "pushed", "--version", "first")
    answer = client.generate(PROMPT, adapter="pushed", stopping=exactly(24))
    assert answer.served == Served("default", "pushed", "first", 1, pushed["digest"])
    assert pushed["generation"] == 1
    assert answer.token_ids == truth(voices[0], PROMPT, 24)
    assert answer.token_ids != truth(None, PROMPT, 24)


def test_a_stream_says_the_same_as_a_whole_answer_and_both_end_idle(
    site: Site, client: Client, voices: list[Path]
) -> None:
    site.publish("streamed", voices[1], label="v1")
    chat = [Message("user", PROMPT)]
    whole = client.generate(chat, adapter="streamed@v1", stopping=exactly(16))
    stream = client.stream(chat, adapter="streamed@v1", stopping=exactly(16))
    assert stream.served == whole.served
    assert "".join(stream) == whole.text
    assert stream.result.token_ids == whole.token_ids
    wait_idle(client)


def test_the_base_answers_under_no_adapters_name(client: Client, truth: Truth) -> None:
    answer = client.generate(PROMPT, stopping=exactly(16))
    assert answer.served == Served(answer.served.tenant, "", "", 0, "")
    assert answer.token_ids == truth(None, PROMPT, 16)


@pytest.fixture
def misfits(site: Site, unseen: Callable[[], Path]) -> None:
    """An adapter for another base, and one whose stored bytes are not what was sent."""
    other = replace(site.card, fingerprint="0" * 64, name="another")
    site.publish("stranger", unseen(), label="v1", card=other)
    site.publish("damaged", unseen(), label="v1")
    site.damage("damaged")


@pytest.mark.usefixtures("misfits")
def test_refusals_are_typed_and_disturb_nobody(
    site: Site, node: NodeProcess, client: Client, voices: list[Path], truth: Truth
) -> None:
    site.publish("beside", voices[2], label="v1")
    stream = begin(client, "beside", tokens=300)
    answers: list[tuple[pb.GenerateRequest, Code, type[NodeError]]] = [
        (pb.GenerateRequest(prompt="x", adapter="nobody"), Code.NOT_FOUND, AdapterNotFound),
        (pb.GenerateRequest(prompt="x", adapter="beside@v9"), Code.NOT_FOUND, AdapterNotFound),
        (
            pb.GenerateRequest(prompt="x", adapter="beside", tenant="other"),
            Code.NOT_FOUND,
            AdapterNotFound,
        ),
        (
            pb.GenerateRequest(prompt="x", adapter="stranger"),
            Code.FAILED_PRECONDITION,
            AdapterIncompatible,
        ),
        (pb.GenerateRequest(prompt="x", adapter="damaged"), Code.DATA_LOSS, AdapterCorrupt),
        (pb.GenerateRequest(prompt="x", adapter="../x"), Code.INVALID_ARGUMENT, InvalidRequest),
    ]
    for request, code, kind in answers:
        status, error = refused(node, request)
        assert (status, type(error)) == (code, kind), request
        assert error.hint, request
    assert stream.result.token_ids == truth(voices[2], PROMPT, 300)
    wait_idle(client)


def test_bad_input_is_refused_by_the_field_that_is_wrong(node: NodeProcess) -> None:
    fields = {
        "input": pb.GenerateRequest(),
        "token_ids.ids[1]": pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 10**6])),
        "prompt": pb.GenerateRequest(prompt="sea " * 5000),
        "sampling.temperature": pb.GenerateRequest(
            prompt="x", sampling=pb.Sampling(temperature=float("nan"))
        ),
        "min_generation": pb.GenerateRequest(prompt="x", min_generation=1),
    }
    for field, request in fields.items():
        status, error = refused(node, request)
        assert isinstance(error, InvalidRequest), field
        assert (status, error.field) == (Code.INVALID_ARGUMENT, field)


def test_a_damaged_new_version_is_refused_and_the_old_one_keeps_serving(
    site: Site, node: NodeProcess, client: Client, unseen: Callable[[], Path]
) -> None:
    site.publish("spoilt", unseen(), label="v1")
    before = client.generate(PROMPT, adapter="spoilt", stopping=exactly(8))
    spoilt = site.publish("spoilt", unseen(), label="v2", silently=True)
    site.damage("spoilt")
    status, error = refused(
        node, pb.GenerateRequest(prompt="x", adapter="spoilt", min_generation=spoilt.gen)
    )
    assert (status, type(error)) == (Code.DATA_LOSS, AdapterCorrupt)
    after = client.generate(PROMPT, adapter="spoilt", stopping=exactly(8))
    assert (after.served, after.token_ids) == (before.served, before.token_ids)


def test_a_generation_that_does_not_exist_yet_is_worth_asking_for_again(
    site: Site, node: NodeProcess, voices: list[Path]
) -> None:
    site.publish("young", voices[0], label="v1")
    status, error = refused(node, pb.GenerateRequest(prompt="x", adapter="young", min_generation=2))
    assert (status, error.reason) == (Code.FAILED_PRECONDITION, "GENERATION_NOT_REACHED")
    assert error.retry_after is not None


def test_health_and_reflection_answer_without_our_protos(node: NodeProcess) -> None:
    service = "lorapool.v1.InferenceService"
    with node.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "liveness", "readiness", service):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)])
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        told = list(reflection.ServerReflectionInfo(asked, timeout=10))
    assert service.split(".")[-1].encode() in b"".join(
        told[0].file_descriptor_response.file_descriptor_proto
    )
