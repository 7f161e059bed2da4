"""Requests that ended, made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inference_node.ended import Ended, Outcome
from inference_node.request import Served, Timings

DIGEST = "ab" * 32
ENDED = Ended(
    method="Generate",
    request_id="r1",
    caller="backend",
    tenant="acme",
    adapter="pirate@v2",
    served=Served("acme", "pirate", "v2", 7, DIGEST),
    outcome=Outcome.COMPLETED,
    reason="STOP",
    prompt_tokens=5,
    cached_tokens=2,
    generated_tokens=11,
    seconds=0.5,
    first_token=0.1,
    timings=Timings(queue=0.01, adapter_load=0.005, ttft=0.1, decode=0.4),
)


def ended(**changes: Any) -> Ended:
    return replace(ENDED, **changes)
