"""`--help` in panels: what each command is for, and only then what it is called.

Typer draws panels with rich, and `--help` does not wait for rich.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

PUBLISH = "Publish"
LOOK = "Look"
TAKE_CARE = "Take care of the store"
SET_UP = "Set up"

_SUMMARY_WIDTH = 200


class Panels(TyperGroup):
    """A group whose commands are listed under their panel, in the order of registration."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                summary = command.get_short_help_str(_SUMMARY_WIDTH)
                panels.setdefault(panel, []).append((name, summary))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)
