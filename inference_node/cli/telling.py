"""What a node tells beside its answers, opened from its settings: log, audit, metrics."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from inference_node.cli.console import say
from inference_node.cli.settings import NodeSettings
from inference_node.engine.loop import EngineLoop
from inference_node.errors import BadConfiguration
from inference_node.rpc.accounts import Witness, Witnesses
from inference_node.telemetry.audit import Audit
from inference_node.telemetry.refused import RefusedRecords
from inference_node.telemetry.request_log import RequestLog
from inference_node.tracing import OFF, Tracing

NO_METRICS = "nowhere: LORAPOOL_METRICS_LISTEN is not set"


@dataclass(frozen=True, slots=True)
class Telling:
    """Who is told what becomes of calls, and where scrapes are answered, in words."""

    witness: Witness
    metrics: str


@dataclass(frozen=True, slots=True)
class Traced:
    """How calls are traced, and who is told for it what becomes of them."""

    tracing: Tracing
    witnesses: tuple[Witness, ...]


def words(settings: NodeSettings) -> Callable[[str], None]:
    """How the node speaks to whoever started it: not in between the lines of a JSON log."""
    if settings.log_format == "json":
        return logging.getLogger("inference_node.serve").info
    return say


@contextlib.contextmanager
def open_audit(settings: NodeSettings) -> Iterator[Audit | None]:
    """Raises BadConfiguration when the file cannot be had."""
    if settings.audit_file is None:
        yield None
    else:
        with Audit(settings.audit_file) as audit:
            yield audit


@contextlib.contextmanager
def open_traces(settings: NodeSettings) -> Iterator[Traced]:
    """Raises BadConfiguration where OpenTelemetry is not installed."""
    if settings.traces == "off":
        yield Traced(OFF, ())
        return
    try:
        from inference_node.telemetry.otel import OtelTracing, RequestSpans, otlp_provider

        provider = otlp_provider()
    except ModuleNotFoundError as error:
        raise BadConfiguration(
            f"LORAPOOL_TRACES={settings.traces}, and {error.name} is not installed",
            hint="pip install 'lorapool[otel]'",
        ) from error
    tracing = OtelTracing(provider)
    try:
        yield Traced(tracing, (RequestSpans(tracing),))
    finally:
        provider.shutdown()


@contextlib.contextmanager
def telling(
    settings: NodeSettings,
    engine: EngineLoop,
    *,
    refused: RefusedRecords,
    audit: Audit | None,
    traced: Traced,
) -> Iterator[Telling]:
    """Raises BadConfiguration when there is no Prometheus client, or the address cannot be had."""
    witnesses: list[Witness] = [RequestLog(), *traced.witnesses]
    if audit is not None:
        witnesses.append(audit)
    listen = settings.metrics_address()
    if not listen:
        yield Telling(Witnesses(*witnesses), NO_METRICS)
        return
    try:
        from inference_node.telemetry.metrics import Metrics
    except ModuleNotFoundError as error:
        raise BadConfiguration(
            f"LORAPOOL_METRICS_LISTEN is set, and {error.name} is not installed",
            hint="pip install 'lorapool[node]'",
        ) from error
    with Metrics(
        engine,
        listen=listen,
        adapters=settings.metrics_adapters,
        records_refused=refused,
        audit=audit,
    ) as metrics:
        where = f"http://{metrics.address}/metrics"
        yield Telling(Witnesses(*witnesses, metrics), where)
