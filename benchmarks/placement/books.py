"""What nodes say they have done, from their metrics."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

SCRAPE_S = 30.0


@dataclass(frozen=True, slots=True)
class Books:
    """Of all nodes, in their order; counts since they started, or since earlier books."""

    asked: tuple[Counter[str], ...]
    """Requests that ended, by adapter."""
    loaded: tuple[int, ...]
    """Versions that became resident."""
    on_device: tuple[int, ...]
    """Versions there now."""
    on_host: tuple[int, ...]

    def since(self, before: Books) -> Books:
        """What was counted after `before`."""
        return Books(
            tuple(now - then for now, then in zip(self.asked, before.asked, strict=True)),
            tuple(now - then for now, then in zip(self.loaded, before.loaded, strict=True)),
            self.on_device,
            self.on_host,
        )

    @property
    def requests(self) -> int:
        return sum(asked.total() for asked in self.asked)

    @property
    def device_hits(self) -> float:
        """The share of requests for which nothing had to be loaded."""
        return 1 - sum(self.loaded) / self.requests

    @property
    def affinity(self) -> float:
        """The share of requests on the node that has most of their adapter's."""
        names = set().union(*self.asked)
        return sum(max(asked[name] for asked in self.asked) for name in names) / self.requests

    @property
    def working_sets(self) -> list[int]:
        """How many adapters each node was asked for."""
        return [len(asked) for asked in self.asked]

    def at(self, owners: dict[str, int]) -> float:
        """The share of requests on the node that `owners` names for their adapter."""
        right = (
            count
            for node, asked in enumerate(self.asked)
            for name, count in asked.items()
            if owners[name] == node
        )
        return sum(right) / self.requests


def read(scrapes: Sequence[str]) -> Books:
    """Of nodes that give every adapter a series of its own (LORAPOOL_METRICS_ADAPTERS)."""
    pages = [_page(address) for address in scrapes]
    return Books(
        tuple(_by(page, "lorapool_version_requests_total", "adapter") for page in pages),
        tuple(_by(page, "lorapool_adapter_loads_total", "source").total() for page in pages),
        tuple(_by(page, "lorapool_versions", "tier")["device"] for page in pages),
        tuple(_by(page, "lorapool_versions", "tier")["host"] for page in pages),
    )


def _page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=SCRAPE_S) as answer:
        body: bytes = answer.read()
    return body.decode()


def _by(page: str, series: str, label: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == series and sample.value:
                found[sample.labels[label]] += int(sample.value)
    return found
