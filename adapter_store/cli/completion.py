"""`completion`: a script that makes the Tab key know the commands and options."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from adapter_store.cli.console import Json, out

PROGRAM = "adapter-store"
VARIABLE = "_ADAPTER_STORE_COMPLETE"


class Shell(StrEnum):
    """Shells there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(help="Your shell.", show_default=False)],
    json: Json = False,
) -> None:
    """Print a script for your shell that completes commands and options.

    \b
    Examples:
      source <(adapter-store completion bash)
      adapter-store completion zsh > ~/.zfunc/_adapter-store
      adapter-store completion fish > ~/.config/fish/completions/adapter-store.fish
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    script = get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell.value)
    if json:
        out({"shell": shell.value, "script": script})
    else:
        # As it is: its line breaks are part of it.
        typer.echo(script)


def prepare_completion() -> None:
    """Teach typer the shells' dialects when a shell asks for completions."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
