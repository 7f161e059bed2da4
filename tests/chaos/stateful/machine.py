"""Everything that can happen to a node, in every order: a Hypothesis state machine.

After each rule, and after each step of the engine inside one, N1 to N8 are asked for (checks.py),
and every event that a request is told is judged when it comes (asked.py). At the end of an example
the trouble stops, and whoever was accepted must come to exactly one end.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.chaos.stateful.scene import Scene
from tests.chaos.stateful.shelf import COMMON, NAMES, PUBLISHED, TENANTS, Shelf, name_of

RULES = 50
"""In one example, the warm-up among them."""
HOT = 3
"""Names that nearly everything happens to."""
ORDERS = ("preload", "pin", "unpin", "unload", "unload by force")
CHANGES = ("stage", "activate", "roll back", "delete", "split")
TROUBLE = ("store goes away", "store comes back", "no answer", "damage", "copy fails")

numbers = st.one_of(
    st.integers(0, HOT - 1),
    st.integers(0, HOT - 1),
    st.integers(0, HOT - 1),
    st.integers(0, PUBLISHED - 1),
    st.integers(0, NAMES - 1),
)
tenants = st.sampled_from((TENANTS[0], TENANTS[0], TENANTS[0], TENANTS[1]))
revisions = st.integers(0, COMMON)
prompts = st.tuples(st.integers(0, 1), st.one_of(st.integers(1, 30), st.integers(9, 30)))
"""Which text, and how much of it."""
lengths = st.integers(1, 24)
deadlines = st.sampled_from((None, None, None, 0.0, 0.5, 3.0))
priorities = st.sampled_from((0, 0, 0, 1))
paces = st.sampled_from((0, 1, 2, 6))
"""Turns that the node takes at once after it was asked."""
affinities = st.sampled_from(("", "", "", "one", "two"))
choices = st.integers(0, 15)


class NodeStates(RuleBasedStateMachine):
    """One node, its store, its publishers and its callers."""

    shelf: ClassVar[Shelf]
    tally: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(self.shelf)
        self.rules = 0
        self.tally["begun"] += 1

    @initialize(count=st.integers(0, 12))
    def warm_up(self, count: int) -> None:
        """So many names are resident."""
        for number in range(count):
            self.scene.ask(TENANTS[0], name_of(number), tokens=1)
        self.scene.run_freely()

    @rule(who=st.tuples(tenants, numbers), revision=revisions, heard=st.booleans(), pace=paces)
    def publish(self, who: tuple[str, int], revision: int, heard: bool, pace: int) -> None:
        """The node hears of it at once, or when it next looks for news."""
        tenant, number = who
        local = self.shelf.content(number, revision).local
        self.scene.change(lambda: self.scene.publisher.publish(tenant, name_of(number), local))
        if heard:
            self.scene.node.look_for_news()
        self.scene.run(pace)

    @rule(tenant=tenants, number=numbers, kind=st.sampled_from(CHANGES), revision=revisions)
    def change(self, tenant: str, number: int, kind: str, revision: int) -> None:
        """Anything else that a publisher does."""
        name, publisher = name_of(number), self.scene.publisher
        labels = list(self.scene.world.history.log(tenant, name).labels)[-2:]
        local = self.shelf.content(number, revision).local
        match kind:
            case "stage":
                self.scene.change(lambda: publisher.stage(tenant, name, local))
            case "activate":
                self.scene.change(lambda: publisher.activate(tenant, name))
            case "roll back":
                self.scene.change(lambda: publisher.rollback(tenant, name))
            case "delete":
                self.scene.change(lambda: publisher.delete(tenant, name))
            case "split" if len(labels) == 2:
                weights = dict.fromkeys(labels, 1)
                self.scene.change(lambda: publisher.split(tenant, name, weights))

    @rule(tenant=tenants, prompt=prompts, tokens=lengths, priority=priorities, pace=paces)
    def ask_base(
        self, tenant: str, prompt: tuple[int, int], tokens: int, priority: int, pace: int
    ) -> None:
        self.scene.ask(tenant, "", prompt=prompt, tokens=tokens, priority=priority)
        self.scene.run(pace)

    @rule(
        who=st.tuples(tenants, numbers),
        prompt=prompts,
        tokens=lengths,
        deadline=deadlines,
        priority=priorities,
        affinity=affinities,
        pace=paces,
    )
    def ask(
        self,
        who: tuple[str, int],
        prompt: tuple[int, int],
        tokens: int,
        deadline: float | None,
        priority: int,
        affinity: str,
        pace: int,
    ) -> None:
        self.scene.ask(
            who[0],
            name_of(who[1]),
            prompt=prompt,
            tokens=tokens,
            deadline=deadline,
            priority=priority,
            affinity=affinity,
        )
        self.scene.run(pace)

    @rule(who=st.tuples(tenants, numbers), prompt=prompts, tokens=lengths, ahead=st.integers(0, 1))
    def ask_for_generation(
        self, who: tuple[str, int], prompt: tuple[int, int], tokens: int, ahead: int
    ) -> None:
        """The newest there is, or one that may never come."""
        tenant, name = who[0], name_of(who[1])
        gen = self.scene.world.history.log(tenant, name).gen + ahead
        self.scene.ask(tenant, name, prompt=prompt, tokens=tokens, min_generation=gen)

    @rule(
        who=st.tuples(tenants, numbers),
        which=choices,
        prompt=prompts,
        tokens=lengths,
        by_digest=st.booleans(),
    )
    def ask_for_version(
        self,
        who: tuple[str, int],
        which: int,
        prompt: tuple[int, int],
        tokens: int,
        by_digest: bool,
    ) -> None:
        tenant, name = who[0], name_of(who[1])
        labels = self.scene.world.history.log(tenant, name).labels
        label = list(labels)[which % len(labels)] if labels else "v1"
        unknown = self.shelf.content(who[1], 0).vdig
        pinned = f"sha256:{labels.get(label, unknown)}" if by_digest else label
        self.scene.ask(tenant, f"{name}@{pinned}", prompt=prompt, tokens=tokens)

    @rule(first=st.integers(0, 20), count=st.integers(2, 20), tokens=lengths, pace=paces)
    def ask_for_many(self, first: int, count: int, tokens: int, pace: int) -> None:
        """More at once than there is room for."""
        for number in range(first, first + count):
            self.scene.ask(TENANTS[0], name_of(number), tokens=tokens)
        self.scene.run(pace)

    @rule(who=st.tuples(tenants, numbers), kind=st.sampled_from(ORDERS), pinned=st.booleans())
    def order(self, who: tuple[str, int], kind: str, pinned: bool) -> None:
        """An operator's, for a name or for its latest version."""
        tenant, ref, engine = who[0], name_of(who[1]), self.scene.node.engine
        labels = self.scene.world.history.log(tenant, ref).labels
        if pinned and labels:
            ref = f"{ref}@{list(labels)[-1]}"
        order: Future[Any]
        match kind:
            case "preload":
                order = engine.preload(tenant, ref)
            case "pin":
                order = engine.pin(tenant, ref)
            case "unpin":
                order = engine.unpin(tenant, ref)
            case "unload":
                order = engine.unload(tenant, ref)
            case _:
                self.scene.node.forced[tenant, name_of(who[1])] = self.scene.node.now
                order = engine.unload(tenant, ref, force=True)
        self.scene.orders.append(order)

    @precondition(lambda self: self.scene.open)
    @rule(which=choices, number=numbers)
    def ask_twice_under_one_id(self, which: int, number: int) -> None:
        taken = self.scene.open[which % len(self.scene.open)].request.request_id
        self.scene.ask(TENANTS[0], name_of(number), request_id=taken)

    @precondition(lambda self: self.scene.open)
    @rule(which=choices, then=st.one_of(st.none(), numbers))
    def cancel(self, which: int, then: int | None) -> None:
        """And perhaps ask at once for another adapter, under the same id."""
        request_id = self.scene.open[which % len(self.scene.open)].request.request_id
        for asked in self.scene.open:
            asked.cancelled |= asked.request.request_id == request_id
        self.scene.node.engine.cancel(request_id)
        if then is not None:
            self.scene.ask(TENANTS[0], name_of(then), request_id=request_id)

    @precondition(lambda self: self.scene.asked)
    @rule(which=st.integers(0, 5), tokens=lengths, pace=paces)
    def ask_again(self, which: int, tokens: int, pace: int) -> None:
        """One of the latest, word by word: the cache may know its beginning."""
        before = self.scene.asked[-1 - which % len(self.scene.asked)]
        again = before.request
        self.scene.ask(again.tenant, again.adapter, prompt=before.prompt, tokens=tokens)
        self.scene.run(pace)

    @rule(seconds=st.sampled_from((0.02, 0.6, 2.0, 10.0, 61.0)))
    def time_passes(self, seconds: float) -> None:
        self.scene.node.now += seconds

    @rule(times=st.integers(1, 5))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.scene.turn()

    @rule(which=st.lists(choices, min_size=1, max_size=5))
    def workers_end_jobs(self, which: Sequence[int]) -> None:
        for choice in which:
            if self.scene.node.jobs:
                self.scene.node.work(choice)
                self.scene.checks.between_steps()

    @rule(turns=st.integers(1, 12))
    def run(self, turns: int) -> None:
        """Steps and jobs by turns, as when nothing is slow."""
        self.scene.run(turns)

    @rule(missed=st.booleans())
    def look_for_news(self, missed: bool) -> None:
        """With `missed` the stream of hints broke off meanwhile."""
        self.scene.node.news.gaps += missed
        self.scene.node.look_for_news()

    @rule(kind=st.sampled_from(TROUBLE), count=st.integers(1, 2))
    def trouble(self, kind: str, count: int) -> None:
        """A chunk that arrives damaged is asked for again; twice is the end of it."""
        door = self.scene.node.door
        match kind:
            case "store goes away":
                door.down = True
            case "store comes back":
                door.down = False
            case "no answer":
                door.fail_next += count
            case "damage":
                door.damage_next += count
            case "copy fails":
                self.scene.node.copy_fails_next += 1

    @invariant()
    def holds(self) -> None:
        """After each rule."""
        self.rules += 1
        self.scene.look()

    def teardown(self) -> None:
        """Also called when a rule failed."""
        broken = isinstance(sys.exc_info()[1], Exception)
        try:
            if sys.exc_info()[1] is None:
                self.scene.calm_down()
                self.tally.update(self.scene.counted())
                self.tally["whole" if self.rules == RULES else "shorter"] += 1
        except Exception:
            broken = True
            raise
        finally:
            if broken:
                self.tally.setdefault("failed at", self.tally["begun"])
