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


class Table:
    """Aligned columns on stdout, of which more may come; the header goes before the first row."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._header: list[list[str]] = [list(columns)]
        self._widths = [0] * len(columns)

    def add(self, rows: Sequence[Sequence[object]]) -> None:
        """Columns are as wide as what was seen of them so far."""
        cells = [*self._header, *([str(cell) for cell in row] for row in rows)]
        self._header = []
        for row in cells:
            self._widths = [max(w, len(c)) for w, c in zip(self._widths, row, strict=True)]
        for row in cells:
            padded = (cell.ljust(w) for cell, w in zip(row, self._widths, strict=True))
            tell("  ".join(padded).rstrip())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns on stdout."""
    Table(columns).add(rows)


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
