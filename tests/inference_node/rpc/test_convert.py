"""Every bound on input, with the path of the field that breaks it."""

from __future__ import annotations

from typing import Any

import pytest

from inference_node.errors import InvalidRequest
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.request import Output, Request, Sampling, Stopping
from inference_node.rpc import convert
from inference_node.rpc.request_ids import RequestIds
from tests.inference_node.rpc.scripted_engine import ByteEncoder

BOUNDS = convert.Bounds(max_context=64, vocab_size=300)


def to_request(message: pb.GenerateRequest) -> Request:
    return convert.to_request(
        message, bounds=BOUNDS, encoder=ByteEncoder(), deadline=9.0, new_id=RequestIds()
    )


def test_an_almost_empty_request_takes_the_documented_defaults() -> None:
    request = to_request(pb.GenerateRequest(prompt="hi"))
    assert request == Request(
        request_id=request.request_id,
        tenant="default",
        adapter="",
        prompt=(104, 105),
        sampling=Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=None),
        stopping=Stopping(max_new_tokens=128),
        deadline=9.0,
    )
    assert len(request.request_id) == 32


def test_everything_that_is_asked_for_reaches_the_engine() -> None:
    request = to_request(
        pb.GenerateRequest(
            adapter="ada@v2",
            tenant="acme",
            chat=pb.Chat(messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="hi")]),
            sampling=pb.Sampling(
                temperature=0.5,
                top_p=0.9,
                top_k=40,
                min_p=0.1,
                repetition_penalty=1.2,
                presence_penalty=-0.5,
                frequency_penalty=0.25,
                logit_bias={7: -100.0},
                seed=0,
            ),
            output=pb.Output(logprobs=True, top_logprobs=3, echo=True),
            stopping=pb.Stopping(
                max_new_tokens=9, min_new_tokens=2, stop=["\n"], stop_token_ids=[5], ignore_eos=True
            ),
            min_generation=4,
            request_id="job-1",
            priority=-3,
            affinity_key="customer-7",
        )
    )
    assert request == Request(
        request_id="job-1",
        tenant="acme",
        adapter="ada@v2",
        prompt=tuple(b"<user>hi"),
        sampling=Sampling(
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.1,
            repetition_penalty=1.2,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            logit_bias={7: -100.0},
            seed=0,
        ),
        output=Output(logprobs=True, top_logprobs=3, echo=True),
        stopping=Stopping(
            max_new_tokens=9, min_new_tokens=2, stop=("\n",), stop_token_ids=(5,), ignore_eos=True
        ),
        min_generation=4,
        deadline=9.0,
        priority=-3,
        affinity_key="customer-7",
    )


def request_with(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(**({"prompt": "hi"} | fields))


def sampling(**fields: Any) -> pb.GenerateRequest:
    return request_with(sampling=pb.Sampling(**fields))


def stopping(**fields: Any) -> pb.GenerateRequest:
    return request_with(stopping=pb.Stopping(**fields))


def chat(*messages: pb.ChatMessage) -> pb.GenerateRequest:
    return pb.GenerateRequest(chat=pb.Chat(messages=messages))


def token_ids(*ids: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))


REFUSED = [
    ("input", pb.GenerateRequest()),
    ("prompt", request_with(prompt="")),
    ("prompt", request_with(prompt="x" * 64)),
    ("prompt", request_with(prompt="x" * 5000)),
    ("token_ids", token_ids()),
    ("token_ids", token_ids(*[1] * 64)),
    ("token_ids.ids[1]", token_ids(1, 300)),
    ("chat.messages", chat()),
    ("chat.messages[0].role", chat(pb.ChatMessage(content="hi"))),
    ("chat", chat(pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="x" * 5000))),
    ("tenant", request_with(tenant="Not OK")),
    ("adapter", request_with(adapter="../escape")),
    ("adapter", request_with(adapter="s3://bucket/key")),
    ("adapter", request_with(adapter="ada@sha256:short")),
    ("adapter", request_with(adapter="ada@")),
    ("request_id", request_with(request_id="a b")),
    ("request_id", request_with(request_id="x" * 65)),
    ("request_id", request_with(request_id="é")),
    ("min_generation", request_with(adapter="ada", min_generation=-1)),
    ("min_generation", request_with(min_generation=3)),
    ("priority", request_with(priority=11)),
    ("priority", request_with(priority=-11)),
    ("affinity_key", request_with(adapter="ada", affinity_key="é" * 129)),
    ("sampling.temperature", sampling(temperature=-0.1)),
    ("sampling.temperature", sampling(temperature=2.1)),
    ("sampling.temperature", sampling(temperature=float("nan"))),
    ("sampling.temperature", sampling(temperature=float("inf"))),
    ("sampling.top_p", sampling(top_p=0.0)),
    ("sampling.top_p", sampling(top_p=1.1)),
    ("sampling.top_p", sampling(top_p=float("nan"))),
    ("sampling.min_p", sampling(min_p=-0.1)),
    ("sampling.min_p", sampling(min_p=1.1)),
    ("sampling.min_p", sampling(min_p=float("nan"))),
    ("sampling.repetition_penalty", sampling(repetition_penalty=0.0)),
    ("sampling.repetition_penalty", sampling(repetition_penalty=2.1)),
    ("sampling.repetition_penalty", sampling(repetition_penalty=float("nan"))),
    ("sampling.presence_penalty", sampling(presence_penalty=2.1)),
    ("sampling.presence_penalty", sampling(presence_penalty=float("nan"))),
    ("sampling.frequency_penalty", sampling(frequency_penalty=-2.1)),
    ("sampling.frequency_penalty", sampling(frequency_penalty=float("inf"))),
    ("sampling.logit_bias", sampling(logit_bias=dict.fromkeys(range(1025), 1.0))),
    ("sampling.logit_bias[300]", sampling(logit_bias={300: 1.0})),
    ("sampling.logit_bias[3]", sampling(logit_bias={3: 100.5})),
    ("sampling.logit_bias[3]", sampling(logit_bias={3: float("nan")})),
    ("output.top_logprobs", request_with(output=pb.Output(logprobs=True, top_logprobs=21))),
    ("output.top_logprobs", request_with(output=pb.Output(top_logprobs=1))),
    ("stopping.max_new_tokens", stopping(max_new_tokens=0)),
    ("stopping.max_new_tokens", stopping(max_new_tokens=65)),
    ("stopping.min_new_tokens", stopping(max_new_tokens=4, min_new_tokens=5)),
    ("stopping.stop", stopping(stop=["x"] * 9)),
    ("stopping.stop[0]", stopping(stop=[""])),
    ("stopping.stop[1]", stopping(stop=["ok", "é" * 129])),
    ("stopping.stop_token_ids", stopping(stop_token_ids=[1] * 65)),
    ("stopping.stop_token_ids[0]", stopping(stop_token_ids=[300])),
]


@pytest.mark.parametrize(
    ("field", "message"), REFUSED, ids=[f"{i}-{field}" for i, (field, _) in enumerate(REFUSED)]
)
def test_a_field_out_of_bounds_is_refused_by_its_path(
    field: str, message: pb.GenerateRequest
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_request(message)
    assert caught.value.field == field


ACCEPTED = [
    request_with(prompt="x" * 63),
    token_ids(299),
    request_with(adapter="a" * 64),
    request_with(adapter="ada@sha256:" + "a" * 64),
    request_with(request_id="~" * 64),
    request_with(priority=10, affinity_key="é" * 128),
    request_with(priority=-10),
    sampling(temperature=2.0, top_p=1.0, top_k=1, seed=2**64 - 1),
    sampling(min_p=1.0, repetition_penalty=2.0, presence_penalty=2.0, frequency_penalty=-2.0),
    sampling(min_p=0.0, repetition_penalty=0.01, presence_penalty=-2.0, frequency_penalty=2.0),
    sampling(logit_bias={0: -100.0, 299: 100.0}),
    request_with(output=pb.Output(logprobs=True, top_logprobs=20, echo=True)),
    stopping(max_new_tokens=64, min_new_tokens=64),
    stopping(stop=["é" * 128] * 8, stop_token_ids=[299] * 64),
]


@pytest.mark.parametrize("message", ACCEPTED, ids=range(len(ACCEPTED)))
def test_a_field_at_its_bound_is_accepted(message: pb.GenerateRequest) -> None:
    to_request(message)
