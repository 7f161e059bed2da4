"""`gc`, `fsck`, `pin` and `unpin`: what the store keeps, and whether it is all there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Tenant, colours, out, say, size, table, tell
from adapter_store.cli.keys import Trust
from adapter_store.cli.outcome import INVALID, next_steps
from adapter_store.cli.references import full_ref
from adapter_store.cli.session import tenant_option, user, warn_once
from adapter_store.cli.store import open_configured
from adapter_store.errors import InvalidName, NotFound

if TYPE_CHECKING:
    from adapter_store.findings import Finding, Summary
    from adapter_store.garbage import Survey
    from adapter_store.gc import Collected
    from adapter_store.intent import Pin
    from adapter_store.objects import ObjectStore
    from adapter_store.reap import Reaped
    from adapter_store.settings import StoreSettings

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AGE = re.compile(r"([0-9]{1,9})([smhd])")

PinnedReference = Annotated[
    str, typer.Argument(help="name@version or name@sha256:<digest>.", show_default=False)
]


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go and why; delete nothing.")
    ] = False,
    keep: Annotated[
        int, typer.Option(min=1, help="Keep the newest so many records of each adapter.")
    ] = 10,
    younger_than: Annotated[
        str, typer.Option(help="Keep whatever is younger: 90m, 12h, 7d.")
    ] = "7d",
    tenant: Tenant = None,
    trust: Trust = None,
    json: Json = False,
) -> None:
    """Delete what no adapter, no pin and no publisher needs any more.

    Publishers and nodes go on meanwhile; any number of these may run. What is served, staged or
    split always stays, and so do the newest --keep records of each adapter, whatever is younger
    than --younger-than by the store's own clock, and what is pinned. Stopped halfway, it loses
    nothing; the next run finishes.

    \b
    Examples:
      adapter-store gc --dry-run
      adapter-store gc
      adapter-store gc --keep 3 --younger-than 12h --json
    """
    from adapter_store.check import check_store
    from adapter_store.gc import Collector
    from adapter_store.layout import check_id
    from adapter_store.pins import pins_of
    from adapter_store.retention import Retention

    with next_steps():
        rules = Retention(keep=keep, younger_s=_seconds(younger_than))
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        warn = warn_once()
        collector = Collector(
            store,
            retention=rules,
            verifier=settings.open_verifier(warn),
            warn=warn,
            actor=f"{user()} (gc)",
        )
        with _progress(silent=json) as progress:
            if dry_run:
                survey, pins = collector.plan(owner, progress=progress), pins_of(store, owner)
                progress.clear()
                _show_survey(survey, pins, as_json=json)
            else:
                check_store(store)
                reaped = collector.reap(owner)
                done = collector.collect(owner, progress=progress)
                progress.clear()
                _show_collected(done, reaped, as_json=json)


def fsck(
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Read every byte that is served, instead of asking for its checksum."
        ),
    ] = False,
    tenant: Tenant = None,
    trust: Trust = None,
    json: Json = False,
) -> None:
    """Look for missing, damaged and forgotten objects; changes nothing.

    Errors (exit code 5): something served or pinned lost bytes, a log has a gap or a broken chain,
    or something damaged blocks publishers or `gc`. Warnings: what a crash left, and `gc` clears
    away. With --deep every chunk that is served is read and hashed.

    \b
    Examples:
      adapter-store fsck
      adapter-store fsck --deep --json
    """
    from adapter_store.findings import Severity
    from adapter_store.fsck import Examination
    from adapter_store.layout import check_id

    with next_steps():
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        verifier = settings.open_verifier(warn_once())
        examination = Examination(store, owner, deep=deep, verifier=verifier)
        findings: list[dict[str, str]] = []
        orphans = 0
        with _progress(silent=json) as progress:
            progress.phase("examining", None)
            for finding in examination:
                if json:
                    findings.append(_finding_document(finding))
                elif finding.severity is Severity.INFO:
                    orphans += 1
                else:
                    progress.clear()
                    tell(f"{finding.severity.value:7}  {finding.kind.value:16}  {finding.message}")
                    tell(f"{'':7}  {'':16}  {finding.key}")
    summary = examination.summary
    if json:
        out({"tenant": owner, "findings": findings, "summary": _summary_document(summary)})
    else:
        _tell_summary(summary, orphans, deep=deep)
    if summary.found[Severity.ERROR]:
        raise typer.Exit(INVALID)


def pin(reference: PinnedReference, tenant: Tenant = None, json: Json = False) -> None:
    """Keep one version whatever its age, so that it can always be served again.

    \b
    Example:
      adapter-store pin pirate@v1
    """
    from adapter_store.pins import pin as keep
    from adapter_store.reader import Reader

    with next_steps():
        settings, store, owner, name = _one_version(reference, tenant)
        history = f"adapter-store history {name}{tenant_option(settings, owner)}"
        with next_steps({NotFound: history}):
            found = Reader(store).resolve(full_ref(store, owner, reference))
            made = keep(store, found)
    if json:
        out({"tenant": owner, "pinned": True, **pin_document(made)})
    else:
        tell(f"pinned {made.adapter}@{made.label}  sha256:{made.vdig[:12]}")


def unpin(reference: PinnedReference, tenant: Tenant = None, json: Json = False) -> None:
    """Let retention decide again about a version that was pinned.

    \b
    Example:
      adapter-store unpin pirate@v1
    """
    from adapter_store.pins import pins_of
    from adapter_store.pins import unpin as release

    with next_steps():
        settings, store, owner, name = _one_version(reference, tenant)
        selector = reference.partition("@")[2]
        pins = pins_of(store, owner, name)
        named = [p for p in pins if selector in (p.label, f"sha256:{p.vdig}")]
        short = [p for p in pins if len(selector) >= 15 and f"sha256:{p.vdig}".startswith(selector)]
        wanted = named or short
        step = f"adapter-store gc --dry-run{tenant_option(settings, owner)}"
        if len(wanted) != 1:
            raise NotFound(f"{reference} is not pinned", hint=f"see what is pinned: {step}")
        made = release(store, owner, name, wanted[0].vdig)
    if json:
        out({"tenant": owner, "pinned": False, **pin_document(made)})
    else:
        tell(f"unpinned {made.adapter}@{made.label}  sha256:{made.vdig[:12]}")


def pin_document(made: Pin) -> dict[str, Any]:
    return {"adapter": made.adapter, "version": made.label, "digest": made.vdig}


def _one_version(reference: str, tenant: str | None) -> tuple[StoreSettings, ObjectStore, str, str]:
    from adapter_store.layout import check_id

    name, at, _ = reference.partition("@")
    settings, store = open_configured()
    owner = check_id("tenant", tenant or settings.tenant)
    check_id("adapter", name)
    if not at:
        raise InvalidName(
            f"{name} alone names no version", hint=f"adapter-store history {name}, then pin one"
        )
    return settings, store, owner, name


def _seconds(age: str) -> float:
    match = _AGE.fullmatch(age)
    if match is None:
        raise InvalidName(f"{age!r} is no age", hint="e.g. 90m, 12h, 7d; adapter-store gc --help")
    return int(match[1]) * _UNITS[match[2]]


def _show_survey(survey: Survey, pins: list[Pin], *, as_json: bool) -> None:
    versions = [g for g in survey.garbage if g.adapter]
    lost = [g for g in survey.garbage if not g.adapter]
    freed = sum(g.bytes for g in survey.garbage)
    if as_json:
        out(
            {
                "tenant": survey.tenant,
                "dry_run": True,
                "chunks": survey.chunks,
                "bytes": survey.bytes,
                "chunks_to_delete": sum(g.chunks for g in survey.garbage),
                "bytes_to_delete": freed,
                "versions": [
                    {
                        "adapter": g.adapter,
                        "version": g.label,
                        "generation": g.gen,
                        "digest": g.vdig,
                        "chunks": g.chunks,
                        "bytes": g.bytes,
                    }
                    for g in versions
                ],
                "unnamed": {
                    "chunks": sum(g.chunks for g in lost),
                    "bytes": sum(g.bytes for g in lost),
                },
                "pins": [pin_document(made) for made in pins],
                "requests": survey.requests,
            }
        )
        return
    if survey.garbage:
        table(
            ("ADAPTER", "VERSION", "GENERATION", "CHUNKS", "SIZE", "WHY"),
            [
                (g.adapter or "-", g.label or "-", g.gen or "-", g.chunks, size(g.bytes), g.why)
                for g in survey.garbage
            ],
        )
    for made in pins:
        tell(f"pinned, stays: {made.adapter}@{made.label}")
    tell(f"{size(freed)} of {size(survey.bytes)} would be deleted: adapter-store gc")


def _show_collected(done: Collected, reaped: Reaped, *, as_json: bool) -> None:
    if as_json:
        out(
            {
                "tenant": done.tenant,
                "dry_run": False,
                "chunks": done.chunks,
                "chunks_deleted": done.deleted,
                "bytes_deleted": done.bytes_deleted,
                "chunks_spared": done.spared,
                "plans_resumed": done.resumed,
                "plans_left": done.plans_left,
                "intents_removed": reaped.dead + reaped.fenced,
                "intents_waiting": reaped.waiting,
                "intents_stuck": reaped.stuck,
                "requests": done.requests,
            }
        )
        return
    tell(f"deleted {done.deleted} of {done.chunks} chunks, {size(done.bytes_deleted)}")
    if done.resumed:
        tell(f"finished what {done.resumed} earlier collections had planned")
    if reaped.dead + reaped.fenced:
        tell(f"cleared away {reaped.dead + reaped.fenced} abandoned publishes")
    if reaped.stuck:
        say(f"{reaped.stuck} intents could not be cleared away; see: adapter-store fsck")
    if done.spared:
        say(f"{done.spared} chunks were planned for and turned out to be needed; they stay")


def _finding_document(finding: Finding) -> dict[str, str]:
    return {
        "severity": finding.severity.value,
        "kind": finding.kind.value,
        "key": finding.key,
        "message": finding.message,
    }


def _summary_document(summary: Summary) -> dict[str, int]:
    from adapter_store.findings import Severity

    return {
        "adapters": summary.adapters,
        "records": summary.records,
        "live_chunks": summary.live_chunks,
        "bytes_read": summary.bytes_read,
        "chunks": summary.chunks,
        "pins": summary.pins,
        "errors": summary.found[Severity.ERROR],
        "warnings": summary.found[Severity.WARNING],
        "infos": summary.found[Severity.INFO],
    }


def _tell_summary(summary: Summary, orphans: int, *, deep: bool) -> None:
    from adapter_store.findings import Severity

    errors, warnings = summary.found[Severity.ERROR], summary.found[Severity.WARNING]
    how = f"{size(summary.bytes_read)} read" if deep else "by the store's checksums"
    tell(
        f"{summary.adapters} adapters, {summary.records} records, {summary.live_chunks} served "
        f"chunks {how}: {errors} errors, {warnings} warnings"
    )
    if orphans:
        say(f"{orphans} chunks are named by nothing; clear them away: adapter-store gc")
    if errors:
        say("hint: publish again what lost bytes: adapter-store push <folder> --name <name>")


class _Terminal:
    """One line on stderr that says what is going on, rewritten in place; nothing elsewhere."""

    def __init__(self, *, silent: bool) -> None:
        self._shown = not silent and sys.stderr.isatty()
        self._name = ""
        self._total: int | None = None
        self._done = 0

    def phase(self, name: str, total: int | None) -> None:
        self._name, self._total, self._done = name, total, 0
        self._draw()

    def step(self, count: int) -> None:
        self._done += count
        if self._total is None or self._done % 50 == 0 or self._done >= self._total:
            self._draw()

    def clear(self) -> None:
        if self._shown:
            typer.echo("\r\x1b[K", err=True, nl=False)

    def _draw(self) -> None:
        if not self._shown:
            return
        text = self._name if self._total is None else f"{self._name} {self._done}/{self._total}"
        line = typer.style(f"{text} ...", dim=True) if colours() else f"{text} ..."
        typer.echo(f"\r\x1b[K{line}", err=True, nl=False)


@contextmanager
def _progress(*, silent: bool) -> Iterator[_Terminal]:
    terminal = _Terminal(silent=silent)
    try:
        yield terminal
    finally:
        terminal.clear()
