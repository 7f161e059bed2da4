"""The program in processes of its own: terminals, signals, and what a start costs."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from adapter_store.bases import register_base
from adapter_store.s3 import S3Store
from adapter_store.settings import PREFIX, Endpoints
from tests.adapter_store.adapter_files import CARD, write_adapter

PROGRAM = (sys.executable, "-c", "from adapter_store.cli import main; main()")
HEAVY = ["torch", "boto3", "botocore", "redis", "numpy", "grpc", "pydantic_settings"]


def environment(endpoints: Endpoints | None = None) -> dict[str, str]:
    """This process's variables, those of the store replaced, on a terminal that can do colours."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith((PREFIX, "NO_COLOR"))}
    named = endpoints.environment() if endpoints else {}
    return clean | named | {"TERM": "xterm-256color", "COLUMNS": "120"}


@pytest.mark.services
def test_a_bar_on_the_terminal_does_not_get_into_json_or_a_pipe(
    endpoints: Endpoints, s3_store: S3Store, tmp_path: Path
) -> None:
    register_base(s3_store, CARD)
    push = ["push", str(write_adapter(tmp_path / "adapter")), "--name"]
    env = environment(endpoints)
    out, shown = on_a_terminal([*push, "bars"], env)
    assert out.startswith("published bars@v1")
    assert "━" in shown
    assert "\x1b" not in out

    out, shown = on_a_terminal([*push, "json", "--json"], env)
    assert json.loads(out)["adapter"] == "json"
    assert shown == ""

    piped = subprocess.run([*PROGRAM, *push, "pipe"], env=env, capture_output=True, text=True)
    assert piped.returncode == 0
    assert "━" not in piped.stderr
    assert "\x1b" not in piped.stdout + piped.stderr


def test_an_error_on_a_terminal_has_no_colour_when_none_is_wanted() -> None:
    out, shown = on_a_terminal(["verify"], environment())
    assert (out, "\x1b[" in shown) == ("", True)
    _, plain = on_a_terminal(["verify"], environment() | {"NO_COLOR": "1"})
    assert plain.startswith("error: ")
    assert "\x1b" not in plain


def on_a_terminal(arguments: list[str], env: dict[str, str]) -> tuple[str, str]:
    """stdout, and what stderr's terminal showed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, *arguments], env=env, stdout=subprocess.PIPE, stderr=theirs
    ) as running:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            # Linux tells a terminal's end this way.
            os.close(ours)
        assert running.stdout is not None
        return running.stdout.read().decode(), shown.decode()


@pytest.mark.services
def test_an_interrupt_ends_a_waiting_command_with_130(endpoints: Endpoints) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with subprocess.Popen(
            [*PROGRAM, "ls", "--json"],
            env=environment(endpoints) | {"LORAPOOL_S3_ENDPOINT": f"http://127.0.0.1:{port}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting:
            asking, _ = mute.accept()
            with asking:
                waiting.send_signal(signal.SIGINT)
                out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, err) == (130, "")
    assert json.loads(out)["error"]["hint"]


@pytest.mark.parametrize("command", [(), ("push",), ("base", "add")], ids=["all", "push", "base"])
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    assert loaded(f"sys.argv = ['adapter-store', *{command!r}, '--help']") == []


def test_the_search_for_heavy_modules_finds_one_that_is_loaded() -> None:
    assert loaded("import numpy; sys.argv = ['adapter-store', '--help']") == ["numpy"]


def loaded(first: str) -> list[str]:
    """Which heavy modules are there after `first` and then the program ran."""
    script = (
        f"import json, sys\n{first}\n"
        "from adapter_store.cli import main\n"
        "try: main()\n"
        "except SystemExit as left: assert not left.code, left.code\n"
        f"print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    found: list[str] = json.loads(done.stderr)
    return found


def test_help_takes_under_300_ms_of_processor_time() -> None:
    def spent() -> float:
        child = subprocess.Popen([*PROGRAM, "--help"], stdout=subprocess.DEVNULL, env=environment())
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        return usage.ru_utime + usage.ru_stime

    assert statistics.median(spent() for _ in range(5)) < 0.3
