"""Inter-token latency while adapters are published and swapped below running requests.

A publisher works on another machine: its versions are made and hashed before, and what it wrote
lands in the node's store, with a hint, when its time comes. From there on everything is the node's:
look, fetch, verify, lay out, fill pages, swap.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.cpu.ours import Engine


def swap(
    engine: Engine,
    *,
    prompts: Sequence[Sequence[int]],
    adapters: Sequence[str],
    new: int,
    every_s: float,
    seed: int,
) -> dict[str, Any]:
    """One token's time for every decode step of all requests; a publish each `every_s`, if any.

    Every adapter published is one that requests hold, so each swap leaves an old version to drain.
    """
    if every_s:
        engine.top_up_drafts(adapters, seed=seed)
    stop = threading.Event()
    published = 0

    def publish() -> None:
        nonlocal published
        while engine.drafts_left and not stop.wait(every_s):
            engine.deliver_draft()
            published += 1

    publisher = threading.Thread(target=publish)
    engine.watch.ends.clear()
    if every_s:
        publisher.start()
    engine.generate(prompts, adapters, new)
    stop.set()
    if every_s:
        publisher.join()
    stamps = [stamp for stamp in engine.watch.ends if stamp.decoding == len(prompts)]
    gaps = [after.at - before.at for before, after in pairwise(stamps)]
    return {"gaps": gaps, "published": published}
