"""The kinds of change, and what the record of each says beside the one before it.

    kind         active      staged      split
    publish      new         -           -
    rollback     older       -           -
    stage        kept        new         kept
    activate     chosen      -           -
    split        kept        kept        arms
    tombstone    -           -           -
    fence        kept        kept        kept       draft.fence_record: no change at all

What becomes active ends staging and split, whoever had begun them: both were prepared beside
content that is no longer served, and a fix published in a hurry must not be undone by activating
what was staged before it. Taking them up again costs no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adapter_store.draft import Change, Content, State
from adapter_store.record import Record, RecordKind, SplitArm, VersionRef


def publish(content: Content) -> Change:
    return _make_active(RecordKind.PUBLISH, content)


def rollback(content: Content) -> Change:
    return _make_active(RecordKind.ROLLBACK, content)


def activate(content: Content) -> Change:
    return _make_active(RecordKind.ACTIVATE, content)


def stage(content: Content) -> Change:
    return Change(
        kind=RecordKind.STAGE,
        contents=(content,),
        draw=lambda before, versions: replace(before, staged=versions[0]),
    )


def split(arms: tuple[Content, ...], weights: Sequence[int]) -> Change:
    """`weights` in the order of `arms`."""

    def draw(before: State, versions: tuple[VersionRef, ...]) -> State:
        return replace(before, split=tuple(map(SplitArm, weights, versions)))

    return Change(kind=RecordKind.SPLIT, contents=arms, draw=draw)


def tombstone() -> Change:
    return Change(kind=RecordKind.TOMBSTONE, draw=lambda before, versions: State())


def named_by(record: Record, kind: RecordKind) -> tuple[VersionRef, ...]:
    """The content in `record` that a change of `kind` brings in."""
    if kind is RecordKind.SPLIT:
        return tuple(arm.version for arm in record.split)
    subject = subject_of(record, kind)
    return () if subject is None else (subject,)


def subject_of(record: Record, kind: RecordKind) -> VersionRef | None:
    """The version in `record` that a change of `kind` is about: the staged or the active one."""
    return record.staged if kind is RecordKind.STAGE else record.active


def set_aside(before: Record | None, after: Record) -> str:
    """What `after` ended without saying so by its kind, in words; empty for nothing."""
    if before is None or after.kind is RecordKind.TOMBSTONE:
        return ""
    staged, active = before.staged, after.active
    if staged is not None and after.staged is None and (not active or staged.vdig != active.vdig):
        return f"{staged.label} is no longer staged; stage it again if it is still wanted"
    if before.split and not after.split and after.kind is RecordKind.PUBLISH:
        labels = ", ".join(arm.version.label for arm in before.split)
        return f"the split over {labels} has ended"
    return ""


def _make_active(kind: RecordKind, content: Content) -> Change:
    return Change(
        kind=kind,
        contents=(content,),
        draw=lambda before, versions: State(active=versions[0]),
    )
