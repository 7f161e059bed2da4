"""How callers may speak to a gateway: JSON by curl, gRPC-Web, reflection, TLS; and how not."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import shutil
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from adapter_store.services import free_ports
from inference_node.client import Access, Client, NodeUnreachable
from inference_node.gateway.config import CallerTls, NodeTls
from inference_node.pb.lorapool.v1 import adapters_pb2, adapters_pb2_grpc
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.playground.web import Playground
from tests.adapter_store.waiting import wait_until
from tests.inference_node.gateway.fleet import (
    NODE,
    Gateway,
    LightNode,
    light_nodes,
    running_gateway,
)
from tests.inference_node.rpc.authority import Authority
from tests.inference_node.rpc.scripted_engine import DIGEST, follows, hangs
from tests.inference_node.test_foreign_clients import buf_curl

JSON = {"content-type": "application/json"}
INFERENCE = "/lorapool.v1.InferenceService"
ORIGIN = "https://app.example.com"
Curl = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def curl() -> Iterator[Curl]:
    """Starts curl with a JSON body for a path of a gateway."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("no curl on PATH")
    with contextlib.ExitStack() as started:

        def start(gateway: Gateway, path: str, body: Any, *more: str) -> subprocess.Popen[str]:
            command = [program, "-sN", "-H", "content-type: application/json", *more]
            text = body if isinstance(body, str) else json.dumps(body)
            process = subprocess.Popen(
                [*command, "-d", text, f"http://{gateway.address}{path}"],
                stdout=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield start


def said(process: subprocess.Popen[str]) -> Any:
    """The document that curl printed."""
    assert process.stdout is not None
    return json.loads(process.stdout.read())


def test_curl_gets_an_answer_in_json_from_the_node_that_has_the_adapter(
    gateway: Gateway, nodes: list[LightNode], curl: Curl
) -> None:
    for _ in range(6):
        body = {"prompt": "Ahoy", "adapter": "ada", "stopping": {"max_new_tokens": 4}}
        answer = said(curl(gateway, f"{INFERENCE}/Generate", body, "-H", "x-adapter-id: ada"))
        assert answer["text"] == "hello wörld"
        assert answer["served"]["digest"] == DIGEST
        # 64-bit numbers are text in the JSON of protobuf.
        assert answer["served"]["generation"] == "7"
    assert sorted(node.engine.asked["ada"] for node in nodes) == [0, 0, 6]


def test_a_stream_in_json_is_a_line_an_event_each_as_soon_as_it_is_decoded(
    gateway: Gateway, nodes: list[LightNode], curl: Curl
) -> None:
    gate = threading.Event()
    for node in nodes:
        node.engine.script = follows(words=["one ", "two ", "three"], gate=gate)
    stream = curl(gateway, f"{INFERENCE}/StreamGenerate", {"request": {"prompt": "x"}})
    assert stream.stdout is not None
    assert "started" in json.loads(stream.stdout.readline())
    assert json.loads(stream.stdout.readline())["delta"]["text"] == "one "
    gate.set()
    *deltas, last = map(json.loads, stream.stdout)
    assert "".join(event["delta"]["text"] for event in deltas) == "two three"
    assert last["completed"]["finishReason"] == "FINISH_REASON_STOP"


def test_a_caller_that_hangs_up_stops_the_engine(
    gateway: Gateway, nodes: list[LightNode], curl: Curl
) -> None:
    for node in nodes:
        node.engine.script = hangs
    stream = curl(gateway, f"{INFERENCE}/StreamGenerate", {"request": {"prompt": "x"}})
    assert stream.stdout is not None
    assert "started" in stream.stdout.readline()
    stream.kill()
    wait_until(lambda: sum(len(node.engine.cancelled) for node in nodes) == 1)


@pytest.mark.parametrize(
    ("body", "http", "code", "says"),
    [
        ({"prompt": "x", "adapter": "../x"}, 400, 3, "adapter"),
        ({}, 400, 3, "input"),
        ("{", 400, None, ""),
    ],
)
def test_an_error_in_json_has_the_fitting_http_status_and_its_reason(
    gateway: Gateway, curl: Curl, body: Any, http: int, code: int | None, says: str
) -> None:
    process = curl(gateway, f"{INFERENCE}/Generate", body, "-w", "\n%{http_code}")
    assert process.stdout is not None
    text, _, status = process.stdout.read().rpartition("\n")
    assert (int(status), says in text) == (http, True), text
    if code is not None:
        answer = json.loads(text)
        assert answer["code"] == code
        assert answer["details"][0]["reason"] == "INVALID_REQUEST"
        assert answer["details"][0]["metadata"]["field"] == says


def test_a_header_that_means_another_adapter_than_the_body_is_refused(
    gateway: Gateway, curl: Curl
) -> None:
    refused = said(curl(gateway, f"{INFERENCE}/Generate", {"prompt": "x"}, "-H", "x-adapter-id: a"))
    assert refused["code"] == 3
    assert "x-adapter-id" in refused["message"]


@pytest.mark.parametrize(("mebibytes", "status"), [(1.5, 429), (2.5, 413)])
def test_what_is_too_large_is_refused_by_the_node_or_before_it(
    gateway: Gateway, nodes: list[LightNode], mebibytes: float, status: int
) -> None:
    body = json.dumps({"prompt": "x" * int(mebibytes * 2**20)})
    connection = http.client.HTTPConnection(gateway.address, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", f"{INFERENCE}/Generate", body, JSON)
        assert connection.getresponse().status == status
    assert not any(node.engine.asked for node in nodes)


def test_the_playground_answers_json_as_envoy_does(
    envoy: Path, nodes: list[LightNode], tmp_path: Path
) -> None:
    calls: list[tuple[str, Any]] = [
        (f"{INFERENCE}/Generate", {"prompt": "x", "adapter": "ada", "request_id": "r"}),
        (f"{INFERENCE}/StreamGenerate", {"request": {"prompt": "x", "requestId": "r"}}),
        (f"{INFERENCE}/GetModelInfo", {}),
        (f"{INFERENCE}/Generate", {"prompt": "x", "adapter": "../x"}),
        (f"{INFERENCE}/Generate", {"prompt": "x", "adaptor": "ada"}),
        (f"{INFERENCE}/Nothing", {}),
        ("/lorapool.v1.CatalogService/ListAdapters", {}),
    ]
    node, listen = nodes[0].address, f"127.0.0.1:{free_ports('127.0.0.1', 1)[0]}"
    with running_gateway(tmp_path, [node]) as gateway, Playground(listen, node=node):
        for path, body in calls:
            assert posted(listen, path, body) == posted(gateway.address, path, body)


def posted(address: str, path: str, body: Any) -> tuple[int, list[Any]]:
    """The status, and each line that is JSON; of an error without its words."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("POST", path, json.dumps(body), JSON)
        response = connection.getresponse()
        lines = response.read().decode().splitlines()
    if response.status != 200:
        return response.status, [json.loads(line)["code"] for line in lines if line[0] == "{"]
    return response.status, [json.loads(line) for line in lines]


def web_frame(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def web_frames(body: bytes) -> Iterator[tuple[int, bytes]]:
    while body:
        kind, size = struct.unpack(">BI", body[:5])
        yield kind, body[5 : 5 + size]
        body = body[5 + size :]


@pytest.mark.parametrize("text", [False, True], ids=["binary", "base64"])
def test_a_browser_streams_by_grpc_web(gateway: Gateway, *, text: bool) -> None:
    request = pb.StreamGenerateRequest(request=pb.GenerateRequest(prompt="x", adapter="ada"))
    body = web_frame(request.SerializeToString())
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
    connection = http.client.HTTPConnection(gateway.address, timeout=10)
    with contextlib.closing(connection):
        connection.request(
            "POST",
            f"{INFERENCE}/StreamGenerate",
            base64.b64encode(body) if text else body,
            {"content-type": kind, "accept": kind, "x-grpc-web": "1", "x-adapter-id": "ada"},
        )
        response = connection.getresponse()
        assert response.getheader("x-lorapool-digest") == DIGEST
        answer = response.read()
    if text:
        # Each frame is encoded by itself and has padding of its own.
        answer = b"".join(map(base64.b64decode, re.findall(rb"[\w+/]+=*", answer)))
    *messages, (kind_of_last, trailers) = web_frames(answer)
    events = [pb.StreamGenerateResponse.FromString(message) for _, message in messages]
    assert "".join(event.delta.text for event in events) == "hello wörld"
    assert kind_of_last == 0x80
    assert b"grpc-status:0" in trailers


def preflight(gateway: Gateway, origin: str) -> str | None:
    connection = http.client.HTTPConnection(gateway.address, timeout=10)
    with contextlib.closing(connection):
        asks = {"origin": origin, "access-control-request-method": "POST"}
        connection.request("OPTIONS", f"{INFERENCE}/Generate", headers=asks)
        return connection.getresponse().getheader("access-control-allow-origin")


def test_pages_of_named_origins_may_call_and_no_others(
    envoy: Path, nodes: list[LightNode], tmp_path: Path
) -> None:
    with running_gateway(tmp_path, [nodes[0].address], origins=(ORIGIN,)) as gateway:
        assert preflight(gateway, ORIGIN) == ORIGIN
        assert preflight(gateway, "https://evil.example.com") is None
        assert preflight(gateway, f"{ORIGIN}.evil.example.com") is None


def test_reflection_and_health_pass_so_that_buf_curl_needs_no_files(gateway: Gateway) -> None:
    told = buf_curl(gateway.address, f"{INFERENCE[1:]}/Generate", {"prompt": "x"})
    assert told.code == 0, told.err
    assert told.out[0]["text"] == "hello wörld"
    with Client(gateway.address) as client:
        assert client.ready()


@pytest.mark.parametrize("path", ["/", "/stats", "/quitquitquit", "/config_dump"])
def test_what_is_no_call_is_not_found(gateway: Gateway, path: str) -> None:
    assert gateway.get(path).status == 404
    assert gateway.get(path, at=gateway.config.metrics).status == 404


def test_orders_to_nodes_do_not_pass(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.address) as channel:
        stub = adapters_pb2_grpc.AdapterServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetPoolStatus(adapters_pb2.GetPoolStatusRequest(), timeout=10)
    assert isinstance(refused.value, grpc.Call)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_metrics_tell_of_calls_by_method(gateway: Gateway) -> None:
    gateway.ask("ada")
    text = gateway.get("/metrics", at=gateway.config.metrics).body
    counted = re.search(r"^envoy_cluster_grpc_success{(.*)} 1$", text, re.MULTILINE)
    assert counted is not None
    assert 'envoy_grpc_bridge_method="Generate"' in counted[1]
    assert 'envoy_grpc_bridge_service="lorapool_v1_InferenceService"' in counted[1]
    assert gateway.get("/ready", at=gateway.config.metrics).body == "LIVE\n"


def refuses_to_meet(gateway: Gateway, access: Access) -> bool:
    with Client(gateway.address, access=access) as client:
        try:
            client.generate("x")
        except NodeUnreachable:
            return True
    return False


def test_callers_are_encrypted_and_so_are_nodes_each_known_by_its_certificate(
    envoy: Path, tmp_path: Path
) -> None:
    inside, outside = Authority(tmp_path / "inside"), Authority(tmp_path / "outside")
    node_files = replace(inside.issue("node.lorapool"), client_ca=inside.file)
    ours, front = inside.issue("gateway", into="gateway"), outside.issue(into="front")
    settings: dict[str, Any] = {
        "tls": CallerTls(cert=front.cert, key=front.key),
        "node_tls": NodeTls(ca=inside.file, name="node.lorapool", cert=ours.cert, key=ours.key),
    }
    with (
        light_nodes(2, replace(NODE, tls=node_files)) as nodes,
        running_gateway(tmp_path, [node.address for node in nodes], **settings) as gateway,
    ):
        with Client(gateway.address, access=Access(ca_file=outside.file)) as client:
            assert client.generate("x", adapter="ada").text == "hello wörld"
        assert refuses_to_meet(gateway, Access())
        assert refuses_to_meet(gateway, Access(ca_file=inside.file))
        context = ssl.create_default_context(cafile=str(outside.file))
        connection = http.client.HTTPSConnection(gateway.address, timeout=10, context=context)
        with contextlib.closing(connection):
            connection.request("POST", f"{INFERENCE}/Generate", '{"prompt": "x"}', JSON)
            assert json.loads(connection.getresponse().read())["text"] == "hello wörld"


def test_a_node_whose_certificate_names_another_gets_no_call(envoy: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "inside")
    named, other = authority.issue("node.lorapool"), authority.issue("other", into="other")
    known_by_name = NodeTls(ca=authority.file, name="node.lorapool")
    with (
        light_nodes(1, replace(NODE, tls=named)) as (good,),
        light_nodes(1, replace(NODE, tls=other)) as (bad,),
        running_gateway(
            tmp_path, [good.address, bad.address], healthy=1, node_tls=known_by_name
        ) as gateway,
    ):
        for number in range(20):
            gateway.ask(f"adapter-{number}")
    assert sum(good.engine.asked.values()) == 20
    assert not bad.engine.asked


def test_callers_without_a_certificate_are_turned_away_where_one_is_asked_for(
    envoy: Path, nodes: list[LightNode], tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "callers")
    front, caller = authority.issue(into="front"), authority.issue("caller", into="caller")
    tls = CallerTls(cert=front.cert, key=front.key, client_ca=authority.file)
    with running_gateway(tmp_path, [nodes[0].address], tls=tls) as gateway:
        known = Access(ca_file=authority.file, cert_file=caller.cert, key_file=caller.key)
        assert not refuses_to_meet(gateway, known)
        assert refuses_to_meet(gateway, Access(ca_file=authority.file))
