"""How commands speak: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, errors too.")]
Tenant = Annotated[
    str | None,
    typer.Option(help="Whose adapter; default: LORAPOOL_TENANT, else 'default'."),
]
Name = Annotated[str, typer.Argument(help="The adapter's name.", show_default=False)]


def say(line: str) -> None:
    """A dim line on stderr."""
    text = printable(line)
    typer.echo(typer.style(text, dim=True) if colours() else text, err=True)


def complain(message: str, hint: str) -> None:
    """An error for people: one line, and one that says what to run next."""
    label = typer.style("error:", fg="red", bold=True) if colours() else "error:"
    typer.echo(f"{label} {printable(message)}", err=True)
    if hint:
        say(f"hint: {hint}")


def complain_as_json(kind: str, message: str, hint: str, exit_code: int, **more: str) -> None:
    """The same for programs, on stdout."""
    error = {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}
    out({"error": {**error, **more}})


def out(value: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def tell(line: str) -> None:
    """One line of a result on stdout."""
    typer.echo(printable(line))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns on stdout."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        tell("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


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


def printable(text: str) -> str:
    """`text` on one line, without what could steer a terminal: others wrote some of it."""
    return "".join(
        char if char.isprintable() else " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def colours() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")
