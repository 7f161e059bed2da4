"""So many calls at once, and who comes then is told when to come back."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference_node.addresses import PUSHBACK_HEADER
from inference_node.client import Client
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from inference_node.rpc.status import DETAILS_KEY
from inference_node.rpc.turnstile import Turnstile
from tests.adapter_store.waiting import wait_until
from tests.inference_node.rpc.running_node import CONFIG, running_node
from tests.inference_node.rpc.scripted_engine import ScriptedEngine, hangs, says

MOST = 3


def third_is_told(engine: ScriptedEngine) -> None:
    engine.script = hangs
    with (
        running_node(engine, replace(CONFIG, max_concurrent_rpcs=MOST)) as address,
        Client(address) as client,
        grpc.insecure_channel(address) as channel,
    ):
        streams = [client.stream("hi") for _ in range(MOST)]
        assert all(stream.served.adapter == "" for stream in streams)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
        error = caught.value
        assert isinstance(error, grpc.Call)
        trailers = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers[DETAILS_KEY])  # type: ignore[arg-type]
        retry = error_details_pb2.RetryInfo()
        assert status.details[1].Unpack(retry)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (retry.retry_delay.seconds, trailers[PUSHBACK_HEADER]) == (1, "1000")
        probe = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert probe.status == health_pb2.HealthCheckResponse.SERVING
        streams[0].cancel()
        engine.script = says("free")
        wait_until(lambda: len(engine.cancelled) == 1)
        assert client.generate("hi").text == "free"


def test_a_call_over_the_limit_is_told_when_to_come_back_and_probes_are_answered(
    engine: ScriptedEngine,
) -> None:
    third_is_told(engine)


def test_control_the_limit_of_grpc_itself_says_nothing_of_when(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Turnstile, "around", lambda *_: None)
    monkeypatch.setattr("inference_node.rpc.door.RESERVE", 0)
    with pytest.raises(KeyError):
        third_is_told(engine)
