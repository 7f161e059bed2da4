"""The client against the real server on loopback, over a scripted engine."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from inference_node import errors
from inference_node.client import (
    AsyncClient,
    CallFailed,
    Client,
    FinishReason,
    Message,
    NodeUnreachable,
    Output,
    Sampling,
    Served,
    Stopping,
    TokenLogprob,
    TopLogprob,
)
from tests.inference_node.rpc.scripted_engine import DIGEST, ScriptedEngine, fails, follows, hangs

ADA = Served("default", "ada", "v3", 7, DIGEST)


def wait_until_cancelled(engine: ScriptedEngine, request_id: str) -> None:
    deadline = time.monotonic() + 5
    while request_id not in engine.cancelled:
        assert time.monotonic() < deadline, "the engine was never told"
        threading.Event().wait(0.005)


def test_an_answer_comes_with_its_version_and_numbers(address: str, engine: ScriptedEngine) -> None:
    with Client(address) as client:
        answer = client.generate(
            [Message("user", "hi")],
            adapter="ada",
            sampling=Sampling(temperature=0.5, seed=9),
            stopping=Stopping(max_new_tokens=5, stop=("\n",)),
            request_id="job-1",
        )
    assert answer.text == "hello wörld"
    assert answer.served == ADA
    assert answer.finish_reason is FinishReason.STOP
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 2)
    assert (answer.seed, answer.timings.ttft, answer.request_id) == (9, 0.2, "job-1")
    request = engine.submitted[0]
    assert request.prompt == tuple(b"<user>hi")
    assert request.sampling == Sampling(temperature=0.5, seed=9)
    assert request.stopping == Stopping(max_new_tokens=5, stop=("\n",))


def test_text_and_token_ids_go_as_they_are(address: str, engine: ScriptedEngine) -> None:
    with Client(address) as client:
        client.generate("hi")
        client.generate([104, 105])
    assert [request.prompt for request in engine.submitted] == [(104, 105), (104, 105)]


def test_priority_and_affinity_go_with_the_request(address: str, engine: ScriptedEngine) -> None:
    with Client(address) as client:
        client.generate("hi", adapter="ada", priority=3, affinity_key="customer-7")
        list(client.stream("hi", adapter="ada", priority=-3, affinity_key="customer-8"))
    sent = [(request.priority, request.affinity_key) for request in engine.submitted]
    assert sent == [(3, "customer-7"), (-3, "customer-8")]


async def test_a_prompt_is_told_as_tokens_without_being_answered(
    address: str, engine: ScriptedEngine
) -> None:
    with Client(address) as client:
        assert client.tokenize("hi") == tuple(b"hi")
        assert client.tokenize([Message("user", "hi")]) == tuple(b"<user>hi")
        with pytest.raises(errors.InvalidRequest) as caught:
            client.tokenize("x" * 100_000)
        assert caught.value.field == "prompt"
        with pytest.raises(errors.InvalidRequest):
            client.tokenize([])
    async with AsyncClient(address) as client:
        assert await client.tokenize("hi") == tuple(b"hi")
    assert engine.submitted == []


def test_a_stream_tells_its_version_first_and_its_whole_answer_last(
    address: str, engine: ScriptedEngine
) -> None:
    gate = threading.Event()
    engine.script = follows(words=["one ", "two"], gate=gate)
    with Client(address) as client, client.stream("hi", adapter="ada") as stream:
        assert stream.served == ADA
        pieces = iter(stream)
        assert next(pieces) == "one "
        gate.set()
        assert list(pieces) == ["two"]
        assert stream.result.text == "one two"
        assert stream.result.token_ids == (0, 1)


ASKED = Output(logprobs=True, top_logprobs=2, echo=True)
TOP = (TopLogprob(65, "A", -0.5), TopLogprob(66, "B", -1.5))


def test_logprobs_and_the_prompt_come_with_the_answer_whole_or_streamed(address: str) -> None:
    with Client(address) as client:
        answer = client.generate("hi", output=ASKED)
        with client.stream("hi", output=ASKED) as stream:
            streamed = stream.result
    assert answer.logprobs == tuple(
        TokenLogprob(token, chr(token), -1.5, 2, TOP) for token in (0, 1)
    )
    assert answer.echo is not None
    assert (answer.echo.text, answer.echo.token_ids) == ("hi", tuple(b"hi"))
    assert [each.text for each in answer.echo.logprobs] == ["h", "i"]
    assert (streamed.logprobs, streamed.echo) == (answer.logprobs, answer.echo)


def test_what_is_not_asked_for_does_not_come(address: str) -> None:
    with Client(address) as client:
        answer = client.generate("hi")
    assert (answer.logprobs, answer.echo) == ((), None)


async def test_asyncio_brings_logprobs_as_they_come(address: str) -> None:
    async with AsyncClient(address) as client, client.stream("hi", output=ASKED) as stream:
        await stream.finish()
        assert len(stream.logprobs) == 2
        assert stream.echo is not None


def test_leaving_a_stream_stops_the_engine(address: str, engine: ScriptedEngine) -> None:
    engine.script = hangs
    with Client(address) as client:
        with client.stream("hi", request_id="left") as stream:
            assert next(iter(stream)) == "one "
        wait_until_cancelled(engine, "left")


def test_a_nodes_refusal_is_raised_as_the_nodes_own_error(
    address: str, engine: ScriptedEngine
) -> None:
    engine.refuses = errors.QueueFull("full", hint="wait", retry_after=0.25, details={"queue": "9"})
    with Client(address) as client, pytest.raises(errors.QueueFull) as caught:
        client.generate("hi")
    assert str(caught.value) == "full"
    assert caught.value.hint == "wait"
    assert caught.value.retry_after == 0.25
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.details == {"queue": "9"}


def test_a_failure_in_mid_stream_is_raised_where_it_is_read(
    address: str, engine: ScriptedEngine
) -> None:
    engine.script = fails(errors.AdapterCorrupt("bad bytes"))
    with Client(address) as client:
        stream = client.stream("hi", adapter="ada")
        with pytest.raises(errors.AdapterCorrupt, match="bad bytes"):
            list(stream)


def test_a_bad_field_is_named(address: str) -> None:
    with Client(address) as client, pytest.raises(errors.InvalidRequest) as caught:
        client.generate("hi", sampling=Sampling(top_p=3))
    assert caught.value.field == "sampling.top_p"
    assert "at most 1" in caught.value.problem


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [([Message("robot", "hi")], Sampling()), ([-1], Sampling()), ("hi", Sampling(top_k=-1))],
)
def test_what_no_message_can_hold_is_refused_before_it_is_sent(
    prompt: object, sampling: Sampling
) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(errors.InvalidRequest):
        client.generate(prompt, sampling=sampling)  # type: ignore[arg-type]


def test_a_node_that_is_not_there_is_unreachable() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(NodeUnreachable) as caught:
        client.generate("hi", timeout=10)
    assert "serve" in caught.value.hint


def test_a_deadline_is_raised_as_such(address: str, engine: ScriptedEngine) -> None:
    engine.script = hangs
    with Client(address) as client, pytest.raises(errors.DeadlineExpired):
        client.generate("hi", timeout=0.2, request_id="late")
    wait_until_cancelled(engine, "late")


def test_what_the_transport_refuses_is_raised_by_code(address: str) -> None:
    with Client(address) as client, pytest.raises(CallFailed, match="RESOURCE_EXHAUSTED"):
        client.generate("x" * 2**20)


def test_a_busy_store_is_asked_again(address: str, engine: ScriptedEngine) -> None:
    engine.refuses = errors.StoreDown("away", retry_after=0.05)
    timer = threading.Timer(0.08, lambda: setattr(engine, "refuses", None))
    timer.start()
    with Client(address) as client:
        assert client.generate("hi").text == "hello wörld"
    timer.join()


def test_a_node_says_whether_it_is_ready(address: str) -> None:
    with Client(address) as client:
        assert client.ready()
    with Client("127.0.0.1:1") as client, pytest.raises(NodeUnreachable):
        client.ready()


def test_model_info(address: str) -> None:
    with Client(address) as client:
        info = client.model_info()
    assert info == ScriptedEngine().info()


async def test_asyncio_generates_and_streams(address: str, engine: ScriptedEngine) -> None:
    async with AsyncClient(address) as client:
        assert (await client.generate("hi", adapter="ada")).served == ADA
        assert (await client.model_info()).name == "scripted"
        async with client.stream("hi", adapter="ada") as stream:
            assert await stream.started() == ADA
            assert stream.served == ADA
            with pytest.raises(CallFailed):
                _ = stream.result
            assert "".join([piece async for piece in stream]) == "hello wörld"
            assert stream.result.text == "hello wörld"
        engine.refuses = errors.AdapterNotFound("no such adapter")
        with pytest.raises(errors.AdapterNotFound):
            await client.generate("hi", adapter="bob")
        with pytest.raises(errors.AdapterNotFound):
            await client.stream("hi", adapter="bob").finish()


async def test_cancelling_the_task_stops_the_engine(address: str, engine: ScriptedEngine) -> None:
    engine.script = hangs
    async with AsyncClient(address) as client:
        task = asyncio.create_task(client.generate("hi", request_id="dropped"))
        async with asyncio.timeout(5):
            while not engine.submitted:
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until_cancelled, engine, "dropped")
