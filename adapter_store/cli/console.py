"""How commands speak: results on stdout, everything else on stderr, errors as stable codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.errors import (
    Conflict,
    IntegrityError,
    InvalidAdapter,
    InvalidName,
    InvalidSetting,
    LockLost,
    NotFound,
    OutcomeUnknown,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUnfit,
)

if TYPE_CHECKING:
    from adapter_store.upload import UploadProgress

OK, OTHER, USAGE, NOT_FOUND, CONFLICT, INVALID, UNAVAILABLE, UNKNOWN = range(8)

EXIT_CODES: dict[type[StoreError], int] = {
    InvalidName: USAGE,
    InvalidSetting: USAGE,
    NotFound: NOT_FOUND,
    Conflict: CONFLICT,
    LockLost: CONFLICT,
    InvalidAdapter: INVALID,
    IntegrityError: INVALID,
    StoreUnavailable: UNAVAILABLE,
    StoreRefused: UNAVAILABLE,
    StoreUnfit: UNAVAILABLE,
    OutcomeUnknown: UNKNOWN,
}

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Tenant = Annotated[str | None, typer.Option(help="Whose adapter; LORAPOOL_TENANT or 'default'.")]


def exit_code(error: StoreError) -> int:
    kinds = type(error).__mro__
    return next((EXIT_CODES[kind] for kind in kinds if kind in EXIT_CODES), OTHER)


def report(error: StoreError, *, as_json: bool) -> int:
    """Say what is now true and what to do next; the exit code."""
    if as_json:
        document = {"kind": type(error).__name__, "message": str(error), "hint": error.hint}
        if isinstance(error, OutcomeUnknown):
            document["txid"] = error.txid
        out({"error": document})
    else:
        typer.echo(f"error: {error}", err=True)
        if error.hint:
            say(f"hint: {error.hint}")
    return exit_code(error)


def report_unexpected(error: Exception, *, as_json: bool) -> None:
    """One line for what should not have happened."""
    hint = "set LORAPOOL_DEBUG=1 to see where"
    message = f"{type(error).__name__}: {error}"
    if as_json:
        out({"error": {"kind": "Unexpected", "message": message, "hint": hint}})
    else:
        typer.echo(f"error: {message}", err=True)
        say(f"hint: {hint}")


def say(line: str) -> None:
    """A dim line on stderr."""
    typer.echo(typer.style(line, dim=True) if _colours() else line, err=True)


def out(value: object) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns on stdout."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def size(count: int) -> str:
    """Bytes for people: 4.6 MiB."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024 or unit == "GiB":
            break
    return f"{value:.1f} {unit}"


@contextmanager
def upload_progress(title: str, *, quiet: bool) -> Iterator[UploadProgress]:
    """A bar with speed and time left on a terminal; nothing elsewhere."""
    from adapter_store.upload import NoProgress

    if quiet or not sys.stderr.isatty():
        yield NoProgress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, no_color=not _colours())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)

        class Bar:
            def planned(self, total_bytes: int) -> None:
                progress.update(task, total=total_bytes)

            def sent(self, count: int) -> None:
                progress.advance(task, count)

            def reused(self, count: int) -> None:
                progress.advance(task, count)

        yield Bar()


def _colours() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")
