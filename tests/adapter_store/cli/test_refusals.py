"""What goes wrong: an exit code, one line of what is true, and what to do next."""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapter_store.bases import register_base
from adapter_store.cli import main
from adapter_store.commit import Publisher
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.s3 import S3Store, open_s3
from adapter_store.settings import PREFIX, Endpoints
from tests.adapter_store.adapter_files import CARD, config, pack, tensors, write_adapter
from tests.adapter_store.fault_proxy import answering
from tests.adapter_store.faulty_store import Fault, FaultyStore, OverwritingStore, RacingStore
from tests.adapter_store.publishing import ADAPTER, SteppedClock, publish, served_seed

pytestmark = pytest.mark.services

CLOSED = "http://127.0.0.1:1"
PACKED = pack(tensors())


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Tool:
    """The program in this process; nothing it says may hold the store's secret key."""

    endpoints: Endpoints
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object, **variables: str) -> Ran:
        """`s3_bucket="b"` sets LORAPOOL_S3_BUCKET for this call."""
        changed = {PREFIX + name.upper(): value for name, value in variables.items()}
        with self.monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(PREFIX)]:
                patch.delenv(name)
            for name, value in (self.endpoints.environment() | changed).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["adapter-store", *map(str, arguments)])
            self.capsys.readouterr()
            with pytest.raises(SystemExit) as left:
                main()
        captured = self.capsys.readouterr()
        assert self.endpoints.s3_secret_key not in captured.out + captured.err
        assert isinstance(left.value.code, int)
        return Ran(left.value.code, captured.out, captured.err)

    @contextmanager
    def through(self, wrap: Callable[[S3Store], ObjectStore]) -> Iterator[None]:
        """Commands see the store as `wrap` makes it."""

        def opened(**where: Any) -> ObjectStore:
            return wrap(open_s3(**where))

        with self.monkeypatch.context() as patch:
            patch.setattr("adapter_store.s3.open_s3", opened)
            yield


@pytest.fixture
def tool(
    endpoints: Endpoints,
    s3_store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Tool:
    """The base that the test adapters fit is registered."""
    register_base(s3_store, CARD)
    return Tool(endpoints, monkeypatch, capsys)


class SilentLog(FaultyStore):
    """Takes the first log record and from then on answers nothing."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, fault=Fault.LOST_ANSWER)
        self._silent = False

    def _meets_fault(self, verb: str, key: str) -> bool:
        self._silent |= verb == "put_new" and "/log/" in key
        return self._silent


def refused(tool: Tool, code: int, *arguments: object, **variables: str) -> Ran:
    """Ran once for people and once for programs: the same code, a line and a hint in both."""
    told = tool(*arguments, "--json", **variables)
    error = json.loads(told.out)["error"]
    assert told.code == code, error
    assert error["kind"]
    assert error["message"]
    assert error["hint"]
    ran = tool(*arguments, **variables)
    assert (ran.code, ran.out) == (code, "")
    assert "error: " in ran.err
    assert "hint: " in ran.err
    assert "Traceback" not in ran.err
    return ran


def pickled(folder: Path) -> None:
    """How files of torch.save began before they were zip archives."""
    write_adapter(folder, weights=pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + PACKED)


def zipped(folder: Path) -> None:
    write_adapter(folder, weights=b"PK\x03\x04" + bytes(300))


def named_bin(folder: Path) -> None:
    write_adapter(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut_short(folder: Path) -> None:
    write_adapter(folder, weights=PACKED[:-100])


def garbage(folder: Path) -> None:
    write_adapter(folder, weights=bytes(range(256)) * 8)


def for_another_base(folder: Path) -> None:
    arrays = {name: array[..., :4] for name, array in tensors().items()}
    write_adapter(folder, weights=pack(arrays))


def for_other_modules(folder: Path) -> None:
    body = json.dumps(config(target_modules=["gate_proj"])).encode()
    write_adapter(folder, config_body=body)


def unreadable(folder: Path) -> None:
    """Opening a socket fails even for root."""
    write_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind("adapter/adapter_model.safetensors")


def missing(folder: Path) -> None:
    return


CONTENTS: list[Callable[[Path], None]] = [
    pickled,
    zipped,
    named_bin,
    cut_short,
    garbage,
    for_another_base,
    for_other_modules,
    unreadable,
    missing,
]


@pytest.mark.parametrize("make", CONTENTS, ids=[make.__name__ for make in CONTENTS])
def test_content_that_cannot_be_served_is_refused_before_anything_is_sent(
    tool: Tool,
    s3_store: S3Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "adapter")
    ran = refused(tool, 5, "push", "adapter", "--name", ADAPTER)
    if make in (pickled, zipped, named_bin):
        assert "safe_serialization=True" in ran.err
    assert s3_store.list("v1/t/").keys == ()


def test_every_command_says_within_seconds_that_the_store_is_down(
    tool: Tool, tmp_path: Path
) -> None:
    push = ("push", write_adapter(tmp_path / "adapter"), "--name", ADAPTER)
    verbs = ("show", "history", "verify", "rollback")
    about_one = [(verb, ADAPTER) for verb in verbs]
    for command in (push, ("ls",), ("init",), ("check",), ("base", "ls"), *about_one):
        begun = time.monotonic()
        ran = tool(*command, s3_endpoint=CLOSED)
        assert time.monotonic() - begun < 10, command
        assert (ran.code, ran.out) == (6, ""), command
        assert "hint: " in ran.err, command
    refused(tool, 6, "ls", s3_endpoint=CLOSED)


def test_a_store_that_refuses_or_is_unfit_is_unavailable(tool: Tool) -> None:
    refused(tool, 6, "ls", s3_secret_key="not-the-key")
    missing_bucket = refused(tool, 6, "ls", s3_bucket="lorapool-test-nowhere")
    assert "does not exist" in missing_bucket.err
    with tool.through(lambda store: OverwritingEverything(store)):
        assert "If-None-Match" in refused(tool, 6, "check").err
    with answering(503, "SlowDown") as busy:
        assert tool("show", ADAPTER, s3_endpoint=busy.url).code == 6


class OverwritingEverything(OverwritingStore):
    """The seeded bug of a store that ignores `If-None-Match`, for every key."""

    def put_new(self, key: str, body: bytes) -> None:
        self.delete(key)
        super().put_new(key, body)


def test_a_publish_nobody_knows_the_end_of_is_its_own_code_and_can_be_settled(
    tool: Tool,
    s3_store: S3Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, clock = write_adapter(tmp_path / "adapter"), SteppedClock()
    with monkeypatch.context() as patch, tool.through(SilentLog):
        stepped = partial(Publisher, clock=clock, sleep=clock.sleep)
        patch.setattr("adapter_store.commit.Publisher", stepped)
        ran = tool("push", folder, "--name", ADAPTER, "--json")
    assert ran.code == 7
    told = json.loads(ran.out)["error"]
    assert told["kind"] == "OutcomeUnknown"
    assert told["txid"] in told["hint"]
    assert Reader(s3_store).head("default", ADAPTER).txid == told["txid"]

    settled = tool("settle", ADAPTER, told["txid"], "--json")
    assert (settled.code, json.loads(settled.out)["generation"]) == (0, 1)
    again = json.loads(tool("push", folder, "--name", ADAPTER, "--json").out)
    assert (again["unchanged"], again["txid"]) == (True, told["txid"])


@pytest.mark.parametrize("debug", ["", "1"], ids=["plain", "debug"])
def test_no_secret_is_ever_printed(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str], debug: str
) -> None:
    canary = "c4nary-7e1f"
    folder = write_adapter(tmp_path / "adapter")
    secrets: list[dict[str, str]] = [
        {"s3_secret_key": canary},
        {"s3_secret_key": canary, "s3_endpoint": CLOSED},
        {"s3_secret_key": canary, "s3_endpoint": "nonsense"},
        {"redis_url": f"redis://:{canary}@127.0.0.1:1/0"},
        {"redis_url": f"redis://:{canary}@127.0.0.1:1/0?health_check_interval=x"},
        {"redis_url": f"redis://:{canary}@[::1"},
        {"redis_url": f"redis://:{canary}/{canary}@127.0.0.1:1"},
        {"s3_endpoint": f"http://user:{canary}@127.0.0.1:1"},
        {"redis_url": f"http://:{canary}@127.0.0.1"},
    ]
    for secret in secrets:
        for format in ((), ("--json",)):
            ran = tool("push", folder, "--name", ADAPTER, *format, **secret, debug=debug)
            assert canary not in ran.out + ran.err
            assert bool(debug) == ("Traceback" in ran.err) or ran.code == 0


@pytest.mark.parametrize("flags", [(), ("--no-rebase",)], ids=["rebase", "no-rebase"])
def test_an_overtaken_push_goes_on_top_unless_told_not_to(
    tool: Tool, s3_store: S3Store, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    push = ("push", write_adapter(tmp_path / "adapter", seed=1), "--name", ADAPTER)
    with tool.through(lambda store: RacingStore(store, lambda: publish(s3_store, 5))):
        ran = tool(*push, *flags)
    if flags:
        assert (ran.code, served_seed(s3_store)) == (4, 5)
        assert "another publisher changed what pirate serves" in ran.err
    else:
        assert (ran.code, served_seed(s3_store)) == (0, 1)
        assert "published pirate@v2  generation 2" in ran.out
