"""Everything that can happen to a node, in every order: a Hypothesis state machine.

After each rule, and after each step of the engine inside one, N1 to N8 are asked for (checks.py),
and every event that a request is told is judged when it comes (asked.py). At the end of an example
the trouble stops, and whoever was accepted must come to exactly one end.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adapter_store.commit import Published
from adapter_store.coordination import Hint
from adapter_store.errors import InvalidAdapter, NotFound
from inference_node.errors import DeadlineExpired, NodeError
from inference_node.request import Completed, Request, Stopping
from tests.chaos.stateful.asked import Asked, World
from tests.chaos.stateful.checks import Checks
from tests.chaos.stateful.node import Node
from tests.chaos.stateful.shelf import (
    COMMON,
    NAMES,
    PUBLISHED,
    TENANTS,
    Shelf,
    name_of,
    publisher_of,
)

QUIET_TURNS = 3000
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
        store, history = self.shelf.world()
        self.node = Node(self.shelf, store)
        self.world = World(self.shelf, self.node, history)
        self.checks = Checks(self.node)
        self.publisher = publisher_of(store)
        self.steps = 0
        self.asked: list[Asked] = []
        self.open: list[Asked] = []
        self.orders: list[Future[Any]] = []
        self.tally["examples"] += 1

    @initialize(count=st.integers(0, 12))
    def warm_up(self, count: int) -> None:
        """So many names are resident."""
        for number in range(count):
            self._ask(TENANTS[0], name_of(number), tokens=1)
        self._run_freely()

    @rule(who=st.tuples(tenants, numbers), revision=revisions, heard=st.booleans(), pace=paces)
    def publish(self, who: tuple[str, int], revision: int, heard: bool, pace: int) -> None:
        """The node hears of it at once, or when it next looks for news."""
        tenant, number = who
        local = self.shelf.content(number, revision).local
        self._change(lambda: self.publisher.publish(tenant, name_of(number), local))
        if heard:
            self.node.look_for_news()
        self.run(pace)

    @rule(tenant=tenants, number=numbers, kind=st.sampled_from(CHANGES), revision=revisions)
    def change(self, tenant: str, number: int, kind: str, revision: int) -> None:
        """Anything else that a publisher does."""
        name, publisher = name_of(number), self.publisher
        labels = list(self.world.history.log(tenant, name).labels)[-2:]
        local = self.shelf.content(number, revision).local
        match kind:
            case "stage":
                self._change(lambda: publisher.stage(tenant, name, local))
            case "activate":
                self._change(lambda: publisher.activate(tenant, name))
            case "roll back":
                self._change(lambda: publisher.rollback(tenant, name))
            case "delete":
                self._change(lambda: publisher.delete(tenant, name))
            case "split" if len(labels) == 2:
                weights = dict.fromkeys(labels, 1)
                self._change(lambda: publisher.split(tenant, name, weights))

    @rule(tenant=tenants, prompt=prompts, tokens=lengths, priority=priorities, pace=paces)
    def ask_base(
        self, tenant: str, prompt: tuple[int, int], tokens: int, priority: int, pace: int
    ) -> None:
        self._ask(tenant, "", prompt=prompt, tokens=tokens, priority=priority)
        self.run(pace)

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
        self._ask(
            who[0],
            name_of(who[1]),
            prompt=prompt,
            tokens=tokens,
            deadline=deadline,
            priority=priority,
            affinity=affinity,
        )
        self.run(pace)

    @rule(who=st.tuples(tenants, numbers), prompt=prompts, tokens=lengths, ahead=st.integers(0, 1))
    def ask_for_generation(
        self, who: tuple[str, int], prompt: tuple[int, int], tokens: int, ahead: int
    ) -> None:
        """The newest there is, or one that may never come."""
        tenant, name = who[0], name_of(who[1])
        gen = self.world.history.log(tenant, name).gen + ahead
        self._ask(tenant, name, prompt=prompt, tokens=tokens, min_generation=gen)

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
        labels = self.world.history.log(tenant, name).labels
        label = list(labels)[which % len(labels)] if labels else "v1"
        unknown = self.shelf.content(who[1], 0).vdig
        pinned = f"sha256:{labels.get(label, unknown)}" if by_digest else label
        self._ask(tenant, f"{name}@{pinned}", prompt=prompt, tokens=tokens)

    @rule(first=st.integers(0, 20), count=st.integers(2, 20), tokens=lengths, pace=paces)
    def ask_for_many(self, first: int, count: int, tokens: int, pace: int) -> None:
        """More at once than there is room for."""
        for number in range(first, first + count):
            self._ask(TENANTS[0], name_of(number), tokens=tokens)
        self.run(pace)

    @rule(who=st.tuples(tenants, numbers), kind=st.sampled_from(ORDERS), pinned=st.booleans())
    def order(self, who: tuple[str, int], kind: str, pinned: bool) -> None:
        """An operator's, for a name or for its latest version."""
        tenant, ref, engine = who[0], name_of(who[1]), self.node.engine
        labels = self.world.history.log(tenant, ref).labels
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
                self.node.forced[tenant, name_of(who[1])] = self.node.now
                order = engine.unload(tenant, ref, force=True)
        self.orders.append(order)

    @precondition(lambda self: self.open)
    @rule(which=choices, number=numbers)
    def ask_twice_under_one_id(self, which: int, number: int) -> None:
        taken = self.open[which % len(self.open)].request.request_id
        self._ask(TENANTS[0], name_of(number), request_id=taken)

    @precondition(lambda self: self.open)
    @rule(which=choices, then=st.one_of(st.none(), numbers))
    def cancel(self, which: int, then: int | None) -> None:
        """And perhaps ask at once for another adapter, under the same id."""
        request_id = self.open[which % len(self.open)].request.request_id
        for asked in self.open:
            asked.cancelled |= asked.request.request_id == request_id
        self.node.engine.cancel(request_id)
        if then is not None:
            self._ask(TENANTS[0], name_of(then), request_id=request_id)

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 5), tokens=lengths, pace=paces)
    def ask_again(self, which: int, tokens: int, pace: int) -> None:
        """One of the latest, word by word: the cache may know its beginning."""
        before = self.asked[-1 - which % len(self.asked)]
        again = before.request
        self._ask(again.tenant, again.adapter, prompt=before.prompt, tokens=tokens)
        self.run(pace)

    @rule(seconds=st.sampled_from((0.02, 0.6, 2.0, 10.0, 61.0)))
    def time_passes(self, seconds: float) -> None:
        self.node.now += seconds

    @rule(times=st.integers(1, 5))
    def step(self, times: int) -> None:
        for _ in range(times):
            self._turn()

    @rule(which=st.lists(choices, min_size=1, max_size=5))
    def workers_end_jobs(self, which: Sequence[int]) -> None:
        for choice in which:
            if self.node.jobs:
                self.node.work(choice)
                self.checks.between_steps()

    @rule(turns=st.integers(1, 12))
    def run(self, turns: int) -> None:
        """Steps and jobs by turns, as when nothing is slow."""
        for _ in range(turns):
            self._turn()
            while self.node.jobs:
                self.node.work(0)

    @rule(missed=st.booleans())
    def look_for_news(self, missed: bool) -> None:
        """With `missed` the stream of hints broke off meanwhile."""
        self.node.news.gaps += missed
        self.node.look_for_news()

    @rule(kind=st.sampled_from(TROUBLE), count=st.integers(1, 2))
    def trouble(self, kind: str, count: int) -> None:
        """A chunk that arrives damaged is asked for again; twice is the end of it."""
        door = self.node.door
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
                self.node.copy_fails_next += 1

    @invariant()
    def holds(self) -> None:
        self.checks.between_steps()
        self._judge()

    def teardown(self) -> None:
        """Also called when a rule failed."""
        broken = isinstance(sys.exc_info()[1], Exception)
        try:
            if sys.exc_info()[1] is None:
                self._calm_down()
        except Exception:
            broken = True
            raise
        finally:
            if broken:
                self.tally.setdefault("failed at", self.tally["examples"])

    def ask_alone(self, number: int) -> None:
        """One token, with nothing else going on."""
        self._ask(TENANTS[0], name_of(number), tokens=1)
        self._run_freely()

    def _change(self, act: Callable[[], Published]) -> None:
        """A publisher acts; what its log then says is known to us, and told to the node."""
        try:
            done = act()
        except (NotFound, InvalidAdapter):
            return
        self.world.history.learn(done.record, now=self.node.now)
        self.node.news.hints.append(Hint(done.tenant, done.adapter, done.gen))

    def _ask(
        self,
        tenant: str,
        adapter: str,
        *,
        prompt: tuple[int, int] = (0, 4),
        tokens: int = 4,
        deadline: float | None = None,
        priority: int = 0,
        affinity: str = "",
        min_generation: int = 0,
        request_id: str | None = None,
    ) -> None:
        if len(self.open) >= self.shelf.config.max_queue // 2:
            return
        text, length = prompt
        request = Request(
            request_id=request_id or f"r{len(self.asked)}",
            tenant=tenant,
            adapter=adapter,
            prompt=tuple(range(100 * text + 100, 100 * text + 100 + length)),
            stopping=Stopping(max_new_tokens=tokens, ignore_eos=True),
            min_generation=min_generation,
            deadline=None if deadline is None else self.node.now + deadline,
            priority=priority,
            affinity_key=affinity,
        )
        twin = any(one.request.request_id == request_id for one in self.open)
        asked = Asked(self.world, request, prompt, twin=twin)
        self.asked.append(asked)
        self.open.append(asked)
        self.node.engine.submit(request, asked.on_event)

    def _turn(self) -> bool:
        stuck = self.node.turn()
        self.steps += 1
        self.checks.between_steps()
        self._judge()
        return stuck

    def _run_freely(self) -> None:
        """Until all that can end has ended."""
        for _ in range(QUIET_TURNS):
            stuck = self._turn()
            if self.node.jobs:
                self.node.work(0)
            elif stuck and not self.open and all(order.done() for order in self.orders):
                return
            elif stuck:
                self.node.now += 0.5
        raise AssertionError(f"never end: {[str(one) for one in self.open]}")

    def _judge(self) -> None:
        faults = list(itertools.chain.from_iterable(one.faults for one in self.open))
        assert not faults, faults
        self.open = [one for one in self.open if not one.ended]

    def _calm_down(self) -> None:
        """The trouble stops: each accepted request ends, and nothing stays held."""
        door = self.node.door
        door.down, door.fail_next, door.damage_next = False, 0, 0
        self.node.copy_fails_next = 0
        self._run_freely()
        late = [fault for one in self.asked for fault in one.faults]
        assert not late, late
        for order in self.orders:
            error = order.exception()
            assert error is None or isinstance(error, NodeError), repr(error)
        self.checks.at_rest()
        self._count()

    def _count(self) -> None:
        tally, node = self.tally, self.node
        tally["steps"] += self.steps
        tally["requests ended"] += len(self.asked)
        tally["orders answered"] += len(self.orders)
        tally["loads"] += len(node.fills)
        tally["loads again"] += len(node.fills) - len(set(node.fills))
        tally["KV blocks shared"] += self.checks.reused_blocks
        tally["requests the store left unanswered"] += node.door.refused
        tally["chunks damaged"] += node.door.damages
        tally["copies failed"] += node.copies_failed
        tally["cancelled"] += sum(one.cancelled for one in self.asked)
        tally["deadlines passed"] += sum(one.failed_with(DeadlineExpired) for one in self.asked)
        tally["completed"] += sum(isinstance(one.last, Completed) for one in self.asked)
