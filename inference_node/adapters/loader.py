"""From a name to filled pages: resolve, fetch, verify, lay out, copy, each off the engine thread.

The engine thread asks, and owns every decision about pages; worker threads do what may block and
answer by posting one event. A version is fetched once however many requests wait for it. Nothing
here touches the slot table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future

import torch

from adapter_store.errors import (
    IntegrityError,
    NotFound,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    Untrusted,
)
from adapter_store.layout import AdapterRef
from adapter_store.reader import Reader
from adapter_store.reader import Resolved as Found
from adapter_store.record import FileEntry, VersionRef
from adapter_store.validate import check_content, check_sizes, largest_rank
from inference_node.adapters.host_tier import HostTier
from inference_node.adapters.outcomes import as_node_error, is_permanent
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.reports import (
    AskedAhead,
    Fetched,
    Filled,
    Heard,
    Learned,
    LoaderEvent,
    Prepared,
    Resolved,
    Target,
    Unfilled,
    Unprepared,
    Unresolved,
    Withdrawn,
)
from inference_node.adapters.versions import Entry, Resident, VersionKey
from inference_node.adapters.weights import HostAdapter, host_adapter
from inference_node.adapters.workers import background
from inference_node.errors import AdapterIncompatible, EngineFailure, NodeError
from inference_node.kernels.lora import ModuleMap
from inference_node.tracing import OFF, Trace, Tracing

log = logging.getLogger(__name__)


class Loader:
    """The blocking half of adapter management."""

    def __init__(
        self,
        reader: Reader,
        *,
        modules: ModuleMap,
        pool: AdapterPool,
        base_fingerprint: str,
        dtype: torch.dtype,
        host_bytes: int,
        max_rank: int,
        threads: int,
        post: Callable[[LoaderEvent], None],
        clock: Callable[[], float] = time.monotonic,
        executor: Callable[[int, str], Executor] = background,
        tracing: Tracing = OFF,
    ) -> None:
        """`executor` makes a pool of so many workers under a name."""
        self._reader = reader
        self._modules = modules
        self._card = modules.modules()
        self._pool = pool
        self._fingerprint = base_fingerprint
        self._dtype = dtype
        self._max_rank = max_rank
        self._post = post
        self._clock = clock
        self._tracing = tracing
        self.host = HostTier(host_bytes, clock=clock)
        self._quarantine: dict[tuple[FileEntry, ...], NodeError] = {}
        """By the stored chunks: equal content published again comes from other chunks."""
        self._in_flight: dict[VersionKey, Future[None]] = {}
        self._workers = executor(threads, "adapter-load")
        self._resolvers = executor(threads, "adapter-resolve")

    def resolve(
        self, token: str, ref: AdapterRef, min_generation: int, *, trace: Trace | None = None
    ) -> None:
        """Posts Resolved or Unresolved for `token`; `trace` is what it is told as a part of."""
        self._resolvers.submit(self._resolve, token, ref, min_generation, trace)

    def choose(
        self,
        token: str,
        ref: AdapterRef,
        min_generation: int,
        affinity: str,
        *,
        ask: bool,
        trace: Trace | None = None,
    ) -> None:
        """As `resolve` for a reference that pins nothing, with what `affinity` gets of a split.

        Without `ask`, and while the store has no news, what is known of the log answers.
        """
        self._resolvers.submit(self._choose, token, ref, min_generation, affinity, ask, trace)

    def prepare(self, target: Target) -> None:
        """Posts Prepared or Unprepared for the version; once, however often it is asked meanwhile.

        Engine thread only.
        """
        key = target.entry.key
        if key not in self._in_flight:
            self._in_flight[key] = self._workers.submit(self._prepare, target)

    def call_off(self, key: VersionKey) -> bool:
        """Whether its `prepare` had not begun: then it never will. Engine thread only."""
        waiting = self._in_flight.get(key)
        if waiting is None or not waiting.cancel():
            return False
        del self._in_flight[key]
        return True

    def settled(self, key: VersionKey) -> None:
        """The engine took the answer of `prepare`: the next one starts anew. Engine thread only."""
        self._in_flight.pop(key, None)

    def on_host(self, key: VersionKey) -> HostAdapter | None:
        """The version as it would be copied to the device, if the host has kept it."""
        return self.host.get(key)

    def fill(self, staged: Resident, host: HostAdapter) -> None:
        """Copy a version into its pages; posts Filled or Unfilled."""
        self._workers.submit(self._fill, staged, host)

    def look(self, tenant: str, adapter: str, known_gen: int) -> None:
        """Read the newest record that counts; posts Learned when it is above `known_gen`.

        Posts Withdrawn when it is below: who was trusted for more no longer is. May block. Raises
        StoreError when the store cannot be read.
        """
        try:
            record = self._reader.current(tenant, adapter)
        except Untrusted:
            self._post(Withdrawn(tenant, adapter, known_gen))
            raise
        if record.gen < known_gen:
            self._post(Withdrawn(tenant, adapter, known_gen))
        if record.gen <= known_gen:
            return
        try:
            resolved = self._reader.resolve(AdapterRef(tenant, adapter), refresh=False)
        except NotFound:
            self._post(Learned(tenant, adapter, record.gen, None, self._ahead(tenant, adapter)))
        else:
            target = _target(tenant, adapter, resolved.gen, resolved.version)
            ahead = self._ahead(tenant, adapter)
            self._post(Learned(tenant, adapter, resolved.gen, target, ahead))

    def hear(self, names: frozenset[tuple[str, str]] | None) -> None:
        """Pass on that these names, or with None any, may have changed. Posts Heard."""
        self._post(Heard(names))

    def ask_ahead(self, tenant: str, adapter: str) -> None:
        """Pass on that this node is to be ready for an adapter. Posts AskedAhead."""
        self._post(AskedAhead(tenant, adapter))

    def close(self) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._resolvers.shutdown(wait=True, cancel_futures=True)

    def _resolve(
        self, token: str, ref: AdapterRef, min_generation: int, trace: Trace | None
    ) -> None:
        began = self._clock()
        # What a reference pins is the same in every generation.
        least = 0 if ref.pinned else min_generation
        try:
            with self._tracing.work("adapter.resolve", trace, {"lorapool.asked": str(ref)}):
                resolved = self._reader.resolve(ref, min_generation=least)
            self._check_base(ref, resolved.version)
            ahead = () if ref.pinned else self._ahead(ref.tenant, ref.adapter)
        except Exception as error:
            self._post_unresolved(token, ref, error, began)
        else:
            target = _target(ref.tenant, ref.adapter, resolved.gen, resolved.version)
            self._post(Resolved(token, target, seconds=self._clock() - began, ahead=ahead))

    def _choose(
        self,
        token: str,
        ref: AdapterRef,
        min_generation: int,
        affinity: str,
        ask: bool,
        trace: Trace | None,
    ) -> None:
        began = self._clock()
        try:
            with self._tracing.work("adapter.resolve", trace, {"lorapool.asked": str(ref)}):
                found, asked = self._newest(ref, min_generation, ask=ask)
                arm = self._reader.resolve(ref, affinity=affinity, refresh=False)
            self._check_base(ref, found.version)
            self._check_base(ref, arm.version)
            ahead = self._ahead(ref.tenant, ref.adapter)
        except Exception as error:
            self._post_unresolved(token, ref, error, began)
        else:
            target = _target(ref.tenant, ref.adapter, found.gen, found.version)
            chosen = _target(ref.tenant, ref.adapter, arm.gen, arm.version)
            self._post(Resolved(token, target, chosen, asked, self._clock() - began, ahead))

    def _post_unresolved(self, token: str, ref: AdapterRef, error: Exception, began: float) -> None:
        if isinstance(error, StoreError | NodeError):
            translated = as_node_error(error, str(ref))
        else:
            translated = _unexpected(error)
        self._post(Unresolved(token, translated, self._clock() - began))

    def _newest(self, ref: AdapterRef, min_generation: int, *, ask: bool) -> tuple[Found, bool]:
        """The active version, and whether the store was asked for it."""
        if ask:
            try:
                return self._reader.resolve(ref, min_generation=min_generation), True
            except (StoreUnavailable, StoreRefused, IntegrityError):
                if self._reader.known_gen(ref.tenant, ref.adapter) < max(1, min_generation):
                    raise
        return self._reader.resolve(ref, refresh=False, min_generation=min_generation), False

    def _ahead(self, tenant: str, adapter: str) -> tuple[Target, ...]:
        """What the newest record seen names beside the active version."""
        record = self._reader.known(tenant, adapter)
        if record is None:
            return ()
        active = "" if record.active is None else record.active.vdig
        distinct = {version.vdig: version for version in record.contents()}
        return tuple(
            _target(tenant, adapter, record.gen, version)
            for vdig, version in distinct.items()
            if vdig != active
        )

    def _prepare(self, target: Target) -> None:
        key = target.entry.key
        fetched = None
        try:
            host = self.host.get(key)
            if host is None:
                host, fetched = self._fetch(target)
        except (StoreError, NodeError) as error:
            translated = as_node_error(error, f"{target.entry.adapter}@{target.entry.label}")
            if is_permanent(translated):
                self._quarantine[target.version.files] = translated.again()
            self._post(Unprepared(key, translated))
        except Exception as error:
            self._post(Unprepared(key, _unexpected(error)))
        else:
            self._post(Prepared(key, host, fetched))

    def _fetch(self, target: Target) -> tuple[HostAdapter, Fetched]:
        key, version = target.entry.key, target.version
        if version.files in self._quarantine:
            raise self._quarantine[version.files].again()
        self._check_base(AdapterRef(key.tenant, target.entry.adapter), version)
        declared = {file.name: file.size for file in version.files}
        check_sizes(declared, config=version.config, card_modules=self._card)
        began = self._clock()
        told = {"lorapool.adapter": target.entry.adapter, "lorapool.digest": key.vdig}
        with self._tracing.work("adapter.fetch", target.trace, told):
            files = self._reader.fetch(key.tenant, version)
        read = self._clock()
        with self._tracing.work("adapter.verify", target.trace, told):
            host = self._laid_out(files, version)
        self.host.put(target.entry, host)
        size = sum(map(len, files.values()))
        return host, Fetched(read - began, self._clock() - read, size)

    def _laid_out(self, files: Mapping[str, bytes], version: VersionRef) -> HostAdapter:
        """Pages of a version's files, once all that can be wrong with them is not."""
        content = check_content(files, config=version.config, card_modules=self._card)
        rank = largest_rank(content.spec, self._card)
        if rank > self._max_rank:
            raise AdapterIncompatible(
                f"rank {rank} is over this node's {self._max_rank}",
                hint="train a smaller rank, or raise LORAPOOL_MAX_RANK",
            )
        pinned = torch.cuda.is_available()
        host = host_adapter(content, self._modules, dtype=self._dtype, pin=pinned)
        total = self._pool.allocator.total
        for group, want, have in zip(self._modules.groups, host.pages, total, strict=True):
            if want > have:
                raise AdapterIncompatible(
                    f"needs {want} pages of {group.name}, the pool has {have}",
                    hint="raise LORAPOOL_POOL_MB, or the share of the group in "
                    "LORAPOOL_POOL_SHARES",
                )
        return host

    def _check_base(self, ref: AdapterRef, version: VersionRef) -> None:
        if version.base != self._fingerprint:
            raise AdapterIncompatible(
                f"{ref} was published for base {version.base[:12]}, "
                f"this node serves {self._fingerprint[:12]}",
                hint="publish a version trained for this base, or ask a node that serves the other",
                details={"adapter_base": version.base, "node_base": self._fingerprint},
            )

    def _fill(self, staged: Resident, host: HostAdapter) -> None:
        try:
            self._pool.write(staged, host)
        except Exception as error:
            self._post(Unfilled(staged, _unexpected(error), wiped=self._wipe(staged)))
        else:
            self._post(Filled(staged))

    def _wipe(self, staged: Resident) -> bool:
        try:
            self._pool.wipe(staged)
        except Exception:
            log.exception("pages that a failed copy left behind cannot be wiped: out of use")
            return False
        return True


def _target(tenant: str, adapter: str, gen: int, version: VersionRef) -> Target:
    key = VersionKey(tenant, version.vdig)
    return Target(Entry(tenant, adapter, version.label, gen, key), version)


def _unexpected(error: Exception) -> NodeError:
    log.exception("loading an adapter failed")
    failure = EngineFailure("loading the adapter failed", details={"kind": type(error).__name__})
    failure.__cause__ = error
    return failure
