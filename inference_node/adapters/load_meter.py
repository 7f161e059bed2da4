"""What looking up and loading adapters has taken since the engine started. Pure Python."""

from __future__ import annotations

from collections import Counter

from inference_node.distribution import Histogram

FOUND = "FOUND"
"""Beside the reasons of errors: the reference meant something."""
FROM_STORE, FROM_HOST = "store", "host"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class LoadMeter:
    """For the engine thread."""

    def __init__(self) -> None:
        self.lookups: Counter[str] = Counter()
        self.loads: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.fetched_bytes = 0
        self.resolve, self.fetch, self.verify, self.stage, self.promote, self.whole = (
            Histogram(SECONDS) for _ in range(6)
        )

    def looked_up(self, seconds: float, outcome: str = FOUND) -> None:
        self.lookups[outcome] += 1
        self.resolve.observe(seconds)

    def fetched(self, *, fetch: float, verify: float, size: int) -> None:
        self.fetched_bytes += size
        self.fetch.observe(fetch)
        self.verify.observe(verify)

    def arrived(self, source: str, *, promote: float, whole: float) -> None:
        """A version is resident, `whole` seconds after somebody first wanted it loaded."""
        self.loads[source] += 1
        self.promote.observe(promote)
        self.whole.observe(whole)
