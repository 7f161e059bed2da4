"""More hot adapters than the pool holds: whoever waits for pages gets them within a bound.

sglang#17913, vllm#1804: adapters with a steady stream of requests kept their slots for ever, and
requests for the others starved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from adapter_store.record import VersionRef
from inference_node.adapters.loader import Loader
from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.reports import Filled, Prepared, Resolved, Target
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Residency, Resident, VersionKey
from inference_node.adapters.weights import HostAdapter
from inference_node.engine.admission import Admission
from inference_node.engine.runner import Drawn, Runner
from inference_node.engine.scheduler import Step
from inference_node.engine.sequence import Phase, Sequence
from inference_node.request import Completed, Event, Failed, Request, Started, Stopping
from tests.adapter_store.waiting import wait_until
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.sequences import make_sequence
from tests.inference_node.harness import Answer, Node
from tests.inference_node.tiny import make_adapter

HOT = 3
ANSWER = 12
"""Tokens of each request of a stream."""
BOUND = 10 * ANSWER
"""Steps within which a waiting adapter's first token must come: several answers' worth."""


@dataclass
class Stream:
    """Requests for one adapter without end: the next one is sent before the last one ends."""

    node: Node
    adapter: str
    open: bool = True
    ids: Iterator[int] = field(default_factory=itertools.count)
    failed: list[Failed] = field(default_factory=list)

    def send(self) -> None:
        """One more request, which sends two more when it is half done, as if there were no end."""
        seen = 0

        def on_event(event: Event) -> None:
            nonlocal seen
            if isinstance(event, Failed):
                self.failed.append(event)
            if isinstance(event, Completed):
                return
            seen += 1
            if seen == ANSWER // 2 and self.open:
                self.send()

        request = Request(
            request_id=f"{self.adapter}-{next(self.ids)}",
            tenant="default",
            adapter=self.adapter,
            prompt=(5, 6, 7),
            stopping=Stopping(max_new_tokens=ANSWER, ignore_eos=True),
        )
        self.node.engine.submit(request, on_event)


@pytest.fixture
def crowded(start_tiny: StartTiny, tmp_path: Path) -> Node:
    """A pool that is held wholly by three adapters whose requests overlap for ever."""
    page_bytes = start_tiny().engine.info().pool.page_bytes
    node = start_tiny(pool_bytes=HOT * page_bytes, page_wait_seconds=0.05, headroom_pages=0)
    for seed in range(HOT + 1):
        folder = make_adapter(tmp_path / f"n{seed}", dict(node.card.modules), rank=8, seed=seed)
        node.publish(f"n{seed}", folder)
    return node


def occupy(node: Node) -> list[Stream]:
    for hot in range(HOT):
        node.ask(f"n{hot}", tokens=1).wait()
    streams = [Stream(node, f"n{hot}") for hot in range(HOT)]
    for stream in streams:
        stream.send()
    return streams


def stop(node: Node, streams: list[Stream]) -> None:
    for stream in streams:
        stream.open = False
    node.settle()


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the step's rows with every step."""
    steps: list[int] = []
    run = Runner.run

    def counted(self: Runner, step: Step) -> list[Drawn]:
        steps.append(len(step.work))
        return run(self, step)

    monkeypatch.setattr(Runner, "run", counted)
    return steps


def test_an_adapter_that_waits_for_pages_held_by_endless_streams_is_served_within_a_bound(
    crowded: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = crowded.ask(f"n{HOT}", tokens=ANSWER).tokens
    streams = occupy(crowded)
    steps = count_steps(monkeypatch)
    waits = []
    for _ in range(3):
        before = len(steps)
        answer = crowded.ask(f"n{HOT}", (5, 6, 7), tokens=ANSWER, deadline_in=60.0).wait(tokens=1)
        waits.append(len(steps) - before)
        answer.wait()
    again = crowded.ask(f"n{HOT}", tokens=ANSWER, deadline_in=60.0).tokens
    stop(crowded, streams)
    assert again == expected
    assert [stream.failed for stream in streams] == [[]] * HOT
    assert max(waits) <= BOUND, waits


def test_control_if_nothing_makes_way_the_waiting_adapter_starves(
    crowded: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Admission, "relieve", lambda self, requests, take_off: None)
    streams = occupy(crowded)
    steps = count_steps(monkeypatch)
    starved = crowded.ask(f"n{HOT}", (5, 6, 7), tokens=ANSWER)
    wait_until(lambda: len(steps) > 2 * BOUND, within_s=60.0)
    assert starved.events == []
    stop(crowded, streams)
    assert starved.tokens, "it was answered once the streams had ended"


def test_the_adapters_that_made_room_are_served_again_when_their_turn_comes(
    crowded: Node,
) -> None:
    names = [f"n{index}" for index in range(HOT + 1)]
    truth = {name: crowded.ask(name, tokens=ANSWER).tokens for name in names}
    streams = [Stream(crowded, name) for name in names]
    for stream in streams:
        stream.send()
    for name in names * 2:
        assert crowded.ask(name, tokens=ANSWER, deadline_in=60.0).tokens == truth[name]
    stop(crowded, streams)
    assert [stream.failed for stream in streams] == [[]] * len(names)


def table(*leases: int) -> SlotTable:
    """One page each; `leases[i]` requests hold version i."""
    slots = SlotTable(PageAllocator([len(leases)]))
    for index, held in enumerate(leases):
        key = VersionKey("t", str(index))
        slots.activate(slots.stage(key, wanted=[1], scale=1.0), now=float(index))
        for _ in range(held):
            slots.lease(key)
    return slots


def test_what_drains_or_lies_idle_already_counts_as_room() -> None:
    slots = table(1, 1, 0)
    assert slots.shortfall([1]) == (0,)
    assert slots.shortfall([2]) == (1,)
    slots.drain(VersionKey("t", "0"))
    assert slots.shortfall([2]) == (0,)
    assert slots.shortfall([3]) == (1,)


def test_only_a_version_that_requests_hold_and_that_had_its_turn_is_drained() -> None:
    slots = table(1, 2, 0, 1)
    assert [resident.key.vdig for resident in slots.drainable(1.0)] == ["0", "1"]
    slots.drain(VersionKey("t", "1"))
    assert [resident.key.vdig for resident in slots.drainable(9.0)] == ["0", "3"]
    slots.check_integrity()


class Queue:
    """An admission whose versions are ready on the host: they wait for nothing but pages."""

    def __init__(self, pages: int, *, page_wait: float = 1.0) -> None:
        self.now = 0.0
        self.slots = SlotTable(PageAllocator([pages]), headroom=(0,))
        self.staged: list[Resident] = []
        self.on_host: dict[VersionKey, HostAdapter] = {}
        self.looked_up: list[str] = []
        nothing = SimpleNamespace(
            prepare=lambda target: None,
            settled=lambda key: None,
            fill=lambda staged, host: self.staged.append(staged),
            claim=lambda staged: None,
            watch=list,
            note_checked=lambda *name: None,
            checked_at=lambda *name: None,
            resolve=lambda token, *args, trace: self.looked_up.append(token),
            on_host=lambda key: self.on_host.get(key),
        )
        loaded = cast(Any, nothing)
        self.admission = Admission(
            self.slots,
            loaded,
            loaded,
            loaded,
            ready=lambda sequence: None,
            fail=lambda sequence, error: None,
            clock=lambda: self.now,
            max_staleness=0.0,
            page_wait=page_wait,
        )

    def ask(self, name: str, *, pages: int = 1) -> Sequence:
        """A request for one version of so many pages, as far as it gets."""
        sequence = make_sequence(order=len(self.staged), tenant="t", adapter="")
        sequence.request = replace(sequence.request, adapter=name, request_id=f"{name}{self.now}")
        key = VersionKey("t", name)
        version = VersionRef("v1", name, "", {}, ())
        target = Target(Entry("t", name, "v1", 1, key), version)
        self.admission.begin(sequence)
        self.admission.on_event(Resolved(self.looked_up.pop(), target))
        self.admission.on_event(Prepared(key, cast(Any, SimpleNamespace(pages=(pages,), scale=1))))
        self.fill()
        return sequence

    def fill(self) -> None:
        while self.staged:
            self.admission.on_event(Filled(self.staged.pop()))

    def relieve(self, *requests: Sequence) -> list[str]:
        """Names that make way, of those that these requests hold."""
        held = {sequence.lease for sequence in requests if sequence.lease is not None}
        self.admission.relieve(requests, lambda sequence: None)
        self.slots.check_integrity()
        return sorted(one.key.vdig for one in held if one.state is not Residency.RESIDENT)


def wanting(sequence: Sequence, tokens: int) -> Sequence:
    """The request still wants so many tokens."""
    stopping = Stopping(max_new_tokens=tokens)
    sequence.request = replace(sequence.request, stopping=stopping)
    return sequence


def test_the_version_with_the_least_left_makes_way_once_the_wait_is_too_long() -> None:
    queue = Queue(3)
    held = [wanting(queue.ask(name), left) for name, left in (("a", 90), ("b", 7), ("c", 40))]
    waiting = queue.ask("d")
    queue.now = 0.9
    assert queue.relieve(*held) == []
    queue.now = 1.0
    assert queue.relieve(*held) == ["b"]
    assert queue.relieve(*held) == ["b"], "what drains is enough"
    assert waiting.lease is None
    queue.admission.release(held[1])
    queue.fill()
    assert waiting.lease is not None
    queue.slots.check_integrity()


def test_requests_of_a_version_that_is_on_the_host_wait_for_it_to_come_back() -> None:
    queue = Queue(1)
    paused = queue.ask("a")
    queue.on_host[VersionKey("t", "a")] = cast(Any, SimpleNamespace(pages=(1,), scale=1))
    entry = paused.entry
    waiting = queue.ask("b")
    queue.now = 1.0
    queue.relieve(paused)
    queue.fill()
    assert (paused.lease, paused.phase) == (None, Phase.LOADING)
    assert waiting.lease is not None
    queue.admission.release(waiting)
    queue.fill()
    assert paused.lease is not None
    assert paused.entry is entry
    serving = queue.slots.serving("t", "a")
    assert serving == entry, "the name it was served under came back with it"


def test_a_paused_request_that_ends_leaves_nothing_behind() -> None:
    queue = Queue(1)
    paused = queue.ask("a")
    queue.on_host[VersionKey("t", "a")] = cast(Any, SimpleNamespace(pages=(1,), scale=1))
    waiting = queue.ask("b")
    queue.now = 1.0
    queue.relieve(paused)
    queue.fill()
    queue.admission.withdraw(paused)
    queue.admission.release(paused)
    queue.admission.release(waiting)
    queue.fill()
    assert queue.slots.lease_count == 0
    queue.slots.check_integrity()


def test_as_many_make_way_as_the_waiting_need_pages() -> None:
    queue = Queue(4)
    held = [wanting(queue.ask(name), left) for name, left in (("a", 3), ("b", 2), ("c", 1))]
    queue.ask("d", pages=3)
    queue.now = 1.0
    assert queue.relieve(*held) == ["b", "c"]


def test_nobody_makes_way_for_a_version_that_nobody_waits_for_any_more() -> None:
    queue = Queue(1)
    held = queue.ask("a")
    gone = queue.ask("b")
    queue.admission.withdraw(gone)
    queue.now = 5.0
    assert queue.relieve(held) == []


LONG = 300


def first_token_beside_long_answers(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[Answer]]:
    """Steps that a fourth adapter waits while three others each decode a long answer."""
    for hot in range(HOT):
        node.ask(f"n{hot}", tokens=1).wait()
    long = [node.ask(f"n{hot}", (5, 6, 7), tokens=LONG) for hot in range(HOT)]
    for answer in long:
        answer.wait(tokens=2)
    run = Runner.run
    steps = 0

    def checked(self: Runner, step: Step) -> list[Drawn]:
        nonlocal steps
        steps += 1
        node.engine.check_integrity()
        return run(self, step)

    monkeypatch.setattr(Runner, "run", checked)
    node.ask(f"n{HOT}", (5, 6, 7), tokens=2).wait(tokens=1)
    waited = steps
    for answer in long:
        answer.wait()
    node.settle()
    return waited, long


def test_long_answers_pause_for_an_adapter_that_waits_and_go_on_as_if_nothing_had_been(
    crowded: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = [crowded.ask(f"n{hot}", (5, 6, 7), tokens=LONG).tokens for hot in range(HOT)]
    waited, long = first_token_beside_long_answers(crowded, monkeypatch)
    assert waited < LONG // 2
    assert [answer.tokens for answer in long] == truth
    for answer in long:
        assert sum(isinstance(event, Started) for event in answer.events) == 1


def test_control_without_the_pause_it_waits_for_an_answer_to_end(
    crowded: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loader, "on_host", lambda self, key: None)
    waited, _ = first_token_beside_long_answers(crowded, monkeypatch)
    assert waited > LONG // 2
