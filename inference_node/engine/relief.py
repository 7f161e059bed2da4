"""Which versions make way when others have waited too long for their pages. Pure Python."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows

from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Resident
from inference_node.engine.sequence import Sequence


def make_way(
    slots: SlotTable,
    starving: Rows[Rows[int]],
    before: float,
    requests: Iterable[Sequence],
    *,
    newcomer: bool = False,
) -> list[Resident]:
    """Drain versions until there is room for all of `starving`, pages wanted by group; which ones.

    Taken are versions that have been there since `before`, the one with the fewest tokens left to
    do for its `requests` first. For a newcomer the headroom is made free too. When more is wanted
    than the pool holds, all of those make way.
    """
    wanted = [sum(pages) for pages in zip(*starving, strict=True)]
    left: dict[Resident, int] = {}
    drained: list[Resident] = []
    while any(short := slots.shortfall(wanted, newcomer=newcomer)):
        of_use = [
            resident
            for resident in slots.drainable(before)
            if any(lack and had for lack, had in zip(short, resident.pages, strict=True))
        ]
        if not of_use:
            break
        left = left or _work_left(requests)
        least = min(of_use, key=lambda resident: (left.get(resident, 0), resident.last_used))
        slots.drain(least.key)
        drained.append(least)
    return drained


def _work_left(requests: Iterable[Sequence]) -> dict[Resident, int]:
    """Tokens that requests still want of each version they hold."""
    left: dict[Resident, int] = {}
    for sequence in requests:
        if sequence.lease is not None:
            left[sequence.lease] = left.get(sequence.lease, 0) + sequence.remaining
    return left
