"""Somebody who is to be given a version: a request, or an operator's order. Pure Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapter_store.layout import AdapterRef
from inference_node.adapters.versions import Entry
from inference_node.errors import NodeError
from inference_node.tracing import Trace


@dataclass(slots=True, eq=False)
class Claim:
    """Ends by being granted or refused, once, unless it is withdrawn before."""

    token: str
    """Names it, and no other claim ever, to whoever looks up what its reference means."""
    ref: AdapterRef
    min_generation: int
    bind: Callable[[Entry], None]
    """Told which version it is to be, for good."""
    grant: Callable[[], None]
    """Told that the version may be leased now."""
    refuse: Callable[[NodeError], None]
    affinity: str = ""
    """During a split of the adapter, equal keys get the same version; empty the active one."""
    patient: bool = False
    """It waits for pages and has nobody make way for it."""
    trace: Trace | None = None
    """What looking up and loading for it is told as a part of."""
