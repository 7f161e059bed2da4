"""What holds for every command: help, usage, errors, secrets, terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from jsonschema import Draft202012Validator

from adapter_store import errors
from adapter_store.check import check_store
from adapter_store.cli.outcome import exit_code, next_steps
from adapter_store.settings import Endpoints
from tests.adapter_store.cli.shell import SCHEMAS, Shell, every_command

HEAVY = {"torch", "boto3", "botocore", "redis", "numpy", "pydantic_settings", "rich"}


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_help_of_every_command_names_json_and_where_it_takes_words_an_example(
    bare_shell: Shell, command: tuple[str, ...]
) -> None:
    ran = bare_shell.ok(*command, "--help")
    assert "--json" in ran.out
    if command != ("base", "ls"):
        assert f"adapter-store {' '.join(command)}" in ran.out.split("Example", 1)[1]


def test_help_waits_for_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['adapter-store', 'push', '--help']\n"
        "from adapter_store.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)\n"
    )
    times = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        times.append(time.monotonic() - started)
        assert done.stderr == "[]\n"
    assert "--expect-gen" in done.stdout
    assert min(times) < 1.0


def test_usage_errors_are_exit_code_2_and_name_the_help(bare_shell: Shell) -> None:
    for command in (("push",), ("nothing",), ("ls", "--nothing"), ("base", "nothing")):
        ran = bare_shell.run(*command)
        assert (ran.code, ran.out) == (2, "")
        assert re.search(r"^hint: adapter-store.* --help$", ran.err, re.MULTILINE)
        ran = bare_shell.run(*command, "--json")
        assert (ran.code, ran.document("error")["error"]["kind"]) == (2, "Usage")
    for command in (("push", "x", "--name", "a", "--expect-gen", "-1"), ("verify",)):
        assert bare_shell.run(*command).code == 2
    ran = bare_shell.run()
    assert ran.code == 2
    assert "Examples:" in ran.err


def test_the_program_tells_its_version(bare_shell: Shell) -> None:
    assert re.fullmatch(r"adapter-store \d+\.\d+\.\d+\n", bare_shell.ok("--version").out)


STORE_COMMANDS = (
    *(("ls",), ("show", "pirate"), ("history", "pirate"), ("verify", "--all"), ("init",)),
    *(("check",), ("base",), ("base", "add", "card.json"), ("push", "one", "--name", "pirate")),
    *(("rollback", "pirate"), ("settle", "pirate", "0" * 32), ("activate", "pirate")),
    *(("split", "pirate", "v1=1", "v2=1"), ("delete", "pirate", "--yes")),
    ("stage", "one", "--name", "pirate"),
    *(("gc",), ("gc", "--dry-run"), ("fsck",), ("pin", "pirate@v1"), ("unpin", "pirate@v1")),
    ("check", "--full"),
)


@pytest.mark.parametrize("command", STORE_COMMANDS, ids=" ".join)
def test_without_a_store_every_command_says_how_to_get_one(
    bare_shell: Shell, command: tuple[str, ...]
) -> None:
    ran = bare_shell.run(*command)
    assert (ran.code, ran.out) == (6, "")
    assert "make up" in ran.err
    error = bare_shell.run(*command, "--json").document("error")["error"]
    assert (error["kind"], "LORAPOOL_S3_ENDPOINT" in error["hint"]) == ("StoreUnavailable", True)


@pytest.mark.parametrize(
    "command", [("ls",), ("check",), ("push", "one", "--name", "pirate")], ids=" ".join
)
def test_a_store_that_is_down_is_exit_code_6(bare_shell: Shell, command: tuple[str, ...]) -> None:
    bare_shell.monkeypatch.setenv("LORAPOOL_S3_ENDPOINT", "http://127.0.0.1:1")
    bare_shell.monkeypatch.setenv("LORAPOOL_S3_ACCESS_KEY", "key")
    bare_shell.monkeypatch.setenv("LORAPOOL_S3_SECRET_KEY", "s3cr3t")
    ran = bare_shell.run(*command)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (6, "", 2)
    assert "run: adapter-store check" in ran.err
    ran = bare_shell.run("--debug", *command, "--json")
    assert ran.document("error")["error"]["kind"] == "StoreUnavailable"
    assert "Traceback" in ran.err
    assert "s3cr3t" not in ran.said


def test_a_malformed_setting_is_named_and_its_value_is_not(bare_shell: Shell) -> None:
    bare_shell.monkeypatch.setenv("LORAPOOL_S3_ENDPOINT", "s3cr3t")
    bare_shell.monkeypatch.setenv("LORAPOOL_REDIS_URL", "s3cr3t")
    ran = bare_shell.run("--debug", "ls")
    assert ran.code == 2
    assert "LORAPOOL_S3_ENDPOINT" in ran.err
    assert "LORAPOOL_REDIS_URL" in ran.err
    assert "s3cr3t" not in ran.said


@pytest.mark.services
def test_a_redis_url_that_only_redis_finds_fault_with_is_named_and_not_shown(
    shell: Shell,
) -> None:
    for url in ("redis://:s3cr3t@[::1", "redis://:s3cr3t@h:1/0?health_check_interval=s3cr3t"):
        shell.monkeypatch.setenv("LORAPOOL_REDIS_URL", url)
        ran = shell.run("--debug", "push", "one", "--name", "pirate")
        assert ran.code == 2
        assert "LORAPOOL_REDIS_URL" in ran.err
        assert "s3cr3t" not in ran.said


@pytest.mark.services
def test_wrong_credentials_are_refused_and_no_secret_is_ever_shown(
    shell: Shell, endpoints: Endpoints
) -> None:
    shell.monkeypatch.setattr("adapter_store.check.check_store", check_store)
    said = [shell.ok("push", "one", "--name", "pirate").said, shell.ok("check", "--json").said]
    shell.monkeypatch.setenv("LORAPOOL_S3_SECRET_KEY", "not-the-s3cr3t")
    for command in STORE_COMMANDS:
        ran = shell.run("--debug", *command)
        assert ran.code == (7 if command[0] == "settle" else 6), command
        said.append(ran.said)
    password = endpoints.redis_url.rpartition("@")[0].rpartition(":")[2]
    secrets = {endpoints.s3_secret_key, "not-the-s3cr3t", password} - {""}
    assert not [secret for secret in secrets if secret in "".join(said)]


def test_an_unexpected_error_is_one_line_and_its_traceback_is_asked_for(bare_shell: Shell) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    bare_shell.monkeypatch.setattr("adapter_store.settings.load_settings", broken)
    ran = bare_shell.run("ls")
    assert ran.code == 1
    assert ran.err.splitlines()[0] == "error: ZeroDivisionError: a bug"
    assert "LORAPOOL_DEBUG=1" in ran.err
    assert "Traceback" not in ran.err
    ran = bare_shell.run("ls", "--json")
    assert (ran.code, ran.document("error")["error"]["kind"]) == (1, "Unexpected")
    bare_shell.monkeypatch.setenv("LORAPOOL_DEBUG", "1")
    assert "Traceback" in bare_shell.run("ls").err


def leaves(kind: type[errors.StoreError]) -> list[type[errors.StoreError]]:
    return [kind, *(leaf for below in kind.__subclasses__() for leaf in leaves(below))]


def test_every_named_error_has_an_exit_code_a_schema_entry_and_a_next_step() -> None:
    document = json.loads((SCHEMAS / "error.schema.json").read_text())
    known = document["properties"]["error"]["properties"]["kind"]["enum"]
    public = [k for k in leaves(errors.StoreError)[1:] if k.__module__ == errors.__name__]
    for kind in public:
        if kind is errors.AlreadyExists:
            continue  # The protocol answers it; it never leaves the package.
        assert kind.__name__ in known
        assert exit_code(kind("x")) > 1
        with pytest.raises(kind) as left, next_steps():
            raise kind("x")
        settled_elsewhere = (errors.InvalidSetting, errors.OutcomeUnknown)
        conflicts = (errors.Conflict, errors.LockLost)
        assert left.value.hint or issubclass(kind, settled_elsewhere + conflicts)


def test_the_published_schemas_are_schemas_and_the_readme_names_each() -> None:
    readme = (SCHEMAS / "README.md").read_text()
    for path in SCHEMAS.glob("*.json"):
        Draft202012Validator.check_schema(json.loads(path.read_text()))
        assert path.name in readme


@pytest.mark.services
@pytest.mark.parametrize("plain", [False, True])
def test_on_a_terminal_each_file_has_a_bar_and_stdout_has_only_the_result(
    shell: Shell, plain: bool
) -> None:
    env = {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1" if plain else ""}
    shown, stdout = on_a_terminal(shell, env, "push", "one", "--name", "pirate")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert re.search(rf"{file}.*━+.*B/s .*sent", shown), shown
    assert ("\x1b[3" in shown or "\x1b[2m" in shown) is not plain
    assert stdout.startswith("published pirate@v1  generation 1  sha256:")
    assert len(stdout.splitlines()) == 1
    shown, stdout = on_a_terminal(shell, env, "push", "one", "--name", "pirate")
    assert "exists, 0 B sent" in shown
    assert stdout.startswith("unchanged pirate@v1")


def on_a_terminal(shell: Shell, env: dict[str, str], *arguments: str) -> tuple[str, str]:
    """stderr as a terminal got it, and stdout."""
    ours, theirs = pty.openpty()
    with shell.start(*arguments, env=env, stderr=theirs) as child:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:
            os.close(ours)
        assert child.stdout is not None
        stdout = child.stdout.read()
    assert child.returncode == 0, shown
    return shown.decode(), stdout
