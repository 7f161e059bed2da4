"""What is written about the series is what the code says."""

from __future__ import annotations

from inference_node.telemetry.series import SERIES
from inference_node.telemetry.table import PAGE, renewed


def test_the_page_lists_every_series_as_the_catalogue_has_it() -> None:
    page = PAGE.read_text()
    assert page == renewed(page), "run python -m inference_node.telemetry.table"
    assert all(f"`{one.name}`" in page for one in SERIES)
