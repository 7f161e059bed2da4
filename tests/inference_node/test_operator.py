"""Orders through the wire to a real engine, by both clients and the program."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adapter_store.layout import DEFAULT_TENANT
from adapter_store.reader import Reader
from inference_node.client import (
    AsyncOperator,
    Client,
    Operator,
    PoolChange,
    Stopping,
    Tier,
    VersionState,
)
from inference_node.errors import AdapterNotFound, AdapterNotLoaded, AdapterUnloaded
from tests.inference_node.cli.program import Run
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import PATIENCE, Node
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.tiny import make_adapter

LONG = Stopping(max_new_tokens=400, ignore_eos=True)


@dataclass
class Served:
    """A real node with adapters `a` and `b` in its store, and where it listens."""

    node: Node
    address: str
    admin: str

    def tiers(self, operator: Operator) -> dict[str, Tier]:
        return {each.served.adapter: each.tier for each in operator.loaded()}


@pytest.fixture
def served(start_tiny: StartTiny, tmp_path: Path) -> Iterator[Served]:
    node = start_tiny(poll_seconds_without_hints=0.05)
    modules = dict(node.card.modules)
    for number, name in enumerate("ab"):
        folder = make_adapter(tmp_path / name, modules, rank=8, seed=number)
        node.publish(name, folder, label="v1")
    config = replace(CONFIG, admin_listen="127.0.0.1:0")
    with running_server(
        node.engine, config, open_reader=lambda: Reader(node.store), control=node.engine
    ) as server:
        yield Served(node, f"127.0.0.1:{server.port}", f"127.0.0.1:{server.admin_port}")


def test_what_is_preloaded_is_on_the_device_before_anybody_asks(served: Served) -> None:
    with Operator(served.admin) as operator:
        loaded = operator.preload("a", min_generation=1)
        assert (loaded.served.adapter, loaded.served.version) == ("a", "v1")
        assert (loaded.tier, loaded.state) == (Tier.DEVICE, VersionState.RESIDENT)
        assert served.tiers(operator) == {"a": Tier.DEVICE}
        use = operator.pool()
        assert use.resident == 1
        for group in use.groups:
            parts = (group.free, group.idle, group.held, group.pinned, group.condemned)
            assert group.total == sum(parts)
        with Client(served.address) as client:
            answer = client.generate("hi", adapter="a", stopping=Stopping(max_new_tokens=2))
            assert answer.served == loaded.served


def test_a_pin_is_seen_and_ends_and_an_unload_frees_the_pages(served: Served) -> None:
    with Operator(served.admin) as operator:
        free = [group.free for group in operator.pool().groups]
        assert operator.pin("a").pinned
        assert any(group.pinned for group in operator.pool().groups)
        assert not operator.unpin("a").pinned
        gone = operator.unload("a")
        assert (gone.served.adapter, gone.failed_requests) == ("a", 0)
        assert [group.free for group in operator.pool().groups] == free
        with pytest.raises(AdapterNotLoaded):
            operator.unpin("a")


def test_an_unload_waits_for_running_answers_and_force_ends_them(served: Served) -> None:
    with Operator(served.admin) as operator, Client(served.address) as client:
        with client.stream("hi", adapter="a", stopping=LONG) as stream:
            next(iter(stream))
            assert operator.unload("a", timeout=60).failed_requests == 0
            assert stream.result.usage.completion_tokens == 400
        with client.stream("hi", adapter="a", stopping=LONG) as stream:
            next(iter(stream))
            assert operator.unload("a", force=True).failed_requests == 1
            with pytest.raises(AdapterUnloaded):
                _ = stream.result
    served.node.settle()


def test_an_order_for_what_nobody_published_says_so(served: Served) -> None:
    with Operator(served.admin) as operator, pytest.raises(AdapterNotFound) as caught:
        operator.preload("nobody")
    assert caught.value.reason == "ADAPTER_NOT_FOUND"


def first(changes: Iterator[PoolChange], good: Callable[[PoolChange], bool]) -> PoolChange:
    """The first change that is the one, of those that come in time."""
    end = time.monotonic() + PATIENCE
    for change in changes:
        if good(change):
            return change
        assert time.monotonic() < end
    raise AssertionError("the watch ended")


def test_a_watcher_sees_a_swap_happen(served: Served, tmp_path: Path) -> None:
    with Operator(served.admin) as operator, closing(operator.watch()) as changes:  # type: ignore[type-var]
        assert next(changes).changed == ()
        operator.preload("a")
        came = first(changes, lambda change: bool(change.changed) and change.pool.resident == 1)
        assert came.changed[0].served.generation == 1
        folder = make_adapter(tmp_path / "second", dict(served.node.card.modules), rank=8, seed=9)
        generation = served.node.publish("a", folder, label="v2")
        first(
            changes,
            lambda change: any(
                name.generation == generation for each in change.changed for name in each.names
            ),
        )
        operator.unload("a")
        gone = first(changes, lambda change: change.pool.resident < 2)
        assert gone.pool.leases == 0


async def test_asyncio_gives_the_same_orders(served: Served) -> None:
    async with AsyncOperator(served.admin) as operator:
        assert (await operator.preload("b")).served.adapter == "b"
        assert (await operator.pin("b@v1")).pinned
        assert not (await operator.unpin("b@v1")).pinned
        assert [each.served.adapter async for each in operator.loaded()] == ["b"]
        assert (await operator.pool()).resident == 1
        async with aclosing(operator.watch()) as changes, asyncio.timeout(PATIENCE):  # type: ignore[type-var]
            change = await anext(changes)
        assert [each.served.adapter for each in change.changed] == ["b"]
        assert (await operator.unload("b")).failed_requests == 0
        with pytest.raises(AdapterNotLoaded):
            await operator.unload("b")


def test_the_program_gives_every_order_and_says_what_is_so(served: Served, run: Run) -> None:
    def order(*arguments: str) -> dict[str, object]:
        ran = run("adapters", "--admin", served.admin, *arguments, "--json")
        assert ran.code == 0, ran.err
        document: dict[str, object] = json.loads(ran.out)
        return document

    loaded = order("preload", "a")
    assert (loaded["adapter"], loaded["version"], loaded["tier"]) == ("a", "v1", "device")
    assert order("pin", "a@v1")["pinned"] is True
    listed = order("ls")
    assert [each["adapter"] for each in listed["loaded"]] == ["a"]  # type: ignore[attr-defined]
    assert listed["pool"]["resident"] == 1  # type: ignore[index]
    assert order("unpin", "a@v1")["pinned"] is False
    assert order("unload", "a", "--force")["failed_requests"] == 0
    said = run("adapters", "--admin", served.admin, "pin", "b")
    assert said.out.startswith("pinned  b@v1  generation 1  sha256:")
    table = run("adapters", "--admin", served.admin, "ls").out
    assert "pinned" in table
    assert DEFAULT_TENANT not in table


def test_the_program_tells_an_order_that_failed_by_code_and_reason(
    served: Served, run: Run
) -> None:
    ran = run("adapters", "--admin", served.admin, "pin", "nobody", "--json")
    assert ran.code == 3
    assert json.loads(ran.out)["error"]["reason"] == "ADAPTER_NOT_FOUND"
    ran = run("adapters", "--admin", served.admin, "unload", "a")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("error: ")
    assert run("adapters", "--admin", "127.0.0.1:1", "ls").code == 6
