"""An adapter's log as it lies in the store, and how far up it can be believed.

Each slot's bytes link to those below by hash, whoever wrote them. Without a verifier the chain is
all there is: a record that breaks it ends the walk with an error. With one, a record counts when a
key that may speak for the adapter signed it; what does not count is stepped over, never adopted:

    known ── refused ── refused ── trusted      the walk ends at the trusted record, because it
      N        N+1        N+2        N+3        names the bytes at N+2 as its parent, these the
                                                bytes at N+1, and so on down to what was known

A fence record counts when it says nothing but what the trusted record right below it says.
A node that starts cold goes down from the newest slot to one that a key signed, and up from there,
so that cold and warm nodes serve the same.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from adapter_store import layout
from adapter_store.errors import IntegrityError, InvalidName, NotFound, Untrusted
from adapter_store.objects import ObjectStore
from adapter_store.record import Record, RecordKind, VersionRef, decode_record
from adapter_store.signing import Verifier, opens_empty_log, repeats

MAX_VERSION_BYTES = 512 * 1024 * 1024
MAX_DESCENT = 256
"""Slots a cold start looks at below the newest before it gives up."""
MAX_REREAD = 8
"""Refused slots that every later look reads again, in case they came damaged."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One slot: its bytes' digest, and the record in them unless they are none."""

    gen: int
    digest: str
    record: Record | None
    fault: IntegrityError | None


@dataclass(frozen=True, slots=True)
class Known:
    """The newest record that counts, and what lies above it."""

    record: Record
    digest: str
    top_gen: int
    top_digest: str
    refused: Untrusted | None = None
    """Why the newest slot does not count."""
    epoch: int = 0
    """Of the verifier, when this was found."""


class Log:
    """Walks logs; remembers nothing between calls."""

    def __init__(
        self,
        store: ObjectStore,
        verifier: Verifier | None,
        *,
        refused: Callable[[str, str, Seen, Untrusted], None],
    ) -> None:
        """`refused` is told the tenant and adapter of every slot that is stepped over, and why."""
        self._store = store
        self._verifier = verifier
        self._refused = refused

    def read(self, tenant: str, adapter: str, gen: int) -> Seen:
        """One slot as it is. Raises NotFound.

        What the store cannot hand out whole counts in the chain as an empty body.
        """
        try:
            body = self._store.get(layout.log_key(tenant, adapter, gen))
        except IntegrityError as error:
            return Seen(gen, hashlib.sha256(b"").hexdigest(), None, error)
        record: Record | None = None
        fault: IntegrityError | None = None
        try:
            record = decode_record(body)
            if (record.tenant, record.adapter, record.gen) != (tenant, adapter, gen):
                raise IntegrityError(f"the record at generation {gen} of {adapter} is another's")
            for version in record.contents():
                check_plan(tenant, version)
        except IntegrityError as error:
            record, fault = None, error
        return Seen(gen, hashlib.sha256(body).hexdigest(), record, fault)

    def start(self, tenant: str, adapter: str) -> Known:
        """The newest record that counts, found by listing.

        Raises NotFound without a log, IntegrityError, and Untrusted when nothing counts.
        """
        page = self._store.list(layout.log_prefix(tenant, adapter), limit=1)
        if not page.keys:
            raise NotFound(f"there is no adapter {adapter!r}", hint="publish it first")
        try:
            newest = layout.parse_log_key(page.keys[0])
        except InvalidName as error:
            if self._verifier is None:
                raise IntegrityError(f"the log of {adapter} holds what is no record") from error
            return self._from_below(tenant, adapter, {})
        top = self.read(tenant, adapter, newest)
        if self._verifier is None:
            return _known(top, _record(top), 0)
        if self._objection_alone(top) is None:
            return _known(top, _record(top), self._verifier.epoch)
        return self._from_below(tenant, adapter, {top.gen: top})

    def foundation(self, tenant: str, adapter: str) -> Known:
        """As `start`, and where nothing counts an empty record below the first slot.

        Its `top_gen` is 0 when there is no log at all.
        """
        try:
            return self.start(tenant, adapter)
        except (NotFound, Untrusted):
            nothing = Record(
                tenant=tenant,
                adapter=adapter,
                gen=0,
                kind=RecordKind.TOMBSTONE,
                active=None,
                parent="",
                fence=0,
                txid="",
                attempt=0,
                actor="",
                time="",
            )
            return self._ascend(Known(nothing, "", 0, ""), {})

    def climb(self, known: Known) -> Known:
        """The newest record that counts now, from `known` up; `known` itself without news.

        One request when there is none. Raises IntegrityError where an unsigned log breaks its
        chain, and Untrusted when `known` no longer counts and nothing below it does.
        """
        if self._verifier is None:
            return self._step(known)
        epoch = self._verifier.epoch
        if known.epoch != epoch:
            return self._judge_again(known, epoch)
        if known.refused is None or known.top_gen - known.record.gen > MAX_REREAD:
            return self._ascend(known, {})
        return self._ascend(_known_alone(known), {})

    def _judge_again(self, known: Known, epoch: int) -> Known:
        """`climb` after what is trusted has changed."""
        seen = Seen(known.record.gen, known.digest, known.record, None)
        if self._objection_alone(seen) is None:
            return self._ascend(_known(seen, known.record, epoch), {})
        return self.start(known.record.tenant, known.record.adapter)

    def _step(self, known: Known) -> Known:
        """One record up, by the chain alone."""
        record = known.record
        try:
            seen = self.read(record.tenant, record.adapter, record.gen + 1)
        except NotFound:
            return known
        found = _record(seen)
        if found.parent != known.digest:
            raise IntegrityError(
                f"generation {found.gen} of {found.adapter} has another parent",
                hint="the log was tampered with; what was current before stays current",
            )
        return _known(seen, found, 0)

    def _from_below(self, tenant: str, adapter: str, passed: dict[int, Seen]) -> Known:
        """Down the slots that are listed to a record that a key signed, and up from there."""
        assert self._verifier is not None
        epoch = self._verifier.epoch
        newest: Untrusted | None = None
        for gen in self._listed(tenant, adapter):
            seen = passed.setdefault(gen, passed.get(gen) or self.read(tenant, adapter, gen))
            objection = self._objection_alone(seen)
            if objection is None:
                return self._ascend(_known(seen, _record(seen), epoch), passed)
            if newest is None:
                newest = objection
                self._refused(tenant, adapter, seen, objection)
        raise newest or _untrusted(f"the log of {adapter} holds no record")

    def _listed(self, tenant: str, adapter: str) -> list[int]:
        """The newest generations there are, newest first; other keys are passed over."""
        generations = []
        for key in self._store.list(layout.log_prefix(tenant, adapter)).keys:
            with contextlib.suppress(InvalidName):
                generations.append(layout.parse_log_key(key))
        return generations[:MAX_DESCENT]

    def _ascend(self, known: Known, passed: dict[int, Seen]) -> Known:
        """Up from `known` to the end of the log; `passed` are slots read already."""
        tenant, adapter = known.record.tenant, known.record.adapter
        while True:
            gen = known.top_gen + 1
            try:
                seen = passed.get(gen) or self.read(tenant, adapter, gen)
            except NotFound:
                return known
            objection = self._objection(seen, known)
            if objection is None:
                assert seen.record is not None
                known = _known(seen, seen.record, known.epoch)
            else:
                self._refused(tenant, adapter, seen, objection)
                known = replace(known, top_gen=seen.gen, top_digest=seen.digest, refused=objection)

    def _objection(self, seen: Seen, known: Known) -> Untrusted | None:
        """Why `seen`, right above all that `known` covers, does not count."""
        record = seen.record
        if record is not None and record.parent != known.top_digest:
            return _untrusted(f"generation {seen.gen} of {record.adapter} has another parent")
        if record is None or record.kind is not RecordKind.FENCE:
            return self._objection_alone(seen)
        if 0 < known.record.gen == known.top_gen and repeats(record, known.record):
            return None
        return _untrusted(
            f"generation {seen.gen} of {record.adapter} is a fence that does not repeat a trusted "
            "record right below it"
        )

    def _objection_alone(self, seen: Seen) -> Untrusted | None:
        """Why `seen` does not count, whatever lies below it."""
        assert self._verifier is not None
        if seen.record is None:
            return _untrusted(f"generation {seen.gen} is no record: {seen.fault}")
        if opens_empty_log(seen.record):
            return None
        try:
            self._verifier.check(seen.record)
        except Untrusted as error:
            return _untrusted(str(error))
        return None


def _known(seen: Seen, record: Record, epoch: int) -> Known:
    return Known(record, seen.digest, seen.gen, seen.digest, None, epoch)


def _known_alone(known: Known) -> Known:
    """`known` without what was refused above it."""
    return replace(known, top_gen=known.record.gen, top_digest=known.digest, refused=None)


def _record(seen: Seen) -> Record:
    if seen.record is None:
        assert seen.fault is not None
        raise seen.fault
    return seen.record


def _untrusted(message: str) -> Untrusted:
    return Untrusted(message, hint="what was trusted before it keeps serving")


def check_plan(tenant: str, version: VersionRef) -> None:
    """Chunks tile their files, lie in this tenant's folder, and stay within bounds."""
    if version.bytes > MAX_VERSION_BYTES:
        raise IntegrityError(f"version {version.label!r} is over {MAX_VERSION_BYTES} bytes")
    for file in version.files:
        offset = 0
        for chunk in file.chunks:
            ours = chunk.key.startswith(layout.blob_prefix(tenant, chunk.sha256))
            if not ours or chunk.offset != offset or not 0 < chunk.length <= layout.CHUNK_BYTES:
                raise IntegrityError(f"the chunks of {file.name!r} are out of place")
            offset += chunk.length
        if offset != file.size:
            raise IntegrityError(f"the chunks of {file.name!r} are not its {file.size} bytes")
