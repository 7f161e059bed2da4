"""What the log of an adapter says, as messages."""

from __future__ import annotations

import base64

from adapter_store.reader import Resolved
from adapter_store.record import Record, RecordKind, VersionRef
from inference_node.pb.lorapool.v1 import catalog_pb2 as pb
from inference_node.rpc.convert import Place

_KINDS = {
    RecordKind.PUBLISH: pb.RECORD_KIND_PUBLISH,
    RecordKind.ROLLBACK: pb.RECORD_KIND_ROLLBACK,
    RecordKind.STAGE: pb.RECORD_KIND_STAGE,
    RecordKind.ACTIVATE: pb.RECORD_KIND_ACTIVATE,
    RecordKind.SPLIT: pb.RECORD_KIND_SPLIT,
    RecordKind.FENCE: pb.RECORD_KIND_FENCE,
    RecordKind.TOMBSTONE: pb.RECORD_KIND_TOMBSTONE,
}


def adapter(record: Record) -> pb.GetAdapterResponse:
    return pb.GetAdapterResponse(
        tenant=record.tenant,
        adapter=record.adapter,
        generation=record.gen,
        kind=_KINDS[record.kind],
        active=_version(record.active) if record.active else None,
        staged=_version(record.staged) if record.staged else None,
        split=[pb.SplitArm(version=_version(a.version), weight=a.weight) for a in record.split],
        committed_at=record.time,
    )


def versions(record: Record, *, after: Place | None, size: int) -> pb.ListVersionsResponse:
    """The `size` versions that follow `after`, newest first."""
    entries = sorted(record.versions, key=lambda e: Place(e.gen, e.label), reverse=True)
    rest = [e for e in entries if after is None or Place(e.gen, e.label) < after]
    page = rest[:size]
    return pb.ListVersionsResponse(
        versions=[pb.VersionEntry(label=e.label, digest=e.vdig, generation=e.gen) for e in page],
        next_page_token=page_token(f"{page[-1].gen}.{page[-1].label}") if rest[size:] else "",
    )


def resolved(found: Resolved) -> pb.ResolveAdapterResponse:
    return pb.ResolveAdapterResponse(
        tenant=found.tenant,
        adapter=found.adapter,
        generation=found.gen,
        version=_version(found.version),
    )


def page_token(text: str) -> str:
    """Opaque, so that nobody builds one; `convert.from_page_token` reads it."""
    return base64.urlsafe_b64encode(text.encode()).decode()


def _version(version: VersionRef) -> pb.Version:
    rank = version.config.get("r", 0)
    return pb.Version(
        label=version.label,
        digest=version.vdig,
        base_fingerprint=version.base,
        bytes=version.bytes,
        rank=rank if isinstance(rank, int) and 0 <= rank < 2**32 else 0,
    )
