"""`stage` asks the nodes, `activate` waits for them, and both say what the nodes told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from adapter_store.fleet import Copy, Holding, Standing
from adapter_store.notify import open_hints
from adapter_store.reader import Reader
from adapter_store.record import Record
from adapter_store.registry import FleetRegistry, open_registry
from adapter_store.s3 import S3Store
from adapter_store.settings import Endpoints
from tests.adapter_store.adapter_files import CARD
from tests.adapter_store.cli.shell import Shell
from tests.adapter_store.fleet_cards import card

pytestmark = pytest.mark.services
STAGE = ("stage", "two", "--name", "pirate", "--version", "v2")


@dataclass
class Fleet:
    """Nodes that tell what a test has them tell."""

    registry: FleetRegistry
    store: S3Store
    redis_url: str

    def join(self, *nodes: str) -> None:
        """Each serves what is current."""
        for node in nodes:
            self.tell(node)
            self.registry.announce(card(node, base=CARD.fingerprint), lease_s=60)

    def tell(self, node: str, staged: Standing | None = None, reason: str = "") -> None:
        record = self.head()
        assert record.active is not None
        copies = {record.active.vdig: Copy(record.active.label, Standing.DEVICE)}
        if staged is not None and record.staged is not None:
            copies[record.staged.vdig] = Copy(record.staged.label, staged, reason)
        held = Holding("default", "pirate", record.gen, record.active.vdig, copies)
        self.registry.tell(node, [held], lease_s=60)

    def head(self) -> Record:
        return Reader(self.store).head("default", "pirate")

    @contextmanager
    def following(self, *nodes: str, staged: Standing = Standing.HOST) -> Iterator[None]:
        """Nodes that, once the last is asked, have what is staged and serve what is active."""
        stop = threading.Event()
        hints = open_hints(self.redis_url, node=nodes[-1])
        hints.poll(0)

        def follow() -> None:
            while not any(hint.ahead for hint in hints.poll(0.2)) and not stop.is_set():
                pass
            while not stop.wait(0.1):
                for node in nodes:
                    self.tell(node, staged)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def fleet(shell: Shell, endpoints: Endpoints, s3_store: S3Store) -> Iterator[Fleet]:
    """Two nodes that serve pirate@v1."""
    shell.ok("push", "one", "--name", "pirate", "--version", "v1")
    fleet = Fleet(open_registry(endpoints.redis_url), s3_store, endpoints.redis_url)
    fleet.join("n1", "n2")
    yield fleet
    for node in ("n1", "n2"):
        fleet.registry.leave(node)


def test_staging_asks_the_nodes_that_hold_the_adapter(
    shell: Shell, fleet: Fleet, endpoints: Endpoints
) -> None:
    hints = open_hints(endpoints.redis_url, node="n2")
    hints.poll(0)
    assert "2 nodes fetch it ahead; see: adapter-store nodes pirate" in shell.ok(*STAGE).err
    assert [hint.ahead for hint in hints.poll(5)] == [False, True]
    fleet.tell("n1", Standing.HOST)
    told = shell.document("nodes", "nodes", "pirate")
    assert [len(node["holdings"][0]["versions"]) for node in told["nodes"]] == [2, 1]
    assert "v2 host" in shell.ok("nodes", "pirate").out


def test_an_activation_waits_for_every_node_and_says_that_they_follow(
    shell: Shell, fleet: Fleet
) -> None:
    shell.ok(*STAGE)
    fleet.tell("n1", Standing.DEVICE)
    with fleet.following("n1", "n2"):
        ran = shell.ok("activate", "pirate")
    assert ran.out.startswith("activated pirate@v2  generation 3")
    assert "1 of 2 nodes have pirate ready; waiting for 127.0.0.1:n2 (not begun)" in ran.err
    assert "2 of 2 nodes had it ready after" in ran.err
    assert "2 of 2 serve it now" in ran.err


def test_what_an_activation_prints_for_scripts_names_the_nodes(shell: Shell, fleet: Fleet) -> None:
    shell.ok(*STAGE)
    with fleet.following("n1", "n2"):
        done = shell.document("published", "activate", "pirate")
    assert done["nodes"]["ready"] == ["127.0.0.1:n1", "127.0.0.1:n2"]
    assert (done["nodes"]["not_ready"], done["nodes"]["serving"]) == ([], 2)
    assert shell.document("published", "activate", "pirate", "--version", "v2")["nodes"] is None


def test_nothing_is_activated_when_time_is_up_and_less_may_be_asked_for(
    shell: Shell, fleet: Fleet
) -> None:
    shell.ok(*STAGE)
    fleet.tell("n1", Standing.DEVICE)
    fleet.tell("n2", Standing.COMING)
    ran = shell.run("activate", "pirate", "--timeout", "0.4", "--json")
    error = ran.document("error")["error"]
    assert (ran.code, error["kind"]) == (4, "NotReady")
    assert "127.0.0.1:n2 (fetching)" in error["message"]
    assert fleet.head().gen == 2
    done = shell.ok("activate", "pirate", "--quorum", "50%")
    assert "1 of 2 nodes had it ready" in done.err


def test_a_flip_without_waiting_is_one_for_the_asking(shell: Shell, fleet: Fleet) -> None:
    shell.ok(*STAGE)
    ran = shell.ok("activate", "pirate", "--no-wait")
    assert (fleet.head().gen, "nodes" in ran.err) == (3, False)


def test_a_node_that_refuses_the_version_is_named_at_once(shell: Shell, fleet: Fleet) -> None:
    shell.ok(*STAGE)
    fleet.tell("n2", Standing.FAILED, "ADAPTER_CORRUPT")
    ran = shell.run("activate", "pirate", "--timeout", "600")
    assert (ran.code, "127.0.0.1:n2 (refuses it: ADAPTER_CORRUPT)" in ran.err) == (4, True)
    assert fleet.head().gen == 2


def test_what_somebody_else_stages_during_the_wait_is_not_activated_unseen(
    shell: Shell, fleet: Fleet
) -> None:
    shell.ok(*STAGE)
    fleet.tell("n1", Standing.DEVICE)
    waiting = shell.start("activate", "pirate")
    try:
        # It has read the log once it tells what it waits for.
        assert waiting.stderr is not None
        assert "waiting for 127.0.0.1:n2" in waiting.stderr.readline()
        shell.ok("stage", "one", "--name", "pirate", "--version", "v3")
        record = fleet.head()
        assert record.staged is not None
        fleet.registry.tell("n2", [*fleet.registry.holdings("n1")], lease_s=60)
        assert waiting.wait(60) == 4
        assert "is at generation 3, not 2" in waiting.stderr.read()
    finally:
        waiting.kill()
        waiting.communicate()
    assert fleet.head().gen == 3


def test_without_redis_an_activation_goes_on_unless_a_quorum_is_insisted_on(
    shell: Shell, fleet: Fleet
) -> None:
    shell.ok(*STAGE)
    shell.monkeypatch.setenv("LORAPOOL_REDIS_URL", "redis://127.0.0.1:1/0")
    ran = shell.run("activate", "pirate", "--quorum", "all")
    assert (ran.code, "Redis does not say which nodes there are" in ran.err) == (6, True)
    assert fleet.head().gen == 2
    ran = shell.ok("activate", "pirate")
    assert "activating without waiting for nodes" in ran.err
    assert fleet.head().gen == 3


def test_a_rollback_says_how_many_nodes_have_kept_the_version(shell: Shell, fleet: Fleet) -> None:
    shell.ok("push", "two", "--name", "pirate", "--version", "v2")
    ran = shell.ok("rollback", "pirate")
    assert "2 of 2 nodes still have it, and fetch nothing" in ran.err


def test_a_version_that_is_not_staged_is_not_waited_for(shell: Shell, fleet: Fleet) -> None:
    shell.ok("push", "two", "--name", "pirate", "--version", "v2")
    ran = shell.ok("activate", "pirate", "--version", "v1")
    assert "v1 is not staged: nodes fetch it once it is active" in ran.err


def test_quorums_and_times_that_make_no_sense_are_usage_errors(shell: Shell, fleet: Fleet) -> None:
    shell.ok(*STAGE)
    for options in (["--quorum", "most"], ["--timeout", "-1"], ["--timeout", "soon"]):
        assert shell.run("activate", "pirate", *options).code == 2, options
    assert fleet.head().gen == 2
