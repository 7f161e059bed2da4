"""One trace from the client's call to the store's files, and nothing of it when it is off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from adapter_store.memory import MemoryStore
from inference_node.client import AsyncClient, Client
from inference_node.config import EngineConfig
from inference_node.errors import AdapterNotFound
from inference_node.request import Stopping
from inference_node.rpc.accounts import Witnesses
from inference_node.telemetry.otel import OtelTracing, RequestSpans
from tests.adapter_store.waiting import wait_until
from tests.inference_node.harness import PATIENCE, Node, start_node
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.tiny import make_adapter

CALL = "lorapool.v1.InferenceService/Generate"
STREAM = "lorapool.v1.InferenceService/StreamGenerate"
SOME = Stopping(max_new_tokens=4, ignore_eos=True)
SPOKEN = "canary prompt 7f3a"


class Traced:
    """A node, and the spans of it and of its clients, each by a provider of its own."""

    def __init__(self, node: Node, address: str, kept: InMemorySpanExporter) -> None:
        self.node = node
        self.address = address
        self._kept = kept
        self.apart = OtelTracing(provider(kept))

    def spans(self, *, number: int, name: str) -> list[ReadableSpan]:
        """All that have ended, once `number` of that name have."""

        def there() -> bool:
            return sum(s.name == name for s in self._kept.get_finished_spans()) >= number

        wait_until(there, within_s=PATIENCE)
        return list(self._kept.get_finished_spans())


def provider(kept: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(kept))
    return made


@pytest.fixture
def traced(tiny_config: EngineConfig, tmp_path: Path) -> Iterator[Traced]:
    kept = InMemorySpanExporter()
    tracing = OtelTracing(provider(kept))
    node = start_node(tiny_config, MemoryStore(), tracing=tracing)
    made = make_adapter(tmp_path / "a", dict(node.card.modules), rank=8, seed=1)
    node.publish("a", made, label="v1")
    witness = Witnesses(RequestSpans(tracing))
    with running_server(node.engine, CONFIG, witness=witness, tracing=tracing) as server:
        yield Traced(node, f"127.0.0.1:{server.port}", kept)
    node.close()


def parents(spans: list[ReadableSpan]) -> dict[str, str]:
    """By the name of a span, that of the one above it, whose kind is told apart."""
    names = {s.get_span_context().span_id: label(s) for s in spans}
    return {label(s): names[s.parent.span_id] for s in spans if s.parent is not None}


def label(span: ReadableSpan) -> str:
    kinds = {SpanKind.CLIENT: "client", SpanKind.SERVER: "node"}
    return kinds.get(span.kind, span.name)


def test_a_cold_request_is_one_trace_from_the_client_to_the_stores_files(traced: Traced) -> None:
    with Client(traced.address, tracing=traced.apart) as client:
        answer = client.generate(SPOKEN, adapter="a", stopping=SOME, request_id="r1")
    spans = traced.spans(number=2, name=CALL)
    assert len({span.get_span_context().trace_id for span in spans}) == 1
    assert parents(spans) == {
        "node": "client",
        "adapter.resolve": "node",
        "adapter.fetch": "node",
        "adapter.verify": "node",
        "queue": "node",
        "adapter.wait": "node",
        "prefill": "node",
        "decode": "node",
    }
    node = next(span for span in spans if label(span) == "node")
    told = dict(node.attributes or {})
    assert told["lorapool.digest"] == answer.served.digest
    assert told["lorapool.request_id"] == "r1"
    assert told["lorapool.generation"] == 1
    assert told["gen_ai.usage.output_tokens"] == 4
    assert told["rpc.response.status_code"] == "OK"
    for span in spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        assert SPOKEN not in span.to_json()


def test_a_warm_request_looks_nothing_up_and_the_next_trace_is_another(traced: Traced) -> None:
    with Client(traced.address, tracing=traced.apart) as client:
        for _ in range(2):
            client.generate("x", adapter="a", stopping=SOME)
    spans = traced.spans(number=4, name=CALL)
    traces = {span.get_span_context().trace_id for span in spans}
    assert len(traces) == 2
    assert sum(span.name == "adapter.fetch" for span in spans) == 1


def test_a_stream_ends_its_span_when_it_ends_blocking_or_not(traced: Traced) -> None:
    with Client(traced.address, tracing=traced.apart) as client:
        assert list(client.stream("x", stopping=SOME))
    assert parents(traced.spans(number=2, name=STREAM))["node"] == "client"

    async def ask() -> None:
        async with AsyncClient(traced.address, tracing=traced.apart) as client:
            await client.generate("x", stopping=SOME)
            async with client.stream("x", stopping=SOME) as stream:
                await stream.finish()

    asyncio.run(ask())
    spans = traced.spans(number=4, name=STREAM)
    assert len({span.get_span_context().trace_id for span in spans}) == 3


def test_a_call_in_a_trace_of_the_callers_own_stays_in_it(traced: Traced) -> None:
    tracer = trace.get_tracer("backend", tracer_provider=provider(traced._kept))
    with (
        tracer.start_as_current_span("backend") as above,
        Client(traced.address, tracing=traced.apart) as client,
    ):
        client.generate("x", stopping=SOME)
    spans = traced.spans(number=2, name=CALL)
    assert {s.get_span_context().trace_id for s in spans} == {above.get_span_context().trace_id}


def test_what_is_not_found_is_said_on_both_sides_and_is_not_the_nodes_fault(
    traced: Traced,
) -> None:
    with Client(traced.address, tracing=traced.apart) as client, pytest.raises(AdapterNotFound):
        client.generate("x", adapter="nobody", stopping=SOME)
    spans = {label(span): span for span in traced.spans(number=2, name=CALL)}
    assert spans["client"].status.status_code is StatusCode.ERROR
    assert spans["client"].status.description == "ADAPTER_NOT_FOUND"
    assert spans["node"].status.status_code is StatusCode.UNSET
    assert (spans["node"].attributes or {})["lorapool.reason"] == "ADAPTER_NOT_FOUND"
    assert spans["adapter.resolve"].status.status_code is StatusCode.ERROR


def test_headers_that_name_no_trace_begin_one(traced: Traced) -> None:
    with Client(traced.address) as client:
        client.generate("x", stopping=SOME)
    (node,) = [s for s in traced.spans(number=1, name=CALL) if label(s) == "node"]
    assert node.parent is None


def imported_by(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_what_is_off_is_not_imported() -> None:
    client = imported_by("import inference_node.client")
    assert not client & {"opentelemetry", "prometheus_client"}
    # Transformers imports OpenTelemetry where it finds it; we do not.
    node = imported_by("import inference_node.rpc.server, inference_node.cli.telling")
    assert not node & {"inference_node.telemetry.otel", "inference_node.telemetry.metrics"}
    assert "prometheus_client" not in node


def test_control_what_is_on_is_imported() -> None:
    assert "opentelemetry" in imported_by("import inference_node.telemetry.otel")


def test_spans_are_sent_over_otlp(
    traced: Traced, monkeypatch: pytest.MonkeyPatch, collector: Callable[[], tuple[str, list[Any]]]
) -> None:
    from inference_node.telemetry.otel import otlp_provider

    address, received = collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
    sent = otlp_provider()
    with OtelTracing(sent).work("adapter.fetch", None, {"lorapool.adapter": "a"}):
        pass
    assert sent.force_flush(10_000)
    sent.shutdown()
    (resource,) = received[0].resource_spans
    named = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert named["service.name"] == "lorapool"
    assert resource.scope_spans[0].spans[0].name == "adapter.fetch"


@pytest.fixture
def collector() -> Iterator[Callable[[], tuple[str, list[Any]]]]:
    """A collector of OpenTelemetry's own protocol, on loopback."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    from opentelemetry.proto.collector.trace.v1 import (
        trace_service_pb2,
        trace_service_pb2_grpc,
    )

    received: list[Any] = []

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            received.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)

    def start() -> tuple[str, list[Any]]:
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return f"127.0.0.1:{port}", received

    yield start
    server.stop(None).wait()
