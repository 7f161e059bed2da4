"""Clients that nobody here wrote, against a real node: reflection alone tells them what there is.

`buf` is always there. `grpcurl` is run where it is on PATH or in GRPCURL_BIN, and JavaScript where
there is a `node` and `npm ci --prefix examples/node` was run; neither is fetched from anywhere.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from adapter_store.reader import Reader
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import PATIENCE, Node
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.tiny import make_adapter

ROOT = Path(__file__).resolve().parents[2]
INFERENCE = "lorapool.v1.InferenceService"
CATALOG = "lorapool.v1.CatalogService"
ADAPTERS = "lorapool.v1.AdapterService"
Json = dict[str, Any]


@dataclass
class Place:
    """A real node with adapter `ada`, and where it listens."""

    node: Node
    address: str
    admin: str


@pytest.fixture
def place(start_tiny: StartTiny, tmp_path: Path) -> Iterator[Place]:
    node = start_tiny()
    folder = make_adapter(tmp_path / "ada", dict(node.card.modules), rank=8, seed=1)
    node.publish("ada", folder, label="v1")
    config = replace(CONFIG, admin_listen="127.0.0.1:0")
    with running_server(
        node.engine, config, open_reader=lambda: Reader(node.store), control=node.engine
    ) as server:
        yield Place(node, f"127.0.0.1:{server.port}", f"127.0.0.1:{server.admin_port}")


def documents(text: str) -> list[Json]:
    """JSON objects, one after the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (at := len(text) - len(text[at:].lstrip())) < len(text):
        document, at = decoder.raw_decode(text, at)
        found.append(document)
    return found


@dataclass(frozen=True)
class Told:
    """What a client printed and how it ended."""

    code: int
    out: list[Json]
    err: str


Curl = Callable[[str, str, Json], Told]


def run(*command: str | Path) -> Told:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT
    )
    return Told(done.returncode, documents(done.stdout), done.stderr)


def buf_curl(address: str, method: str, message: Json) -> Told:
    buf = Path(sys.executable).parent / "buf"
    url = f"http://{address}/{method}"
    protocol = ("--protocol", "grpc", "--http2-prior-knowledge")
    return run(buf, "curl", *protocol, "--reflect", "-d", json.dumps(message), url)


def grpcurl(address: str, method: str, message: Json) -> Told:
    program = os.environ.get("GRPCURL_BIN") or shutil.which("grpcurl")
    if program is None:
        pytest.skip("no grpcurl on PATH and none in GRPCURL_BIN")
    return run(program, "-plaintext", "-d", json.dumps(message), address, method)


@pytest.fixture(params=[buf_curl, grpcurl], ids=["buf", "grpcurl"])
def curl(request: pytest.FixtureRequest) -> Curl:
    chosen: Curl = request.param
    return chosen


def asked(**fields: object) -> Json:
    return {"prompt": "Tell me.", "adapter": "ada", "stopping": {"maxNewTokens": 4}} | fields


def test_a_client_that_knows_only_the_address_gets_an_answer_and_its_version(
    place: Place, curl: Curl
) -> None:
    told = curl(place.address, f"{INFERENCE}/Generate", asked())
    assert told.code == 0, told.err
    (answer,) = told.out
    assert answer["served"]["adapter"] == "ada"
    assert answer["served"]["version"] == "v1"
    # grpcurl keeps the names of the protos where reflection gives it no others.
    tokens = answer.get("tokenIds") or answer["token_ids"]
    assert 1 <= len(tokens) <= 4


def test_a_stream_starts_goes_on_and_completes(place: Place, curl: Curl) -> None:
    told = curl(place.address, f"{INFERENCE}/StreamGenerate", {"request": asked()})
    assert told.code == 0, told.err
    assert "started" in told.out[0]
    assert "completed" in told.out[-1]
    assert told.out[-1]["completed"]["served"] == told.out[0]["started"]["served"]


def test_a_refusal_comes_with_its_reason(place: Place, curl: Curl) -> None:
    told = curl(place.address, f"{INFERENCE}/Generate", asked(adapter="nobody"))
    assert told.code != 0
    assert "there is no adapter nobody" in told.err
    assert "google.rpc.ErrorInfo" in told.err
    # grpcurl reads the details, buf prints them in base64.
    encoded = [
        base64.b64decode(each + "==")
        for each in re.findall(r'"value": "([A-Za-z0-9+/]+)', told.err)
    ]
    assert "ADAPTER_NOT_FOUND" in told.err or any(b"ADAPTER_NOT_FOUND" in each for each in encoded)


def test_the_catalog_and_the_operators_port_are_found_by_reflection_too(
    place: Place, curl: Curl
) -> None:
    listed = curl(place.address, f"{CATALOG}/ListAdapters", {})
    assert listed.out == [{"adapters": ["ada"]}], listed.err
    pinned = curl(place.admin, f"{ADAPTERS}/PinAdapter", {"adapter": "ada"})
    assert pinned.out[0]["loaded"]["pinned"] is True, pinned.err
    pool = curl(place.admin, f"{ADAPTERS}/GetPoolStatus", {})
    assert pool.out[0]["pool"]["resident"] == 1, pool.err


@pytest.fixture
def javascript(place: Place) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs examples/node/stream.mjs against the node."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no node on PATH")
    if not (ROOT / "examples/node/node_modules/@grpc/grpc-js").is_dir():
        pytest.skip("`npm ci --prefix examples/node` was not run")

    def stream(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = ROOT / "examples/node/stream.mjs"
        return subprocess.run(
            [program, script, place.address, "Tell me.", *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return stream


def test_javascript_streams_an_answer_to_its_end(
    javascript: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = javascript("ada@v1")
    told = json.loads(done.stderr)
    assert done.returncode == 0, told
    assert told["served"]["adapter"] == "ada"
    assert told["tokens"] > 0
    assert told["finishReason"] in ("FINISH_REASON_LENGTH", "FINISH_REASON_STOP")


def test_javascript_that_hangs_up_stops_the_engine(
    place: Place, javascript: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = javascript("ada", "3")
    told = json.loads(done.stderr)
    assert (done.returncode, told["cancelled"], told["finishReason"]) == (0, True, None), told
    end = time.monotonic() + PATIENCE
    while (info := place.node.engine.info()).running or info.pool.leases:
        assert time.monotonic() < end
        time.sleep(0.01)
    place.node.settle()


def test_javascript_is_told_why_it_is_refused(
    javascript: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = javascript("nobody")
    told = json.loads(done.stderr)
    assert (done.returncode, told["code"], told["refused"]) == (1, 5, True), told
    assert "there is no adapter nobody" in told["details"]
