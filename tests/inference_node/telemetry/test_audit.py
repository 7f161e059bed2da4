"""The audit has a whole line for every request, or says how many it lacks; nobody waits for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from inference_node.errors import BadConfiguration
from inference_node.telemetry.audit import Audit, AuditFile
from tests.adapter_store.waiting import wait_until
from tests.inference_node.telemetry.ends import DIGEST, ENDED, ended

FULL = Path("/dev/full")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_request_is_there_with_whom_it_was_for_and_what_served_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with Audit(path) as audit:
        for number in range(3):
            audit.ended(ended(request_id=f"r{number}"))
    found = lines(path)
    assert [line["request_id"] for line in found] == ["r0", "r1", "r2"]
    assert (found[0]["caller"], found[0]["tenant"], found[0]["asked"]) == (
        "backend",
        "acme",
        "pirate@v2",
    )
    assert (found[0]["version"], found[0]["generation"], found[0]["digest"]) == ("v2", 7, DIGEST)
    assert found[0]["time"].endswith("+00:00")
    assert audit.lost == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_there_already_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"request_id": "before"}\n')
    with Audit(path) as audit:
        audit.ended(ENDED)
    assert [line["request_id"] for line in lines(path)] == ["before", "r1"]


def test_a_line_that_a_kill_tore_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"request_id": "torn"')
    with Audit(path) as audit:
        audit.ended(ENDED)
    torn, whole = path.read_text().splitlines()
    assert torn == '{"request_id": "torn"'
    assert json.loads(whole)["request_id"] == "r1"


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with Audit(path) as audit:
        audit.ended(ended(request_id="old"))
        wait_until(lambda: "old" in path.read_text(), within_s=10)
        path.rename(tmp_path / "audit.1")
        audit.ended(ended(request_id="new"))
    assert [line["request_id"] for line in lines(path)] == ["new"]
    assert [line["request_id"] for line in lines(tmp_path / "audit.1")] == ["old"]


def test_a_file_that_could_not_be_made_anew_is_taken_once_it_can_be(tmp_path: Path) -> None:
    """As after a rotation that leaves a file that is not the node's, until somebody mends that."""
    path = tmp_path / "audit.jsonl"
    file = AuditFile(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        file.follow()
    path.rmdir()
    path.touch()
    file.follow()
    file.write(b"whole\n")
    file.close()
    assert path.read_text() == "whole\n"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_a_full_disk_loses_lines_that_are_counted_logged_once_and_told_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, room = tmp_path / "audit.jsonl", tmp_path / "room"
    path.symlink_to(FULL)
    with Audit(path) as audit:
        for number in range(3):
            audit.ended(ended(request_id=f"lost{number}"))
            wait_until(lambda n=number: audit.lost == n + 1, within_s=10)  # type: ignore[misc]
        room.touch()
        path.unlink()
        path.symlink_to(room)
        audit.ended(ended(request_id="kept"))
    gap, kept = lines(room)
    assert gap["lost_lines"] == 3
    assert kept["request_id"] == "kept"
    assert audit.lost == 3
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert "are lost: No space left on device" in said[0]
    assert "written" in said[1]


def test_a_line_of_which_a_full_disk_took_a_part_is_closed_off(tmp_path: Path) -> None:
    """A limit on the file's size cuts a write short as a full disk does."""
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from inference_node.telemetry.audit import AuditFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = AuditFile(Path(sys.argv[1]))\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))\n"
        "try:\n"
        "    file.write(b'0123456789abc\\n')\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "file.write(b'whole\\n')\n"
        "file.keep()\n"
    )
    path = tmp_path / "audit.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "only a part of a line was written\n"
    assert path.read_text() == "0123456789\nwhole\n"


def test_a_disk_that_hangs_holds_nobody_up_and_loses_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, go_on = threading.Event(), threading.Event()
    honest = AuditFile.write

    def slow(file: AuditFile, line: bytes) -> None:
        hanging.set()
        go_on.wait(30)
        honest(file, line)

    monkeypatch.setattr(AuditFile, "write", slow)
    path = tmp_path / "audit.jsonl"
    with Audit(path, waiting=4) as audit:
        audit.ended(ENDED)
        assert hanging.wait(10)
        for number in range(7):
            audit.ended(ended(request_id=f"x{number}"))
        assert audit.lost == 3
        go_on.set()
    found = lines(path)
    assert [line.get("request_id", line.get("lost_lines")) for line in found] == [
        "r1",
        3,
        *(f"x{number}" for number in range(4)),
    ]


def test_a_folder_that_is_not_there_is_refused_by_the_name_of_the_variable(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="No such file") as refused:
        Audit(tmp_path / "nowhere" / "audit.jsonl")
    assert "LORAPOOL_AUDIT_FILE" in refused.value.hint


def test_what_reaches_the_file_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from inference_node.telemetry.audit import Audit\n"
        "from tests.inference_node.telemetry.ends import ENDED\n"
        "with Audit(Path(sys.argv[1])) as audit:\n"
        "    while True:\n"
        "        audit.ended(ENDED)\n"
        "        time.sleep(0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)])
    wait_until(lambda: path.exists() and path.stat().st_size > 100_000, within_s=30)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    with Audit(path) as audit:
        audit.ended(ended(request_id="next"))
    found = path.read_text().splitlines()
    assert json.loads(found[-1])["request_id"] == "next"
    assert all(json.loads(line)["request_id"] == "r1" for line in found[:-2])
