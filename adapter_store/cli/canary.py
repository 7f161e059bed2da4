"""`canary`: give a version a share of the callers, watch it, and promote it or take it back.

The split and its end are records like any other, and what is watched is what nodes tell. So a
watcher that dies leaves a split that stands, whole, until somebody runs it again or rolls back.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.arms import ArmCount, Bounds, Watch, breaches, enough
from adapter_store.cli.change import Change, changing
from adapter_store.cli.console import Json, Name, Tenant, say
from adapter_store.cli.keys import SignKey
from adapter_store.cli.published import show_published
from adapter_store.cli.readiness import Patience, await_ready
from adapter_store.errors import (
    CanaryStopped,
    Conflict,
    FleetUnseen,
    InvalidSplit,
    NotFound,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from adapter_store.attempt import Published
    from adapter_store.record import Record, VersionRef
    from adapter_store.registry import FleetRegistry

LOOK_S = 2.0
SAY_S = 10.0
MAX_SHARE = 99


def canary(
    name: Name,
    version: Annotated[
        str | None,
        typer.Argument(help="A version label or sha256:<digest>; default: what is staged."),
    ] = None,
    share: Annotated[
        int, typer.Option(min=1, max=MAX_SHARE, help="Per cent of the callers that get it.")
    ] = 5,
    seconds: Annotated[
        float, typer.Option("--for", min=0, help="Seconds to watch it at least.")
    ] = 600.0,
    max_failed: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="Per cent of its requests that may fail beyond the others' share."
        ),
    ] = 2.0,
    max_slower: Annotated[
        float, typer.Option(min=0, help="Times the active version's seconds a token.")
    ] = 1.5,
    max_longer: Annotated[
        float, typer.Option(min=0, help="Times the active version's tokens an answer.")
    ] = 2.0,
    min_answers: Annotated[
        int, typer.Option(min=0, help="Requests of each that must have ended.")
    ] = 50,
    patience: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait for so many after --for; then nothing changes."),
    ] = 600.0,
    promote: Annotated[
        bool, typer.Option("--promote/--no-promote", help="Serve it to everybody at the end.")
    ] = True,
    sign_key: SignKey = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Give a version a share of the callers, and promote it, or take it back when it does badly.

    Callers are those that send an affinity key; each always gets the same version. Nodes count, by
    version, what was answered, what failed and how long it took, and tell it in Redis; this command
    sums it up. When the canary breaks a bound the split is rolled back at once and the exit code is
    4. When the time is over and enough requests have ended it is activated, as `activate` does.

    A watcher that is stopped or dies leaves the split as it is: run the same command again to go on
    watching, `rollback` to end it. When anybody else changes the adapter the watch ends, exit code
    4, and changes nothing.

    \b
    Examples:
      adapter-store stage ./pirate-2 --name pirate --version v2
      adapter-store canary pirate v2 --share 5 --for 600
      adapter-store canary pirate v2 --share 20 --max-failed 1 --max-slower 1.2 --no-promote
    """
    bounds = Bounds(max_failed / 100, max_slower, max_longer, min_answers)
    staging = f"adapter-store stage <folder> --name {name}"
    with changing(name, tenant, not_found=staging) as at:
        trial = _begin(at, version, share)
        if not json:
            say(
                f"{trial.canary.label} gets {share} of 100 callers with a key, "
                f"{trial.active.label} the others: generation {trial.gen}"
            )
        _watch(at, trial, bounds, seconds=seconds, patience=patience, silent=json)
        done = _promote(at, trial, silent=json) if promote else trial.split
    more = {"canary": trial.document()}
    show_published(done, command="activate" if promote else "split", as_json=json, more=more)


@dataclass(slots=True)
class Trial:
    """A split under watch."""

    split: Published
    active: VersionRef
    canary: VersionRef
    registry: FleetRegistry
    watch: Watch

    @property
    def gen(self) -> int:
        return self.split.gen

    def look(self) -> tuple[ArmCount, ArmCount]:
        """The active version's and the canary's count so far. Raises FleetUnseen."""
        record = self.split.record
        nodes = [card.id for card in self.registry.nodes()]
        self.watch.take(self.registry.arms_of(nodes, record.tenant, record.adapter))
        return self.counts()

    def counts(self) -> tuple[ArmCount, ArmCount]:
        return self.watch.of(self.active.vdig), self.watch.of(self.canary.vdig)

    def document(self) -> dict[str, Any]:
        active, canary = self.counts()
        return {
            "active": {"version": self.active.label, **asdict(active)},
            "canary": {"version": self.canary.label, **asdict(canary)},
        }


def _begin(at: Change, version: str | None, share: int) -> Trial:
    """The split, made or found. Raises NotFound, FleetUnseen, InvalidSplit."""
    record = at.head()
    active = record.active
    if active is None:
        raise NotFound(f"{at.adapter} serves nothing that a canary could be compared with")
    active_is = f"sha256:{active.vdig}"
    chosen = _chosen(at, record, version)
    if chosen in (active.label, active_is):
        raise InvalidSplit(f"{active.label} is what everybody gets already", hint="name another")
    registry = at.settings.open_registry()
    if registry is None:
        raise FleetUnseen("a canary is judged by what nodes tell in Redis, and none is configured")
    watch = Watch()
    nodes = [card.id for card in registry.nodes()]
    watch.take(registry.arms_of(nodes, record.tenant, record.adapter))
    weights = {active_is: 100 - share, chosen: share}
    done = at.publisher.split(at.tenant, at.adapter, weights, expect_gen=record.gen)
    canary = next(arm.version for arm in done.record.split if arm.version.vdig != active.vdig)
    return Trial(done, active, canary, registry, watch)


def _chosen(at: Change, record: Record, version: str | None) -> str:
    """A label or a digest in full: of what is named, else of what is staged. Raises NotFound."""
    if version is not None:
        return at.selector(version)
    if record.staged is None:
        raise NotFound(f"nothing of {at.adapter} is staged", hint="name a version, or stage one")
    return f"sha256:{record.staged.vdig}"


def _watch(
    at: Change,
    trial: Trial,
    bounds: Bounds,
    *,
    seconds: float,
    patience: float,
    silent: bool,
) -> None:
    """Returns when the canary has done well for long enough, and is seen to.

    Raises CanaryStopped after it was rolled back, or where too little was asked for to judge it;
    Conflict when somebody else has changed the adapter.
    """
    began = said = time.monotonic()
    while True:
        known = unseen = False
        try:
            known = _judge(at, trial, bounds)
        except (FleetUnseen, StoreUnavailable) as error:
            # What cannot be seen is neither promoted nor taken back.
            unseen = True
            if not silent:
                say(f"warning: {error}; the split stands")
        now = time.monotonic()
        left = began + seconds - now
        if left <= 0 and known:
            return
        if left <= -patience:
            raise _undecided(at, trial, bounds, unseen=unseen)
        if not silent and now - said >= SAY_S:
            said = now
            active, canary = trial.counts()
            say(f"{_words(trial.active, active)}; {_words(trial.canary, canary)}")
        time.sleep(min(LOOK_S, left) if left > 0 else LOOK_S)


def _judge(at: Change, trial: Trial, bounds: Bounds) -> bool:
    """Whether enough is known to promote the canary.

    Raises CanaryStopped after it was rolled back, Conflict as `_untouched` does, FleetUnseen and
    StoreUnavailable; after those two nothing has changed.
    """
    gen = _untouched(at, trial)
    active, canary = trial.look()
    broken = breaches(active, canary, bounds)
    if broken:
        _take_back(at, trial, broken, gen=gen)
    return enough(active, canary, bounds)


def _undecided(at: Change, trial: Trial, bounds: Bounds, *, unseen: bool) -> CanaryStopped:
    active, canary = trial.counts()
    why = (
        "the nodes or the store could not be seen"
        if unseen
        else f"{canary.ended} requests of {trial.canary.label} and {active.ended} of "
        f"{trial.active.label} ended, {bounds.min_answers} of each are needed"
    )
    return CanaryStopped(
        f"{why}; the split stands at generation {trial.gen}",
        hint=f"go on with: adapter-store canary {at.adapter} {trial.canary.label}; end it "
        f"with: adapter-store rollback {at.adapter}",
    )


def _untouched(at: Change, trial: Trial) -> int:
    """The newest generation, which says what the split says. Raises Conflict when it does not."""
    record = at.head()
    if record.gen != trial.gen and not _is_fence_over(record, trial.split.record):
        raise Conflict(
            f"{at.adapter} is at generation {record.gen}, a {record.kind.value} by {record.actor}; "
            f"the split of generation {trial.gen} is over and nothing was done about it"
        )
    return record.gen


def _is_fence_over(record: Record, split: Record) -> bool:
    """A fence changes nothing."""
    return record.kind.value == "fence" and record.split == split.split


def _take_back(at: Change, trial: Trial, broken: list[str], *, gen: int) -> None:
    """Roll back, and say why. Raises CanaryStopped; whatever else the rollback raises."""
    done = at.publisher.rollback(at.tenant, at.adapter, expect_gen=gen)
    raise CanaryStopped(
        f"{trial.canary.label} was taken back, {trial.active.label} serves everybody under "
        f"generation {done.gen}: {'; '.join(broken)}",
        hint=f"what it did: adapter-store nodes {at.adapter}; its record: adapter-store history "
        f"{at.adapter}",
    )


def _promote(at: Change, trial: Trial, *, silent: bool) -> Published:
    label = f"sha256:{trial.canary.vdig}"
    await_ready(
        at.settings,
        at.store,
        at.tenant,
        at.adapter,
        label=label,
        patience=Patience(None, 60.0, wait=True),
        silent=silent,
    )
    gen = _untouched(at, trial)
    return at.publisher.activate(at.tenant, at.adapter, label=label, expect_gen=gen)


def _words(version: VersionRef, count: ArmCount) -> str:
    pace = f", {1000 * count.token_seconds:.0f} ms a token" if count.tokens else ""
    return f"{version.label}: {count.completed} answered, {count.failed + count.late} failed{pace}"
