"""Versions that failed to load, which nobody fetches again just now. Pure Python."""

from __future__ import annotations

from collections.abc import Callable

from inference_node.adapters.backoff import Backoff, Delays
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.errors import EngineFailure, LoadFailed, NodeError

RETRIES = Delays(first=1.0, longest=60.0)
"""Of a version whose loading failed for a reason that may pass."""


class Setbacks(Backoff[VersionKey]):
    """And what requests for them are told meanwhile."""

    def __init__(self, *, clock: Callable[[], float], random: Callable[[], float]) -> None:
        super().__init__(RETRIES, clock=clock, random=random)

    def refusal(self, entry: Entry) -> NodeError | None:
        """Why the version is not fetched again just now; None when it may be."""
        error = self.error(entry.key)
        wait = self.until(entry.key) - self._clock()
        match error:
            case None:
                return None
            case EngineFailure():
                what = f"{entry.adapter}@{entry.label}"
                return LoadFailed(f"{what} failed to load a moment ago", retry_after=wait)
            case NodeError():
                return error.again(retry_after=None if error.retry_after is None else wait)
        raise error
