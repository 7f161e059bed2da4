"""Nodes that are scraped while they serve."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from inference_node.client import Client
from inference_node.telemetry.metrics import Metrics
from inference_node.telemetry.refused import RefusedRecords
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import Node
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.telemetry.scrapes import Scrape, scrape


@dataclass
class Scraped:
    """A real node on a tiny base, a client of it, and what it tells."""

    node: Node
    client: Client
    address: str
    metrics: Metrics

    def scrape(self) -> Scrape:
        return scrape(self.address)


StartScraped = Callable[..., Scraped]


@pytest.fixture
def start_scraped(start_tiny: StartTiny) -> Iterator[StartScraped]:
    """Keyword arguments change the engine's settings; `adapters` have series of their own."""
    with contextlib.ExitStack() as stack:

        def start(*, adapters: int = 50, **changes: object) -> Scraped:
            node = start_tiny(**changes)
            metrics = stack.enter_context(
                Metrics(
                    node.engine,
                    listen="127.0.0.1:0",
                    adapters=adapters,
                    records_refused=RefusedRecords(),
                )
            )
            server = stack.enter_context(running_server(node.engine, CONFIG, witness=metrics))
            client = stack.enter_context(Client(f"127.0.0.1:{server.port}"))
            return Scraped(node, client, metrics.address, metrics)

        yield start
