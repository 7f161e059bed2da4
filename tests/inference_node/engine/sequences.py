"""Requests as the engine holds them, without a tokenizer: text plays no part here."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import cast

from inference_node.adapters.versions import Entry, VersionKey
from inference_node.engine.sequence import Sequence
from inference_node.request import Request, Sampling, Stopping
from inference_node.text import Detokenizer, StopMatcher


def make_sequence(
    prompt: int | Tokens[int] = 4,
    *,
    order: int = 0,
    sampling: Sampling | None = None,
    stopping: Stopping | None = None,
    seed: int = 0,
    deadline: float | None = None,
    tenant: str = "t",
    adapter: str = "",
    priority: int = 0,
) -> Sequence:
    """`prompt` is the tokens, or how many."""
    request = Request(
        request_id=f"r{order}",
        tenant=tenant,
        adapter=adapter,
        prompt=tuple(range(prompt)) if isinstance(prompt, int) else tuple(prompt),
        sampling=sampling or Sampling(),
        stopping=stopping or Stopping(),
        deadline=deadline,
        priority=priority,
    )
    vdig = f"content of {tenant}/{adapter}"
    return Sequence(
        request=request,
        on_event=lambda event: None,
        accepted_at=0.0,
        order=order,
        seed=seed,
        detokenizer=cast(Detokenizer, None),
        stops=StopMatcher(()),
        entry=Entry(tenant, adapter, "v1", 1, VersionKey(tenant, vdig)) if adapter else None,
    )
