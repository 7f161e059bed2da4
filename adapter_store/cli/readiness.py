"""What `stage`, `activate` and `rollback` know of the nodes: who is asked, awaited, and has it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.barrier import Barrier, Readiness, Subject, parse_quorum, words
from adapter_store.cli.console import say
from adapter_store.errors import FleetUnseen, NotFound

if TYPE_CHECKING:
    from adapter_store.attempt import Published
    from adapter_store.objects import ObjectStore
    from adapter_store.record import Record, VersionRef
    from adapter_store.settings import StoreSettings

CONFIRM_S = 5.0
"""How long a flip is watched; nodes that are ready follow within a second."""
SHOWN = 6
"""Nodes that a line of progress names."""

QuorumOption = Annotated[
    str | None,
    typer.Option(
        "--quorum",
        help="How many of the nodes that hold the adapter must have it ready: all (the default), "
        "a number, or 80%. Given, it is also insisted on: without Redis nothing is activated.",
        show_default=False,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", min=0, help="Seconds to wait for them; then nothing is activated, exit code 4."
    ),
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Flip at once: each node follows when it is ready.")
]
Spread = Annotated[
    int,
    typer.Option(
        "--spread", min=0, help="Nodes that are to fetch it at least, where fewer hold the adapter."
    ),
]


@dataclass(frozen=True, slots=True)
class Patience:
    """How an activation waits."""

    quorum: str | None
    timeout_s: float
    wait: bool


@dataclass(slots=True)
class Watched:
    """A version whose nodes were waited for, and how that went."""

    barrier: Barrier
    gen: int
    """Of the record that was waited under: the commit goes on top of it or not at all."""
    before: Readiness
    waited_s: float
    after: Readiness | None = None
    serving: int = 0
    """Nodes that followed."""

    def confirm(self, gen: int) -> None:
        """See the nodes follow to `gen`, for CONFIRM_S at most."""
        try:
            self.after = self.barrier.confirm(gen, nodes=self.before, timeout_s=CONFIRM_S)
        except FleetUnseen:
            return
        self.serving = len(self.after.serving(gen))

    def say(self) -> None:
        ready, nodes = len(self.before.ready), len(self.before.stands)
        if not nodes:
            say("no node holds the adapter: there was nobody to wait for")
            return
        line = f"{ready} of {nodes} nodes had it ready after {self.waited_s:.1f} s"
        if self.after is not None:
            line += f", {self.serving} of {len(self.after.stands)} serve it now"
        say(line)

    def document(self) -> dict[str, Any]:
        return {
            "ready": [stand.address for stand in self.before.ready],
            "not_ready": [stand.address for stand in (*self.before.failed, *self.before.waiting)],
            "waited_s": round(self.waited_s, 3),
            "serving": self.serving,
        }


def await_ready(
    settings: StoreSettings,
    store: ObjectStore,
    tenant: str,
    adapter: str,
    *,
    label: str | None,
    patience: Patience,
    silent: bool,
) -> Watched | None:
    """Wait until the nodes have what `label`, or the staging, names; None where nobody is awaited.

    Raises NotReady, InvalidSetting, and FleetUnseen when a quorum was insisted on.
    """
    quorum = parse_quorum(patience.quorum or "all")
    found = _named(store, tenant, adapter, label) if patience.wait else None
    if found is None:
        return None
    record, version = found
    insists = patience.quorum is not None
    if version is None:
        # Nodes fetch ahead what the newest record names, and nothing else.
        if not silent:
            say(f"{label} is not staged: nodes fetch it once it is active")
        return None
    try:
        barrier = _barrier(settings, record, version)
        if barrier is None:
            return None
        started = time.monotonic()
        before = barrier.wait(
            quorum, timeout_s=patience.timeout_s, show=Progress(adapter, silent=silent)
        )
    except FleetUnseen as error:
        if insists:
            raise
        if not silent:
            say(f"warning: {error}; activating without waiting for nodes")
        return None
    return Watched(barrier, record.gen, before, time.monotonic() - started)


def ask_ahead(settings: StoreSettings, done: Published, *, spread: int, silent: bool) -> None:
    """Have nodes fetch what was staged, as far as Redis can be asked; says how many."""
    version = done.record.staged
    if version is None:
        return
    try:
        barrier = _barrier(settings, done.record, version, spread=spread)
        if barrier is None:
            return
        seen = barrier.look()
        barrier.ask(seen.waiting)
    except FleetUnseen as error:
        if not silent:
            say(f"warning: {error}; nodes that serve the adapter find it by polling")
        return
    if not silent:
        ready, nodes = len(seen.ready), len(seen.stands)
        what = f"{nodes} nodes fetch it ahead" if not ready else f"{ready} of {nodes} have it"
        say(f"{what}; see: adapter-store nodes {done.adapter}" if nodes else "no node to fetch it")


def say_who_kept(settings: StoreSettings, done: Published) -> None:
    """How many nodes still had the version that was rolled back to."""
    version = done.record.active
    if version is None or done.unchanged:
        return
    try:
        barrier = _barrier(settings, done.record, version, spread=0)
        seen = None if barrier is None else barrier.look()
    except FleetUnseen:
        return
    if seen is not None and seen.stands:
        say(f"{len(seen.ready)} of {len(seen.stands)} nodes still have it, and fetch nothing")


class Progress:
    """One line whenever the picture changes."""

    def __init__(self, adapter: str, *, silent: bool) -> None:
        self._adapter = adapter
        self._silent = silent
        self._said = ""

    def __call__(self, seen: Readiness) -> None:
        late = [*seen.failed, *seen.waiting]
        if not late or self._silent:
            return
        named = ", ".join(f"{stand.address} ({words(stand)})" for stand in late[:SHOWN])
        more = f" and {len(late) - SHOWN} more" if len(late) > SHOWN else ""
        line = (
            f"{len(seen.ready)} of {len(seen.stands)} nodes have {self._adapter} ready; "
            f"waiting for {named}{more} ..."
        )
        if line != self._said:
            say(line)
        self._said = line


def _named(
    store: ObjectStore, tenant: str, adapter: str, label: str | None
) -> tuple[Record, VersionRef | None] | None:
    """The newest record and the version in it; None where the commit itself will say what is wrong.

    The version is None when the record does not name it.
    """
    from adapter_store.reader import Reader

    try:
        record = Reader(store).head(tenant, adapter)
    except NotFound:
        return None
    if label is None:
        return None if record.staged is None else (record, record.staged)
    digest = label.removeprefix("sha256:")
    named = [v for v in record.contents() if digest in (v.label, v.vdig)]
    if record.active is not None and record.active in named:
        return None
    return record, named[0] if named else None


def _barrier(
    settings: StoreSettings, record: Record, version: VersionRef, *, spread: int = 1
) -> Barrier | None:
    """None without Redis."""
    registry = settings.open_registry()
    if registry is None:
        return None
    subject = Subject(record.tenant, record.adapter, record.gen, version.base, version.vdig)
    return Barrier(registry, subject, spread=spread)
