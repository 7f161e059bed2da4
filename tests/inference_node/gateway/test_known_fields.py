"""JSON with fields that a request does not have: refused by a real Envoy, as protobuf would."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.rpc.status import DOMAIN
from tests.inference_node.gateway.fleet import Gateway, LightNode, running_gateway

GENERATE, STREAM = (
    f"/lorapool.v1.InferenceService/{name}" for name in ("Generate", "StreamGenerate")
)
REFUSED = (
    (GENERATE, '{"prompt": "x", "adaptor": "ada"}', "GenerateRequest has no field 'adaptor'"),
    (GENERATE, '{"prompt": "x", "stopping": {"stop": ["a"], "max": 1}}', "Stopping has no"),
    (GENERATE, '{"chat": {"messages": [{"content": "a"}, {"rol": 1}]}}', "ChatMessage has no"),
    (STREAM, '{"request": {"prompt": "x", "adaptor": "ada"}}', "GenerateRequest has no"),
    (STREAM, '{"prompt": "x"}', "StreamGenerateRequest has no field 'prompt'"),
    (GENERATE, '{adaptor: "ada", "prompt": "x"}', "double quotes"),
    (GENERATE, "{'adaptor': 'ada', 'prompt': 'x'}", "double quotes"),
    (GENERATE, '{"prompt": "x', "double quotes"),
    (GENERATE, '{"prompt": ' + "[" * 1_000_000, "nested"),
    (GENERATE, '{"prompt": "x", "\\\\u0061daptor\\"": 1}', "has no field"),
)
BODIES = 300
_STRAY = ("adaptor", "Prompt", "max_tokens", "", "{", 'a"b', "ids", "messages", "é")
_TEXTS = ("x", 'say "x": {"y"}, [1]', "it's \\", "", "é\n", "{", "}", "]", ",", '"adaptor": 1')


@dataclass(frozen=True)
class Caller:
    """Speaks JSON with a gateway, over one connection."""

    connection: http.client.HTTPConnection

    def post(self, path: str, body: str, kind: str = "application/json") -> tuple[int, str]:
        self.connection.request("POST", path, body.encode(), {"content-type": kind})
        response = self.connection.getresponse()
        return response.status, response.read().decode()


@pytest.fixture
def caller(gateway: Gateway) -> Iterator[Caller]:
    with contextlib.closing(http.client.HTTPConnection(gateway.address, timeout=30)) as connection:
        yield Caller(connection)


def test_what_a_request_does_not_have_is_refused_by_name_before_any_node_is_asked(
    caller: Caller, nodes: list[LightNode]
) -> None:
    kinds = ("application/json", "application/x-www-form-urlencoded")
    for (path, body, says), kind in itertools.product(REFUSED, kinds):
        status, text = caller.post(path, body, kind)
        refused = json.loads(text)
        assert (status, refused["code"], says in refused["message"]) == (400, 3, True), text
        assert refused["details"][0]["reason"] == "INVALID_REQUEST"
        assert refused["details"][0]["domain"] == DOMAIN
    assert not any(node.engine.asked for node in nodes)


def test_a_body_is_refused_for_its_fields_exactly_where_protobuf_refuses_it(caller: Caller) -> None:
    rng, refused = random.Random(7), 0
    for _ in range(BODIES):
        body = json.dumps(drawn(rng), indent=rng.choice([None, 2]), ensure_ascii=False)
        unknown = lacks_a_field(body)
        status, text = caller.post(GENERATE, body)
        assert ("has no field" in text) == unknown, (body, status, text)
        refused += unknown
    assert 0 < refused < BODIES


def test_without_the_script_a_misspelt_adapter_asks_the_base_model(
    envoy: Path, nodes: list[LightNode], tmp_path: Path
) -> None:
    def never(text: str) -> str:
        return text.replace("function envoy_on_request", "function nobody_calls_it")

    with (
        running_gateway(tmp_path, [nodes[0].address], edit=never) as gateway,
        contextlib.closing(http.client.HTTPConnection(gateway.address, timeout=30)) as connection,
    ):
        status, text = Caller(connection).post(GENERATE, '{"prompt": "x", "adaptor": "ada"}')
    assert (status, json.loads(text)["served"]) == (200, {"tenant": "default"})


def drawn(rng: random.Random) -> Any:
    """A request of which nothing is wrong but, in every other, one field somewhere in it."""
    texts = [rng.choice(_TEXTS) for _ in range(5)]
    message = pb.GenerateRequest(adapter=texts[0], tenant=texts[1], request_id=texts[2])
    message.stopping.stop.extend(texts[3:])
    message.sampling.logit_bias[7] = 1.5
    message.chat.messages.add(content=texts[0])
    message.chat.messages.add(content=texts[4], role=pb.CHAT_ROLE_USER)
    found = json_format.MessageToDict(message, preserving_proto_field_name=rng.random() < 0.5)
    if rng.random() < 0.5:
        places = [found, found["stopping"], found["sampling"], *found["chat"]["messages"]]
        rng.choice(places)[rng.choice(_STRAY)] = rng.choice([1, "x", None, [{"y": 1}], {"z": [2]}])
    return shuffled(found, rng)


def shuffled(found: Any, rng: random.Random) -> Any:
    """The same with the fields in another order."""
    match found:
        case dict():
            names = rng.sample(list(found), len(found))
            return {name: shuffled(found[name], rng) for name in names}
        case list():
            return [shuffled(one, rng) for one in found]
        case _:
            return found


def lacks_a_field(body: str) -> bool:
    try:
        json_format.Parse(body, pb.GenerateRequest())
    except json_format.ParseError as error:
        return "no field named" in str(error)
    return False
