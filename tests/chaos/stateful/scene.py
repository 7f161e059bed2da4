"""A node in the middle of things: its store, its publishers, its callers, and how all that ends.

Whatever is done, N1 to N8 are asked for after each step of the engine (checks.py), and every event
that a request is told is judged when it comes (asked.py).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from adapter_store.commit import Published
from adapter_store.coordination import Hint
from adapter_store.errors import InvalidAdapter, NotFound
from inference_node.errors import DeadlineExpired, NodeError
from inference_node.request import Completed, Request, Stopping
from tests.chaos.stateful.asked import Asked, World
from tests.chaos.stateful.checks import Checks
from tests.chaos.stateful.node import Node
from tests.chaos.stateful.shelf import Shelf, publisher_of

QUIET_TURNS = 3000


class Scene:
    """One node with everybody around it. Its methods raise AssertionError for what must not be."""

    def __init__(self, shelf: Shelf) -> None:
        store, history = shelf.world()
        self.node = Node(shelf, store)
        self.world = World(shelf, self.node, history)
        self.checks = Checks(self.node)
        self.publisher = publisher_of(store)
        self.steps = 0
        self.asked: list[Asked] = []
        self.open: list[Asked] = []
        """Who has not been told how it ended."""
        self.orders: list[Future[Any]] = []

    def change(self, act: Callable[[], Published]) -> None:
        """A publisher acts; what its log then says is known to us, and told to the node."""
        try:
            done = act()
        except (NotFound, InvalidAdapter):
            return
        self.world.history.learn(done.record, now=self.node.now)
        self.node.news.hints.append(Hint(done.tenant, done.adapter, done.gen))

    def ask(
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
        if len(self.open) >= self.world.shelf.config.max_queue // 2:
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

    def turn(self) -> bool:
        stuck = self.node.turn()
        self.steps += 1
        self.look()
        return stuck

    def run(self, turns: int) -> None:
        """Steps and jobs by turns, as when nothing is slow."""
        for _ in range(turns):
            self.turn()
            while self.node.jobs:
                self.node.work(0)

    def run_freely(self) -> None:
        """Until all that can end has ended."""
        for _ in range(QUIET_TURNS):
            stuck = self.turn()
            if self.node.jobs:
                self.node.work(0)
            elif stuck and not self.open and all(order.done() for order in self.orders):
                return
            elif stuck:
                self.node.now += 0.5
        raise AssertionError(f"never end: {[str(one) for one in self.open]}")

    def look(self) -> None:
        """N1 to N8 hold, and nobody was told what may not be."""
        self.checks.between_steps()
        faults = list(itertools.chain.from_iterable(one.faults for one in self.open))
        assert not faults, faults
        self.open = [one for one in self.open if not one.ended]

    def calm_down(self) -> None:
        """The trouble stops: each accepted request ends, and nothing stays held."""
        door = self.node.door
        door.down, door.fail_next, door.damage_next = False, 0, 0
        self.node.copy_fails_next = 0
        self.run_freely()
        late = [fault for one in self.asked for fault in one.faults]
        assert not late, late
        for order in self.orders:
            error = order.exception()
            assert error is None or isinstance(error, NodeError), repr(error)
        self.checks.at_rest()

    def counted(self) -> Counter[str]:
        """What happened, and how often."""
        node = self.node
        return Counter(
            {
                "steps": self.steps,
                "requests ended": len(self.asked),
                "orders answered": len(self.orders),
                "loads": len(node.fills),
                "loads again": len(node.fills) - len(set(node.fills)),
                "KV blocks shared": self.checks.reused_blocks,
                "requests the store left unanswered": node.door.refused,
                "chunks damaged": node.door.damages,
                "copies failed": node.copies_failed,
                "cancelled": sum(one.cancelled for one in self.asked),
                "deadlines passed": sum(one.failed_with(DeadlineExpired) for one in self.asked),
                "completed": sum(isinstance(one.last, Completed) for one in self.asked),
            }
        )
