"""Traces by OpenTelemetry: from a client's call to the store's files, in one trace.

    client: lorapool.v1.InferenceService/Generate            (in the caller's own trace)
      node: lorapool.v1.InferenceService/Generate            (W3C traceparent in the metadata)
        adapter.resolve, adapter.fetch, adapter.verify       (loader threads; of the request that
                                                              the load was begun for)
        queue, adapter.wait, prefill, decode                 (told by the engine when all is over)

Only this file imports opentelemetry. Where spans go, and which are kept, is the SDK's business: its
own OTEL_* variables say so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inference_node.ended import Ended, Outcome
from inference_node.telemetry.request_log import told
from inference_node.tracing import Attributes, Calling, Headers, Received, Serving, Trace

NAME = "lorapool"
FAULTS = frozenset({"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNIMPLEMENTED"})
"""Statuses that are the node's doing, and make its span an error."""
_NANOSECONDS = 1e9


def otlp_provider() -> TracerProvider:
    """Sends spans where OTEL_EXPORTER_OTLP_ENDPOINT says, in the background."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return provider_to(OTLPSpanExporter())


def provider_to(exporter: SpanExporter) -> TracerProvider:
    """Called `lorapool` where OTEL_SERVICE_NAME says nothing else."""
    made = TracerProvider(resource=Resource.create().merge(_unnamed()))
    made.add_span_processor(BatchSpanProcessor(exporter))
    return made


class OtelTracing:
    """`inference_node.tracing.Tracing`; without a provider, by the one the process has set."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer(NAME, tracer_provider=provider)
        self._propagator = TraceContextTextMapPropagator()

    def calling(self, method: str) -> Calling:
        span = self._tracer.start_span(method, kind=SpanKind.CLIENT, attributes=_rpc(method))
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, trace.set_span_in_context(span))
        return _Call(span, tuple(carrier.items()))

    @contextmanager
    def serving(self, method: str, headers: Received) -> Iterator[Serving]:
        carrier = {key: value for key, value in headers() or () if isinstance(value, str)}
        parent = self._propagator.extract(carrier, Context())
        with self._tracer.start_as_current_span(
            method,
            parent,
            kind=SpanKind.SERVER,
            attributes=_rpc(method),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield _Served(span)

    def current(self) -> Trace | None:
        found = trace.get_current_span()
        return contexts.get_current() if found.get_span_context().is_valid else None

    @contextmanager
    def work(self, name: str, parent: Trace | None, attributes: Attributes) -> Iterator[None]:
        above = parent if isinstance(parent, Context) else Context()
        with self._tracer.start_as_current_span(name, above, attributes=attributes):
            yield

    def past(self, name: str, began: float, ended: float) -> None:
        """A child of the current span that is over already; seconds since 1970."""
        span = self._tracer.start_span(name, start_time=round(began * _NANOSECONDS))
        span.end(round(ended * _NANOSECONDS))


class RequestSpans:
    """A witness: says on the call's span what served it, and below it where the time went."""

    def __init__(self, tracing: OtelTracing) -> None:
        self._tracing = tracing

    def ended(self, ended: Ended) -> None:
        span = trace.get_current_span()
        if not span.is_recording():
            return
        for name, value in told(ended).items():
            if isinstance(value, str | int | float):
                span.set_attribute(f"lorapool.{name}", value)
        span.set_attribute("gen_ai.usage.input_tokens", ended.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", ended.generated_tokens)
        if ended.outcome is Outcome.FAILED:
            span.set_status(Status(StatusCode.ERROR, ended.reason))
        if (took := ended.timings) is not None:
            accepted = time.time() - took.ttft - took.decode
            first = accepted + took.ttft
            self._tracing.past("queue", accepted, accepted + took.queue)
            if ended.adapter:
                self._tracing.past("adapter.wait", accepted, accepted + took.adapter_load)
            self._tracing.past("prefill", accepted + took.queue, first)
            self._tracing.past("decode", first, first + took.decode)

    def answered(self, method: str, code: str) -> None: ...

    def leaving(self) -> None: ...


class _Call:
    def __init__(self, span: Span, headers: Headers) -> None:
        self._span = span
        self.headers = headers

    def end(self, problem: str = "") -> None:
        if problem:
            self._span.set_status(Status(StatusCode.ERROR, problem))
        self._span.end()


class _Served:
    def __init__(self, span: Span) -> None:
        self._span = span

    def answered(self, code: str) -> None:
        self._span.set_attribute("rpc.response.status_code", code)
        if code in FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, code))


def _rpc(method: str) -> dict[str, str]:
    return {"rpc.system.name": "grpc", "rpc.method": method}


def _unnamed() -> Resource:
    """The SDK's own word for a service without a name is not said."""
    named = Resource.create().attributes.get("service.name", "")
    return Resource({} if not str(named).startswith("unknown_service") else {"service.name": NAME})
