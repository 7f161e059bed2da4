"""Bugs for a node of the soak to have: each has to be noticed, or its zeros mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from inference_node.engine.admission import Admission
from inference_node.engine.loop import EngineLoop
from inference_node.engine.sequence import Sequence
from tests.chaos.stateful.bugs import BUGS, follow_the_name, remember_routing

FLIP, STALE_MEMO = "a flip in mid-request", "a stale routing memo"
NAMED_CACHE, KEPT_LEASE = "a prefix cache keyed by name", "a lease that outlives who left"


def flip_running() -> AbstractContextManager[Any]:
    """A running request goes on with what its name means by then."""
    honest = EngineLoop._turn

    def turn(self: EngineLoop) -> bool:
        stuck = honest(self)
        for sequence in self._scheduler.running:
            follow_the_name(self, sequence)
        return stuck

    return patch.object(EngineLoop, "_turn", turn)


def keep_lease() -> AbstractContextManager[Any]:
    """The lease of a caller who leaves in the middle of an answer is never given back."""
    honest = Admission.release

    def release(self: Admission, sequence: Sequence) -> None:
        short = sequence.produced < sequence.request.stopping.max_new_tokens
        if not (short and sequence.lease is not None):
            honest(self, sequence)

    return patch.object(Admission, "release", release)


CONTROLS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    FLIP: flip_running,
    STALE_MEMO: remember_routing,
    NAMED_CACHE: BUGS["prefix-without-version"],
    KEPT_LEASE: keep_lease,
}
