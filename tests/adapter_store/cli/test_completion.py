from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.adapter_store.cli.shell import PROGRAM, Shell


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_names_the_program(
    bare_shell: Shell, shell_name: str
) -> None:
    script = bare_shell.ok("completion", shell_name).out
    told = bare_shell.document("completion", "completion", shell_name)
    assert told == {"shell": shell_name, "script": script.rstrip("\n")}
    assert "_ADAPTER_STORE_COMPLETE" in script
    if shutil.which(shell_name):
        subprocess.run([shell_name, "-n"], input=script, text=True, check=True)


def test_a_shell_there_is_no_script_for_is_a_usage_error(bare_shell: Shell) -> None:
    assert bare_shell.run("completion", "cmd").code == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("pu", {"push", "pull"}), ("push --dry", {"--dry-run"}), ("base a", {"add"})],
)
def test_what_bash_asks_for_is_answered(typed: str, offered: set[str]) -> None:
    words = ["adapter-store", *typed.split()]
    answer = subprocess.run(
        PROGRAM,
        env={
            "_ADAPTER_STORE_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(answer.stdout.split()) == offered
