"""Content that an adapter's log names already: what to serve again, to activate, to split over."""

from __future__ import annotations

from collections.abc import Mapping

from adapter_store import layout
from adapter_store.draft import Content
from adapter_store.errors import InvalidSplit, NotFound
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.record import MAX_ARMS, MAX_WEIGHT, Chunk, Record, RecordKind, VersionRef


class Shelf:
    """Finds content under a head. Whether its bytes are still kept shows when they are read."""

    def __init__(self, store: ObjectStore, reader: Reader) -> None:
        self._store = store
        self._reader = reader

    def named(self, head: Record, to: str) -> Content:
        """By label or `sha256:<digest>`. Raises NotFound, InvalidName."""
        ref = layout.parse_ref(f"{head.adapter}@{to}", tenant=head.tenant)
        found = self._reader.find(head, ref)
        if found is None:
            raise NotFound(f"there is no version {ref}", hint="list its versions")
        return self._content(found.version)

    def before(self, head: Record) -> Content:
        """What was served before the current content; during a split, what was served before it.

        Raises NotFound.
        """
        if head.split and head.active is not None:
            return self._content(head.active)
        current = head.active.vdig if head.active else ""
        for record in self._reader.history(head.tenant, head.adapter):
            if record.active is not None and record.active.vdig != current:
                return self._content(record.active)
        raise NotFound(f"{head.adapter} has served nothing else before", hint="publish instead")

    def staged(self, head: Record) -> Content:
        """What is staged or, so that a repeated activation is none, was activated just now.

        Raises NotFound.
        """
        if head.staged is None and head.kind is RecordKind.ACTIVATE and head.active is not None:
            return self._content(head.active)
        if head.staged is None:
            raise NotFound(
                f"nothing of {head.adapter} is staged", hint="stage a version, or name one"
            )
        return self._content(head.staged)

    def arms(self, head: Record, weights: Mapping[str, int]) -> tuple[Content, ...]:
        """The versions that `weights` names, all different. Raises NotFound, InvalidSplit."""
        if head.active is None:
            raise NotFound(
                f"{head.adapter} serves nothing that a split could fall back to",
                hint="publish or activate a version first",
            )
        arms = tuple(self.named(head, to) for to in weights)
        if len({arm.vdig for arm in arms}) != len(arms):
            raise InvalidSplit("two of the versions are the same content under different labels")
        return arms

    def _content(self, version: VersionRef) -> Content:
        keys = {chunk.sha256: chunk.key for file in version.files for chunk in file.chunks}

        def read(chunk: Chunk) -> bytes:
            try:
                return self._store.get(keys[chunk.sha256])
            except NotFound as error:
                raise NotFound(
                    f"version {version.label!r} is no longer kept",
                    hint="publish its content again",
                ) from error

        return Content(
            label=version.label,
            vdig=version.vdig,
            base=version.base,
            config=version.config,
            files=version.files,
            read=read,
            signatures=version.signatures,
        )


def check_weights(weights: Mapping[str, int]) -> None:
    """Raises InvalidSplit unless these are the parts of a split."""
    if not 2 <= len(weights) <= MAX_ARMS:
        raise InvalidSplit(f"a split is over 2 to {MAX_ARMS} versions, not {len(weights)}")
    for label, weight in weights.items():
        if type(weight) is not int or not 1 <= weight <= MAX_WEIGHT:
            raise InvalidSplit(f"the weight of {label!r} is not from 1 to {MAX_WEIGHT}")
