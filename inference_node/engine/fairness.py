"""Whose turn it is: priorities, and fair shares of tenants and of their adapters.

Inside a priority class, virtual token counters (VTC: Sheng et al., "Fairness in Serving Large
Language Models", OSDI 2024): a tenant's counter is what it was served, a prompt token counting 1
and a generated one 2, divided by its weight, and the tenant with the smallest counter goes next.
A tenant that comes back is lifted to the smallest counter of those that wait, so idling saves
nothing up. Inside a tenant the same holds of its adapters, and inside an adapter requests go in
the order in which they were accepted.

A class goes before the classes below it; each `aging_steps` steps that it waits lift it by one,
until one request of it was let through, so the lowest is served too. What age lets through runs
with the rank it had then, and is not pushed out again by those it overtook.

A request is in line here until its prompt is read: while it waits for room, and while it reads.
Pure Python; owned by the scheduler.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Rows

from inference_node.engine.sequence import Sequence

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
_KEPT = 1024
"""Counters of keys with nothing in line that are kept before any is forgotten."""


class TokenCounters:
    """What each key was served, and which of those in line was served least."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = weights or {}
        self._served: dict[str, float] = {}
        self._in_line: Counter[str] = Counter()
        self._heap: list[tuple[float, int, str]] = []
        """May lag behind `_served`, never ahead of it: counters only rise."""
        self._tickets: dict[str, int] = {}
        self._issued = 0
        self._last = ""
        self._floor = 0.0
        self._forget_at = _KEPT

    def served(self, key: str) -> float:
        """Its counted tokens over its weight."""
        return self._served.get(key, self._floor)

    def knows(self, key: str) -> bool:
        return key in self._served

    def weight(self, key: str) -> float:
        return self._weights.get(key, 1.0)

    def join(self, key: str) -> None:
        """One more request of `key` is in line."""
        if not self._in_line[key]:
            self._lift(key)
        self._in_line[key] += 1

    def leave(self, key: str) -> None:
        self._in_line[key] -= 1
        if not self._in_line[key]:
            del self._in_line[key], self._tickets[key]
            self._last = key

    def charge(self, key: str, tokens: float) -> None:
        before = self._served.get(key, self._floor)
        self._served[key] = before + tokens / self._weights.get(key, 1.0)

    def least(self) -> str | None:
        """The key in line that was served least; of equals, the one that joined first."""
        heap = self._heap
        while heap:
            noted, ticket, key = heap[0]
            if self._tickets.get(key) != ticket:
                heapq.heappop(heap)
            elif self._served[key] > noted:
                heapq.heapreplace(heap, (self._served[key], ticket, key))
            else:
                return key
        return None

    def _lift(self, key: str) -> None:
        least = self.least()
        self._floor = max(self._floor, self.served(self._last if least is None else least))
        self._served[key] = max(self.served(key), self._floor)
        self._issued += 1
        self._tickets[key] = self._issued
        heapq.heappush(self._heap, (self._served[key], self._issued, key))
        if len(self._served) > self._forget_at:
            self._forget()

    def _forget(self) -> None:
        """Drop counters that a lift would replace anyway."""
        self._served = {
            key: served
            for key, served in self._served.items()
            if served > self._floor or key in self._in_line
        }
        self._forget_at = max(_KEPT, 2 * len(self._served))


class _Class:
    """One priority: its tenants, their adapters, and each adapter's requests in line."""

    def __init__(self, weights: Mapping[str, float], now: int) -> None:
        self.tenants = TokenCounters(weights)
        self.adapters: dict[str, TokenCounters] = {}
        self.lines: dict[tuple[str, str], list[Sequence]] = {}
        self.since = now
        """The step from which it has waited to have a request let through."""

    def adapters_of(self, tenant: str) -> TokenCounters:
        found = self.adapters.get(tenant)
        if found is None:
            if len(self.adapters) > 2 * _KEPT:
                self.adapters = {t: a for t, a in self.adapters.items() if self.tenants.knows(t)}
            found = self.adapters[tenant] = TokenCounters()
        return found


class Fairness:
    """Says which request goes next, and which one makes way for it."""

    def __init__(
        self,
        *,
        weights: Mapping[str, float] | None = None,
        lag_tokens: int = 4096,
        aging_steps: int = 64,
    ) -> None:
        """`weights` are shares by tenant, 1 where none is given.

        A waiting request whose tenant (or, within one tenant, whose adapter) is `lag_tokens`
        counted tokens behind a running one's makes that one give up its row.
        """
        self._weights = weights or {}
        self._lag_tokens = lag_tokens
        self._aging_steps = aging_steps
        self._classes: dict[int, _Class] = {}
        self._rows: Counter[tuple[object, ...]] = Counter()
        """Rows held, by (priority, tenant) and by (priority, tenant, adapter)."""
        self._step = 0

    def tick(self) -> None:
        """A step begins."""
        self._step += 1

    def join(self, sequence: Sequence) -> None:
        """Put a request in line."""
        assert not sequence.in_line
        request, entry = sequence.request, sequence.entry
        flow = (request.priority, request.tenant, "" if entry is None else entry.adapter)
        priority, tenant, adapter = sequence.flow = flow
        of = self._classes.get(priority)
        if of is None:
            of = self._classes[priority] = _Class(self._weights, self._step)
        if not of.lines:
            of.since = self._step
        of.tenants.join(tenant)
        of.adapters_of(tenant).join(adapter)
        insort(of.lines.setdefault((tenant, adapter), []), sequence, key=_order)
        sequence.in_line = True

    def leave(self, sequence: Sequence) -> None:
        """Take a request out of line; one that is not in line is left alone."""
        if not sequence.in_line:
            return
        priority, tenant, adapter = sequence.flow
        of = self._classes[priority]
        line = of.lines[tenant, adapter]
        line.remove(sequence)
        if not line:
            del of.lines[tenant, adapter]
        of.tenants.leave(tenant)
        of.adapters[tenant].leave(adapter)
        sequence.in_line = False

    def next(self) -> Sequence | None:
        """The request in line that goes next."""
        best = max(
            (priority for priority, of in self._classes.items() if of.lines),
            key=lambda priority: (self.rank(priority), priority),
            default=None,
        )
        if best is None:
            return None
        of = self._classes[best]
        tenant = of.tenants.least()
        assert tenant is not None
        adapter = of.adapters[tenant].least()
        assert adapter is not None
        return of.lines[tenant, adapter][0]

    def rank(self, priority: int) -> int:
        """A class's priority, raised by its age."""
        return priority + (self._step - self._classes[priority].since) // self._aging_steps

    def admit(self, sequence: Sequence) -> None:
        """It gets a row. Fixes its place among those that run: who has the last gives way first.

        The tenant's counter at the first admission stays in it. Counters of newcomers only rise, so
        each request comes to be the first, and finishes.
        """
        priority, tenant, _ = sequence.flow
        if sequence.admitted_at is None:
            sequence.admitted_at = self._classes[priority].tenants.served(tenant)
        sequence.rank = self.rank(priority)
        sequence.place = (-sequence.rank, sequence.admitted_at, sequence.order)
        self._rows[sequence.flow] += 1
        self._rows[priority, tenant] += 1

    def dismiss(self, sequence: Sequence) -> None:
        """It gave its row back."""
        for key in (sequence.flow, sequence.flow[:2]):
            self._rows[key] -= 1
            if not self._rows[key]:
                del self._rows[key]

    def read(self, sequence: Sequence, tokens: int) -> None:
        """The next `tokens` tokens of a request in line pass through the model.

        Prompt tokens are paid for once, however often they are read.
        """
        upto = min(sequence.cached + tokens, len(sequence.request.prompt))
        new = upto - sequence.paid
        if new > 0:
            sequence.paid = upto
            self._charge(sequence.flow, new * PROMPT_WEIGHT)
        if tokens == sequence.pending:
            self.leave(sequence)
            self._classes[sequence.request.priority].since = self._step

    def drew(self, sequences: Iterable[Sequence]) -> None:
        """The step gives each of these requests a token."""
        for flow, rows in Counter(sequence.flow for sequence in sequences).items():
            self._charge(flow, rows * OUTPUT_WEIGHT)

    def must_yield(self, head: Sequence, running: Rows[Sequence]) -> Iterator[Sequence]:
        """Who of `running`, last place first, makes way for `head`, which waits for room."""
        priority = head.request.priority
        rank = self.rank(priority)
        gone: Counter[tuple[object, ...]] = Counter()
        known: dict[tuple[object, ...], bool] = {}
        for sequence in reversed(running):
            flow = sequence.flow
            if flow[0] != priority:
                yields = flow[0] < priority and sequence.rank < rank
            elif sequence.in_line:
                # Who still reads has gained nothing yet, and would come back for as much.
                yields = False
            else:
                if flow not in known:
                    known[flow] = self._overserved(flow, head.flow, gone)
                yields = known[flow]
            if yields:
                gone.update((flow, flow[:2]))
                known.clear()
                yield sequence

    def _overserved(
        self,
        theirs: tuple[int, str, str],
        mine: tuple[int, str, str],
        gone: Mapping[tuple[object, ...], int],
    ) -> bool:
        """Whether a flow is far ahead of another and would not have fewer rows with one less."""
        of = self._classes[mine[0]]
        my_rows: tuple[object, ...] = mine
        their_rows: tuple[object, ...] = theirs
        if mine[1] == theirs[1]:
            counters, one, other = of.adapters_of(mine[1]), mine[2], theirs[2]
        else:
            counters, one, other = of.tenants, mine[1], theirs[1]
            my_rows, their_rows = mine[:2], theirs[:2]
        if counters.served(other) - counters.served(one) <= self._lag_tokens:
            return False
        left = self._rows[their_rows] - gone.get(their_rows, 0)
        return (self._rows[my_rows] + 1) / counters.weight(one) <= left / counters.weight(other)

    def _charge(self, flow: tuple[int, str, str], tokens: float) -> None:
        of = self._classes[flow[0]]
        of.tenants.charge(flow[1], tokens)
        of.adapters_of(flow[1]).charge(flow[2], tokens)


def _order(sequence: Sequence) -> int:
    return sequence.order
