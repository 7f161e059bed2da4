"""What a scrape answers, as numbers."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """Samples by name and labels."""

    text: str
    samples: Mapping[tuple[str, Labels], float]

    def of(self, name: str, **labels: str) -> float:
        """The one sample of this name and these labels."""
        return self.samples[name, frozenset(labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """All samples of the name that have these labels among theirs, added up."""
        return sum(
            value
            for (found, own), value in self.samples.items()
            if found == name and labels.items() <= dict(own).items()
        )

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(own) for found, own in self.samples if found == name]

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


def read(text: str) -> Scrape:
    """Parsed by the Prometheus client's own parser; a sample told twice is an error."""
    samples: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples, f"told twice: {key}"
            samples[key] = sample.value
    return Scrape(text, samples)


def scrape(address: str) -> Scrape:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return read(answer.read().decode())
