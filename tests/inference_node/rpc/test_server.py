"""The real server on loopback, over a scripted engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from inference_node import errors
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from inference_node.rpc import servicers
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import NodeServer
from inference_node.rpc.servicers import InferenceServicer
from inference_node.rpc.status import CODES, DETAILS_KEY
from tests.inference_node.rpc.scripted_engine import (
    DIGEST,
    ScriptedEngine,
    fails,
    follows,
    hangs,
    says,
)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> inference_pb2_grpc.InferenceServiceAsyncStub:
    return inference_pb2_grpc.InferenceServiceStub(channel)


Stub = inference_pb2_grpc.InferenceServiceStub


def asked(prompt: str = "hi", **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=prompt, **fields)  # type: ignore[arg-type]


def streamed(**fields: object) -> pb.StreamGenerateRequest:
    return pb.StreamGenerateRequest(request=asked(**fields))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def rest(call: grpc.aio.UnaryStreamCall) -> list[pb.StreamGenerateResponse]:
    """Every event not read yet."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


def text_of(events: list[pb.StreamGenerateResponse]) -> str:
    return "".join(event.delta.text for event in events)


async def failure(call: grpc.aio.Call) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (rest(call) if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    info = error_details_pb2.ErrorInfo()
    trailers = dict(caught.value.trailing_metadata() or ())
    if DETAILS_KEY in trailers:
        status_pb2.Status.FromString(trailers[DETAILS_KEY]).details[0].Unpack(info)
    return caught.value.code(), info


async def test_an_answer_says_which_version_gave_it(stub: Stub) -> None:
    call = stub.Generate(asked(adapter="ada@v3", request_id="job-1", tenant="acme"))
    answer = await call
    assert answer.text == "hello wörld"
    assert list(answer.token_ids) == [0, 1]
    assert answer.finish_reason == pb.FINISH_REASON_STOP
    assert answer.request_id == "job-1"
    assert answer.served == pb.Served(
        tenant="acme", adapter="ada", version="v3", generation=7, digest=DIGEST
    )
    metadata = dict(await call.initial_metadata())
    assert metadata["x-lorapool-adapter"] == "ada"
    assert metadata["x-lorapool-version"] == "v3"
    assert metadata["x-lorapool-generation"] == "7"
    assert metadata["x-lorapool-digest"] == DIGEST


async def test_a_stream_starts_goes_on_and_completes(stub: Stub) -> None:
    call = stub.StreamGenerate(streamed(adapter="ada"))
    events = await rest(call)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "completed"
    assert set(kinds[1:-1]) == {"delta"}
    assert text_of(events) == "hello wörld"
    assert events[0].started.served == events[-1].completed.served
    assert dict(await call.initial_metadata())["x-lorapool-digest"] == DIGEST


async def test_words_reach_the_caller_before_the_answer_is_whole(
    stub: Stub, engine: ScriptedEngine
) -> None:
    gate = threading.Event()
    engine.script = follows(words=["one ", "two"], gate=gate)
    call = stub.StreamGenerate(streamed())
    assert (await call.read()).WhichOneof("event") == "started"
    assert (await call.read()).delta.text == "one "
    gate.set()
    assert (await call.read()).delta.text == "two"


async def test_model_info_is_told(stub: Stub) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    assert info.base_fingerprint == DIGEST
    assert (info.max_context, info.running, info.waiting) == (256, 1, 2)
    assert (info.pool.pages_total, info.pool.pages_free) == (8, 7)


@pytest.mark.parametrize("unary", [True, False])
async def test_a_caller_that_leaves_stops_the_engine(
    stub: Stub, engine: ScriptedEngine, unary: bool
) -> None:
    engine.script = hangs
    call = (
        stub.Generate(asked(request_id="gone"))
        if unary
        else stub.StreamGenerate(streamed(request_id="gone"))
    )
    await until(lambda: len(engine.submitted) == 1)
    assert engine.cancelled == []
    call.cancel()
    await until(lambda: engine.cancelled == ["gone"])


async def test_a_server_that_forgot_to_cancel_would_be_caught(
    stub: Stub, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(engine, "cancel", lambda request_id: ended.set())
    engine.script = hangs
    call = stub.StreamGenerate(streamed())
    await until(lambda: len(engine.submitted) == 1)
    call.cancel()
    await until(ended.is_set)
    assert engine.all_threads[0].is_alive()


async def test_a_caller_that_leaves_while_its_reader_is_stuck_stops_the_engine(
    stub: Stub, engine: ScriptedEngine
) -> None:
    gate = threading.Event()
    engine.script = follows(words=["x" * 600_000, "rest"], gate=gate)
    call = stub.StreamGenerate(streamed(request_id="stuck"))
    await until(lambda: len(engine.submitted) == 1)
    await call.read()
    call.cancel()
    await until(lambda: engine.cancelled == ["stuck"])
    gate.set()


async def test_a_deadline_reaches_the_engine_and_ends_the_call(
    stub: Stub, engine: ScriptedEngine
) -> None:
    engine.script = hangs
    before = asyncio.get_running_loop().time()
    code, _ = await failure(stub.Generate(asked(request_id="late"), timeout=0.3))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: engine.cancelled == ["late"])
    deadline = engine.submitted[0].deadline
    assert deadline is not None
    assert before < deadline <= before + 0.4


async def test_a_call_without_a_deadline_gets_the_longest_one(
    stub: Stub, engine: ScriptedEngine
) -> None:
    before = asyncio.get_running_loop().time()
    await stub.Generate(asked())
    await stub.Generate(asked(), timeout=3600)
    for request in engine.submitted:
        assert request.deadline is not None
        assert before + 29 < request.deadline < before + 35


async def test_a_call_ends_even_when_the_engine_never_answers(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicers, "ANSWER_GRACE", 0.05)
    engine.script = lambda request, emit, cancelled: None
    config = ServerConfig(
        listen="127.0.0.1:0", drain_delay=0, drain_seconds=0, max_request_seconds=0.2
    )
    node = NodeServer(engine, config)
    await node.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(asked(), timeout=10)
        code, info = await failure(call)
    assert (code, info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert len(engine.cancelled) == 1
    await node.drain()


ENDINGS = [kind for kind in CODES if not issubclass(kind, errors.InvalidRequest)]


@pytest.mark.parametrize("kind", ENDINGS)
async def test_every_error_of_the_table_reaches_the_caller_by_code_and_reason(
    stub: Stub, engine: ScriptedEngine, kind: type[errors.NodeError]
) -> None:
    error = kind("no", retry_after=0.01)
    engine.script = fails(error)
    assert await failure(stub.Generate(asked())) == (CODES[kind], told(kind))
    assert await failure(stub.StreamGenerate(streamed())) == (CODES[kind], told(kind))
    engine.refuses = error
    assert await failure(stub.StreamGenerate(streamed())) == (CODES[kind], told(kind))


def told(kind: type[errors.NodeError]) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=kind.reason, domain="lorapool.dev")


async def test_a_bug_is_answered_without_its_text(stub: Stub, engine: ScriptedEngine) -> None:
    engine.refuses = ZeroDivisionError("secret")
    code, info = await failure(stub.Generate(asked()))
    assert (code, info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in str(info)
    engine.refuses = None
    assert (await stub.Generate(asked())).text == "hello wörld"


async def test_a_bad_field_is_named(stub: Stub, engine: ScriptedEngine) -> None:
    code, info = await failure(stub.Generate(asked(sampling=pb.Sampling(top_p=2))))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert info.metadata["field"] == "sampling.top_p"
    code, info = await failure(stub.StreamGenerate(pb.StreamGenerateRequest()))
    assert info.metadata["field"] == "request"
    assert engine.submitted == []


@pytest.mark.parametrize("header", ["bob", "ada@v3", ""])
async def test_a_request_that_is_routed_as_another_adapters_is_refused(
    stub: Stub, engine: ScriptedEngine, header: str
) -> None:
    metadata = (("x-adapter-id", header),)
    for call in (
        stub.Generate(asked(adapter="ada@v3"), metadata=metadata),
        stub.StreamGenerate(streamed(adapter="ada@v3"), metadata=metadata),
        stub.Generate(asked(adapter="ada@v3"), metadata=(("x-adapter-id", "ada"), *metadata)),
    ):
        code, info = await failure(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert info.metadata["field"] == "x-adapter-id"
    assert engine.submitted == []
    await stub.Generate(asked(adapter="ada@v3"), metadata=(("x-adapter-id", "ada"),))
    await stub.Generate(asked(), metadata=(("x-adapter-id", ""),))


async def test_a_request_id_in_flight_is_refused_and_free_again_afterwards(
    stub: Stub, engine: ScriptedEngine
) -> None:
    gate = threading.Event()
    engine.script = follows(words=["one ", "two"], gate=gate)
    first = stub.StreamGenerate(streamed(request_id="same"))
    await first.read()
    code, info = await failure(stub.Generate(asked(request_id="same")))
    assert (code, info.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_IN_FLIGHT")
    assert engine.cancelled == []
    gate.set()
    assert (await rest(first))[-1].WhichOneof("event") == "completed"
    assert (await stub.Generate(asked(request_id="same"))).text == "one two"


async def test_a_refused_request_does_not_keep_its_id(stub: Stub, engine: ScriptedEngine) -> None:
    engine.refuses = errors.QueueFull("full", retry_after=0.1)
    await failure(stub.Generate(asked(request_id="again")))
    engine.refuses = None
    assert (await stub.Generate(asked(request_id="again"))).text == "hello wörld"


async def test_a_cancelled_id_is_held_until_the_engine_is_done_with_it(
    stub: Stub, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_to_stop = threading.Event()
    real_cancel = engine.cancel
    monkeypatch.setattr(engine, "cancel", lambda request_id: asked_to_stop.set())
    engine.script = hangs
    call = stub.StreamGenerate(streamed(request_id="same"))
    await call.read()
    call.cancel()
    await until(asked_to_stop.is_set)
    code, _ = await failure(stub.Generate(asked(request_id="same")))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    real_cancel("same")
    engine.all_threads[0].join(5)
    engine.script = says("free")
    assert (await stub.Generate(asked(request_id="same"))).text == "free"


async def test_a_slow_reader_gets_every_word_in_few_messages(
    stub: Stub, engine: ScriptedEngine
) -> None:
    words = [f"{index:0100d} " for index in range(20_000)]
    engine.script = says(*words)
    call = stub.StreamGenerate(streamed())
    await call.read()
    await asyncio.to_thread(engine.all_threads[0].join, 10)
    # Two megabytes were said; what flow control lets through without a reader is far less.
    events = await rest(call)
    assert text_of(events) == "".join(words)
    assert len(events) < 5_000


async def test_a_flood_of_bad_requests_does_not_disturb_a_running_stream(
    stub: Stub, engine: ScriptedEngine
) -> None:
    gate = threading.Event()
    engine.script = follows(words=["one ", "two ", "three"], gate=gate)
    call = stub.StreamGenerate(streamed(request_id="calm"))
    assert (await call.read()).WhichOneof("event") == "started"
    bad = [asked(adapter="../x"), asked(prompt="x" * 900_000), asked(request_id="calm")]
    outcomes = await asyncio.gather(*(failure(stub.Generate(bad[i % 3])) for i in range(150)))
    assert {code for code, _ in outcomes} == {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
    }
    gate.set()
    assert text_of(await rest(call)) == "one two three"
    assert engine.cancelled == []
    assert len(engine.submitted) == 1


async def test_a_message_over_the_limit_is_refused_by_the_transport(stub: Stub) -> None:
    code, _ = await failure(stub.Generate(asked(prompt="x" * 2**20)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_duplicate_ids_let_through_would_be_caught(
    engine: ScriptedEngine, server: NodeServer, stub: Stub
) -> None:
    class Forgetful(set[str]):
        def add(self, element: str) -> None:
            pass

    servicer: InferenceServicer = server._servicer
    servicer._in_flight = Forgetful()
    gate = threading.Event()
    engine.script = follows(words=["one ", "two"], gate=gate)
    calls = [stub.StreamGenerate(streamed(request_id="same")) for _ in range(2)]
    await until(lambda: len(engine.submitted) == 2)
    gate.set()
    for call in calls:
        await rest(call)
