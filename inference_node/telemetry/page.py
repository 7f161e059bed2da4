"""One answer to a scrape, as it is filled in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.utils import floatToGoString

from inference_node.distribution import Distribution
from inference_node.telemetry.series import Kind, Series


class Page:
    """Series by the order in which they are first filled in; one without a value is not shown."""

    def __init__(self) -> None:
        self._simple: dict[Series, CounterMetricFamily | GaugeMetricFamily] = {}
        self._spread: dict[Series, HistogramMetricFamily] = {}

    def put(self, series: Series, value: float, *labels: str) -> None:
        """A counter's or a gauge's value; labels in the order of the series'."""
        assert len(labels) == len(series.labels), series.name
        found = self._simple.get(series)
        if found is None:
            assert series.kind is not Kind.HISTOGRAM
            make = CounterMetricFamily if series.kind is Kind.COUNTER else GaugeMetricFamily
            found = self._simple[series] = make(series.name, series.help, labels=series.labels)
        found.add_metric(labels, value)

    def spread(self, series: Series, found: Distribution, *labels: str) -> None:
        """A histogram's counts."""
        assert series.kind is Kind.HISTOGRAM
        assert len(labels) == len(series.labels), series.name
        family = self._spread.get(series)
        if family is None:
            family = HistogramMetricFamily(series.name, series.help, labels=series.labels)
            self._spread[series] = family
        bounds = [*map(floatToGoString, found.bounds), "+Inf"]
        counts = accumulate(found.counts)
        family.add_metric(labels, list(zip(bounds, counts, strict=True)), found.total)

    def families(self) -> Iterator[Metric]:
        yield from self._simple.values()
        yield from self._spread.values()
