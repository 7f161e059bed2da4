"""The program as a shell would run it, in this process or as a child, and its published schemas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from jsonschema import Draft202012Validator
from typer.core import TyperGroup

from adapter_store.cli import app, main

PROGRAM = (sys.executable, "-c", "from adapter_store.cli import main; main()")
SCHEMAS = Path(__file__).parents[3] / "docs" / "cli-json"


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def document(self, schema: str) -> dict[str, Any]:
        """The one JSON document on stdout, valid against its published schema."""
        value: dict[str, Any] = json.loads(self.out)
        validator(schema).validate(value)
        return value

    @property
    def said(self) -> str:
        return self.out + self.err


@dataclass(frozen=True)
class Shell:
    """Runs commands against the services that the environment names."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: object) -> Ran:
        """In this process: fast."""
        self.monkeypatch.setattr(sys, "argv", ["adapter-store", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = self.capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ran(left.value.code, captured.out, captured.err)

    def ok(self, *arguments: object) -> Ran:
        ran = self.run(*arguments)
        assert ran.code == 0, ran.err
        return ran

    def document(self, schema: str, *arguments: object) -> dict[str, Any]:
        """What a successful command printed with --json."""
        return self.ok(*arguments, "--json").document(schema)

    def start(
        self,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stderr: int | None = None,
    ) -> subprocess.Popen[str]:
        """As a child, where a signal or a terminal matters."""
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            text=True,
            env={**os.environ, **(env or {})},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if stderr is None else stderr,
        )


def every_command() -> list[tuple[str, ...]]:
    """The words of every command that the program registers, groups included."""

    def below(group: TyperGroup, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, command in group.commands.items():
            yield (*words, name)
            if isinstance(command, TyperGroup):
                yield from below(command, (*words, name))

    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return sorted(below(root, ()))


@cache
def validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / f"{schema}.schema.json").read_text()))
