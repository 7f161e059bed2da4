"""What every command that changes an adapter says at its end."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import out, size, tell

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adapter_store.commit import Published
    from adapter_store.record import Record, SplitArm, VersionRef

ExpectGen = Annotated[
    int | None,
    typer.Option(
        min=0, help="Fail unless the current generation is this one; 0: must not exist yet."
    ),
]

_DONE = {
    "publish": "published",
    "push": "published",
    "rollback": "rolled back to",
    "stage": "staged",
    "activate": "activated",
    "split": "split",
    "tombstone": "deleted",
    "delete": "deleted",
}
_ALREADY = {
    "stage": "is staged already",
    "split": "is split like that already",
    "delete": "is deleted already",
}


def published_document(done: Published) -> dict[str, Any]:
    return {
        "tenant": done.tenant,
        "adapter": done.adapter,
        "version": done.label or None,
        "generation": done.gen,
        "digest": done.vdig or None,
        "kind": done.kind.value,
        **standing_document(done.record),
        "unchanged": done.unchanged,
        "bytes_sent": done.bytes_sent,
        "bytes_reused": done.bytes_reused,
        "requests": done.requests,
        "txid": done.txid,
        "attempt": done.attempt,
    }


def standing_document(record: Record) -> dict[str, Any]:
    """What stands beside the active version."""
    return {
        "staged": _version(record.staged) if record.staged else None,
        "split": [{**_version(arm.version), "weight": arm.weight} for arm in record.split],
    }


def already(command: str) -> str:
    """What is so when there was nothing to do for `command`."""
    return _ALREADY.get(command, "is served already")


def tell_published(done: Published, *, command: str = "") -> None:
    """`command` is what the user ran; by default what wrote the record."""
    kind = command or done.kind.value
    what = f"{done.adapter}@{done.label}" if done.label and kind != "split" else done.adapter
    if kind == "split":
        what += f"  {arms(done.record.split)}"
    digest = f"  sha256:{done.vdig[:12]}" if done.vdig and kind != "split" else ""
    now = f"{what}  generation {done.gen}{digest}"
    if done.unchanged:
        tell(f"unchanged {now}  {already(kind)}, nothing to do")
        return
    moved = f"  {size(done.bytes_sent)} sent, {size(done.bytes_reused)} reused"
    tell(f"{_DONE.get(kind, kind)} {now}{moved if done.vdig else ''}")


def show_published(
    done: Published,
    *,
    command: str = "",
    as_json: bool,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """`more` goes into the document."""
    if as_json:
        out({**published_document(done), **more})
    else:
        tell_published(done, command=command)


def arms(split: Iterable[SplitArm]) -> str:
    """A split as `adapter-store split` takes it: v1=95 v2=5."""
    return " ".join(f"{arm.version.label}={arm.weight}" for arm in split)


def _version(version: VersionRef) -> dict[str, Any]:
    return {"version": version.label, "digest": version.vdig}
