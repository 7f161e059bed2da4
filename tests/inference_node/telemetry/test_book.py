"""What has ended is counted once, whoever has series of its own."""

from __future__ import annotations

from inference_node.request import Served
from inference_node.telemetry import series
from inference_node.telemetry.book import Book
from inference_node.telemetry.page import Page
from tests.inference_node.telemetry.ends import DIGEST, ended

PERIOD = 300.0


def test_an_adapter_that_loses_its_place_before_it_was_used_takes_no_count_with_it() -> None:
    now = 0.0
    book = Book(adapters=1, clock=lambda: now)

    def serve(adapter: str, times: int) -> None:
        for _ in range(times):
            book.ended(ended(served=Served("acme", adapter, "v1", 1, DIGEST)))

    serve("first", 1)
    serve("brief", 3)
    now += PERIOD
    serve("late", 10)
    now += PERIOD
    serve("late", 1)
    page = Page()
    book.write(page)
    told = {
        sample.labels["adapter"]: sample.value
        for family in page.families()
        for sample in family.samples
        if sample.name == series.VERSION_REQUESTS.name and sample.labels["outcome"] == "completed"
    }
    assert told == {"late": 1, series.OTHER: 13}
