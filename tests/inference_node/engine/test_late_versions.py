"""A version that comes late, because it loaded slowly, never takes a name back in time.

And an answer of the store that comes late reaches nobody but who asked.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from adapter_store.record import VersionRef
from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.reports import Filled, Learned, Prepared, Resolved, Target, Unresolved
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Resident, VersionKey
from inference_node.engine.admission import Admission
from inference_node.engine.sequence import Sequence
from inference_node.errors import StoreDown
from inference_node.request import Request

OLD, NEW = VersionKey("t", "old"), VersionKey("t", "new")
HOST = cast(Any, SimpleNamespace(pages=(1,), scale=1.0))


def target(key: VersionKey, gen: int) -> Target:
    version = VersionRef(f"v{gen}", key.vdig, "", {}, ())
    return Target(Entry("t", "a", f"v{gen}", gen, key), version)


class Desk:
    """An admission whose loader does nothing by itself: the test says what comes, and when."""

    def __init__(self) -> None:
        self.slots = SlotTable(PageAllocator([4]))
        self.staged: list[Resident] = []
        self.looked_up: list[str] = []
        """The token of every request whose reference was looked up, latest last."""
        self.asked = 0
        loader = SimpleNamespace(
            resolve=lambda token, *args, trace: self.looked_up.append(token),
            prepare=lambda target: None,
            settled=lambda key: None,
            fill=lambda staged, host: self.staged.append(staged),
            on_host=lambda key: None,
        )
        watcher = SimpleNamespace(
            watch=list, note_checked=lambda *name: None, checked_at=lambda *name: None
        )
        self.admission = Admission(
            self.slots,
            cast(Any, SimpleNamespace(claim=lambda staged: None)),
            cast(Any, loader),
            cast(Any, watcher),
            ready=lambda sequence: None,
            fail=lambda sequence, error: None,
            clock=lambda: 0.0,
            max_staleness=0.0,
        )

    def ask(self, request_id: str, adapter: str = "a") -> Sequence:
        self.asked += 1
        request = Request(request_id=request_id, tenant="t", adapter=adapter, prompt=(1,))
        unused = cast(Any, None)
        sequence = Sequence(request, lambda event: None, 0.0, self.asked, 0, unused, unused)
        self.admission.begin(sequence)
        return sequence

    def load(self, key: VersionKey) -> None:
        self.admission.on_event(Prepared(key, HOST))
        self.admission.on_event(Filled(self.staged.pop()))

    def served_gen(self) -> int | None:
        entry = self.slots.serving("t", "a")
        return entry.gen if entry else None


@pytest.fixture
def desk() -> Desk:
    """Generation 2 is served; 3 is loading; 4, a rollback to what 2 was, is evicted again."""
    desk = Desk()
    asked = desk.ask("first")
    desk.admission.on_event(Resolved(desk.looked_up[-1], target(OLD, 2)))
    desk.load(OLD)
    desk.admission.release(asked)
    desk.admission.on_event(Learned("t", "a", 3, target(NEW, 3)))
    desk.admission.on_event(Learned("t", "a", 4, target(OLD, 4)))
    assert desk.served_gen() == 4
    desk.slots.drain(OLD)
    assert desk.served_gen() is None
    return desk


def test_an_older_version_that_finishes_loading_after_an_eviction_is_not_served(
    desk: Desk,
) -> None:
    waiting = desk.ask("pins nothing")
    desk.admission.on_event(Prepared(NEW, HOST))
    assert desk.staged == [], "nobody waits for it any more"
    assert desk.served_gen() is None
    desk.admission.on_event(Resolved(desk.looked_up[-1], target(OLD, 4)))
    desk.load(OLD)
    assert desk.served_gen() == 4
    assert waiting.entry is not None
    assert waiting.entry.gen == 4


def test_an_answer_of_the_store_that_was_overtaken_does_not_take_the_name_back(
    desk: Desk,
) -> None:
    slow = desk.ask("slow")
    desk.admission.on_event(Resolved(desk.looked_up[-1], target(NEW, 3)))
    desk.load(NEW)
    assert desk.served_gen() is None
    assert slow.lease is not None, "the request itself gets what the store said when it asked"


def test_an_answer_from_before_a_deletion_does_not_revive_the_name(desk: Desk) -> None:
    desk.ask("slow")
    desk.admission.on_event(Learned("t", "a", 5, None))
    desk.admission.on_event(Resolved(desk.looked_up[-1], target(OLD, 4)))
    desk.load(OLD)
    assert desk.served_gen() is None


def test_an_answer_for_a_request_that_is_gone_does_not_reach_the_next_one_of_its_id(
    desk: Desk,
) -> None:
    gone = desk.ask("retried", adapter="a")
    late = desk.looked_up[-1]
    desk.admission.withdraw(gone)
    retried = desk.ask("retried", adapter="b")
    desk.admission.on_event(Resolved(late, target(OLD, 4)))
    assert retried.entry is None, "it asked for another adapter"
    desk.admission.on_event(Unresolved(late, StoreDown("no answer")))
    other = Target(Entry("t", "b", "v1", 1, NEW), target(NEW, 1).version)
    desk.admission.on_event(Resolved(desk.looked_up[-1], other))
    assert retried.entry is other.entry
