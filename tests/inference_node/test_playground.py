"""The playground: what it says of calls, whom it refuses, and that a browser shows it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.services import free_ports
from inference_node.cli.settings import NodeSettings
from inference_node.errors import BadConfiguration, StoreDown
from inference_node.playground.web import Playground
from inference_node.request import OnEvent, Request
from tests.adapter_store import publishing
from tests.adapter_store.publishing import TENANT
from tests.adapter_store.waiting import wait_until
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.rpc.scripted_engine import DIGEST, ScriptedEngine, fails, hangs, says

INFERENCE = "/lorapool.v1.InferenceService"
HOSTILE = "<img src=x onerror=document.title='owned'>"


@dataclass
class Place:
    """A playground, and the engine and store of the node behind it."""

    address: str
    engine: ScriptedEngine
    store: MemoryStore

    def post(self, path: str, body: object, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        with contextlib.closing(connection):
            said = {"content-type": "application/json"} | {
                name.replace("_", "-"): value for name, value in headers.items()
            }
            text = body if isinstance(body, str) else json.dumps(body)
            connection.request("POST", path, text, said)
            response = connection.getresponse()
            return response.status, response.read().decode()


@pytest.fixture
def place() -> Iterator[Place]:
    engine, store = ScriptedEngine(), MemoryStore()
    listen = f"127.0.0.1:{free_ports('127.0.0.1', 1)[0]}"
    with (
        running_server(engine, CONFIG, open_reader=lambda: Reader(store)) as server,
        Playground(listen, node=f"127.0.0.1:{server.port}"),
    ):
        yield Place(listen, engine, store)


Browser = Callable[[Place, str], str]


def test_an_answer_is_the_json_that_envoy_makes_of_it(place: Place) -> None:
    status, text = place.post(f"{INFERENCE}/Generate", {"prompt": "x", "adapter": "ada"})
    answer = json.loads(text)
    assert (status, answer["text"]) == (200, "hello wörld")
    assert answer["served"]["generation"] == "7"
    assert answer["served"]["digest"] == DIGEST


def test_a_stream_is_one_object_a_line(place: Place) -> None:
    _, text = place.post(f"{INFERENCE}/StreamGenerate", {"request": {"prompt": "x"}})
    events = [json.loads(line) for line in text.splitlines()]
    assert ("started" in events[0], "completed" in events[-1]) == (True, True)
    assert "".join(event["delta"]["text"] for event in events[1:-1]) == "hello wörld"


@pytest.mark.parametrize(
    ("path", "body", "http_status", "says_so"),
    [
        ("Generate", {"prompt": "x", "adapter": "../x"}, 400, "INVALID_REQUEST"),
        ("Generate", {"prompt": "x", "adaptor": "ada"}, 400, "adaptor"),
        ("Generate", "{", 400, "body"),
        ("StreamGenerate", {"request": {}}, 400, "input"),
        ("Nothing", {}, 404, "no such method"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_decoded(
    place: Place, path: str, body: Any, http_status: int, says_so: str
) -> None:
    status, text = place.post(f"{INFERENCE}/{path}", body)
    assert (status, says_so in text) == (http_status, True), text
    assert not place.engine.submitted


def test_an_error_in_mid_stream_is_a_line_of_its_own(place: Place) -> None:
    place.engine.script = fails(StoreDown("away"))
    status, text = place.post(f"{INFERENCE}/StreamGenerate", {"request": {"prompt": "x"}})
    *_, last = map(json.loads, text.splitlines())
    assert (status, last["error"]["code"]) == (200, 14)
    assert last["error"]["details"][0]["reason"] == "STORE_UNAVAILABLE"


def test_the_header_goes_with_the_call(place: Place) -> None:
    body = {"prompt": "x", "adapter": "ada"}
    assert place.post(f"{INFERENCE}/Generate", body, x_adapter_id="ada")[0] == 200
    status, text = place.post(f"{INFERENCE}/Generate", body, x_adapter_id="bob")
    assert (status, "x-adapter-id" in text) == (400, True)


@pytest.mark.parametrize(
    ("headers", "http_status"),
    [
        ({"origin": "https://evil.example.com"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example.com"}, 421),
        ({"host": "127.0.0.1.evil.example.com:80"}, 421),
        ({"content_type": "text/plain"}, 415),
    ],
)
def test_pages_of_others_in_the_same_browser_get_no_call_through(
    place: Place, headers: dict[str, str], http_status: int
) -> None:
    status, _ = place.post(f"{INFERENCE}/Generate", {"prompt": "x"}, **headers)
    assert status == http_status
    assert not place.engine.submitted


@pytest.mark.parametrize(
    ("settings", "says_so"),
    [
        ({"playground_listen": "0.0.0.0:8090"}, "reachable from other machines"),
        ({"playground_listen": "example.com:80"}, "reachable from other machines"),
        ({"playground_listen": "8090"}, "not host:port"),
        ({"jwks_file": "k", "jwt_issuer": "i", "jwt_audience": "a"}, "no credentials"),
        ({"tls_cert_file": "c", "tls_key_file": "k"}, "no credentials"),
        ({"listen": "localhost:1"}, "IP address"),
    ],
)
def test_a_page_for_others_or_without_a_way_in_is_refused(
    settings: dict[str, Any], says_so: str
) -> None:
    with pytest.raises(BadConfiguration, match=says_so):
        NodeSettings(**{"playground_listen": "127.0.0.1:8090", **settings}).playground_address()


def test_a_port_that_is_taken_is_said_by_its_setting(place: Place) -> None:
    with pytest.raises(BadConfiguration) as refused, Playground(place.address, node="127.0.0.1:1"):
        pass
    assert "LORAPOOL_PLAYGROUND_LISTEN" in refused.value.hint


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """Opens a page of the playground; the document once it has rested."""
    names = ("chromium-headless-shell", "chromium", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no chromium on PATH: apt-get install chromium-headless-shell")

    def opened(place: Place, query: str) -> str:
        done = subprocess.run(
            [
                *(program, "--headless", "--no-sandbox", "--disable-gpu"),
                *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=4000", "--dump-dom"),
                f"http://{place.address}/?{query}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return opened


def card(document: str, persona: str) -> str:
    found = re.search(rf'<article data-persona="{persona}".*?</article>', document, re.DOTALL)
    assert found is not None, document
    return found[0]


def test_a_browser_shows_personas_side_by_side_with_version_and_speed(
    place: Place, browser: Browser
) -> None:
    publisher = publishing.publisher(place.store)
    for name in ("pirate", "poet"):
        publisher.publish(TENANT, name, publishing.adapter(1), label="v3")
    document = browser(place, "personas=pirate,poet&prompt=Who%3F&ask")
    for name in ("pirate", "poet"):
        shown = card(document, name)
        assert 'data-state="answered"' in shown
        assert "hello wörld" in shown
        assert f"{name}@v3, generation 7, sha256:{DIGEST[:12]}" in shown
        assert "tokens/s" in shown
        assert "current: v3" in shown
    assert "1 of 8 pages, 1 versions" in document
    assert {request.adapter for request in place.engine.submitted} == {"pirate", "poet"}


def test_what_a_model_says_is_text_and_nothing_else(place: Place, browser: Browser) -> None:
    place.engine.script = says(HOSTILE)
    document = browser(place, "personas=base%20model&ask")
    assert "&lt;img src=x" in card(document, "base model")
    assert "<title>lorapool playground</title>" in document


def test_a_version_that_flips_while_one_looks_is_seen(place: Place, browser: Browser) -> None:
    publisher = publishing.publisher(place.store)
    publisher.publish(TENANT, "pirate", publishing.adapter(1), label="v3")
    answers = place.engine.script

    def flips(request: Request, emit: OnEvent, cancelled: threading.Event) -> None:
        publisher.publish(TENANT, "pirate", publishing.adapter(2), label="v4")
        answers(request, emit, cancelled)

    place.engine.script = flips
    document = browser(place, "personas=pirate&ask")
    assert "pirate is v4 now, generation 2" in document
    shown = card(document, "pirate")
    assert "current: v4" in shown
    assert "flipped" in shown


def test_a_page_that_is_closed_stops_the_engine(place: Place) -> None:
    place.engine.script = hangs
    connection = http.client.HTTPConnection(place.address, timeout=10)
    with contextlib.closing(connection):
        body = json.dumps({"request": {"prompt": "x"}})
        said = {"content-type": "application/json"}
        connection.request("POST", f"{INFERENCE}/StreamGenerate", body, said)
        assert b"started" in connection.getresponse().readline()
    wait_until(lambda: place.engine.cancelled)


def test_a_persona_that_is_refused_says_why_beside_the_others(
    place: Place, browser: Browser
) -> None:
    publishing.publisher(place.store).publish(TENANT, "pirate", publishing.adapter(1), label="v3")
    place.engine.script = fails(StoreDown("the store is away"))
    shown = card(browser(place, "personas=pirate&ask"), "pirate")
    assert 'data-state="refused"' in shown
    assert "the store is away" in shown
