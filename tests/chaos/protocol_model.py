"""The protocol as a model small enough to try every order of events.

One adapter whose log already holds two records: content X, overtaken by content Y. Publisher 1
publishes X again, publisher 2 new content Z, while collectors collect and a reaper reaps, each
at any time and in any order; publishers and collectors may crash between any two steps, and a
commit may be delayed past its timeout, applied without an answer, or lost. Only the current
record keeps its content, the harshest retention there is.

    publisher  HEAD > INTENT > PLANS > PLACE > COMMIT > ACKNOWLEDGE > CLEAN > END
                 ^                               |-> UNSURE > (read | send again | fill with fence)
                 '----- rebase, a new attempt ---'-> BEATEN > (rebase | report failure)
    collector  MARK > PLAN > LOOK_INTENTS > LOOK_LOG > DELETE > UNPLAN > END

A state is a tuple of tuples, so that equal states are one. A `Mutant` leaves out or turns round one
rule of the protocol: every one of them must break a promise, or the model would prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

HEAD, INTENT, PLANS, PLACE, COMMIT = "head", "intent", "plans", "place", "commit"
UNSURE, BEATEN, ACKNOWLEDGE, CLEAN = "unsure", "beaten", "acknowledge", "clean"
MARK, PLAN, LOOK_INTENTS, LOOK_LOG = "mark", "plan", "look at intents", "look at log"
DELETE, UNPLAN, END, CRASHED = "delete", "unplan", "end", "crashed"

OK, FAILED = "acknowledged", "reported failed"
_CONTENT = {"p1": "X", "p2": "Z"}
_REAPS = 2
_NONE: frozenset[str] = frozenset()


class Mutant(Enum):
    """One rule broken."""

    REUSE_KEY = "a second attempt sends its chunk under the first one's key"
    PLANS_BEFORE_INTENT = "the publisher reads the plans before it writes its intent"
    NO_INTENT = "the publisher writes no intent"
    IGNORE_PLANS = "the publisher reuses a chunk that a plan names"
    SINGLE_PHASE = "the collector deletes what it marked without looking again"
    LOG_BEFORE_INTENTS = "the collector looks at the log before it looks at the intents"
    REAP_UNFENCED = "the reaper deletes an intent whose slot is free"
    TIMEOUT_IS_FAILURE = "a commit without an answer is reported as failed"
    UNCONDITIONAL_PUT = "the store ignores If-None-Match"
    DROP_PLAN_EARLY = "the collector drops plans whose keys are still there"


class Commit(NamedTuple):
    """A record: who wrote it and the chunk it names."""

    txid: str
    key: str


class Sent(NamedTuple):
    """A commit on the wire that its sender gave up waiting for."""

    slot: int
    commit: Commit


class Intent(NamedTuple):
    txid: str
    slot: int
    digest: str


class Planned(NamedTuple):
    """One key in one collector's plan."""

    collector: int
    key: str


class Report(NamedTuple):
    txid: str
    outcome: str


class Publisher(NamedTuple):
    step: str = HEAD
    slot: int = 0
    key: str = ""
    attempt: int = 0
    condemned: frozenset[str] = _NONE


class Collector(NamedTuple):
    step: str = MARK
    candidates: frozenset[str] = _NONE
    needed: frozenset[str] = _NONE
    dead: frozenset[str] = _NONE


class State(NamedTuple):
    """Everything in the store, in every process and on the wire."""

    log: tuple[Commit, ...]
    blobs: frozenset[str]
    intents: frozenset[Intent]
    plans: frozenset[Planned]
    publishers: tuple[Publisher, ...]
    collectors: tuple[Collector, ...]
    reaps: int
    wire: frozenset[Sent]
    reports: frozenset[Report]


class Move(NamedTuple):
    """What somebody did, and what came of it."""

    what: str
    state: State


@dataclass(frozen=True, slots=True)
class World:
    """Who takes part, what may go wrong, and which rule is broken."""

    publishers: int
    collectors: int
    rebase: bool = True
    delays: bool = True
    mutant: Mutant | None = None

    def start(self) -> State:
        return State(
            log=(Commit("t0", "X.0"), Commit("t1", "Y.0")),
            blobs=frozenset({"X.0", "Y.0"}),
            intents=frozenset(),
            plans=frozenset(),
            publishers=(Publisher(),) * self.publishers,
            collectors=(Collector(),) * self.collectors,
            reaps=0,
            wire=frozenset(),
            reports=frozenset(),
        )

    def moves(self, state: State) -> Iterator[Move]:
        """Everything that can happen next."""
        for place, publisher in enumerate(state.publishers):
            if publisher.step not in (END, CRASHED):
                yield Move(
                    f"p{place + 1} crashes", _put(state, place, publisher._replace(step=CRASHED))
                )
                yield from self._publisher_moves(state, place, publisher)
        yield from self._wire_moves(state)
        for place, collector in enumerate(state.collectors):
            if collector.step not in (END, CRASHED):
                yield Move(
                    f"c{place} crashes", _collect(state, place, collector._replace(step=CRASHED))
                )
                yield from self._collector_moves(state, place, collector)
        yield from self._reaper_moves(state)

    def _publisher_moves(self, state: State, place: int, me: Publisher) -> Iterator[Move]:
        txid = f"p{place + 1}"
        match me.step:
            case "head":
                seen = _planned(state) if self.mutant is Mutant.PLANS_BEFORE_INTENT else _NONE
                yield Move(
                    f"{txid} reads the head",
                    _put(state, place, Publisher(INTENT, len(state.log), "", me.attempt, seen)),
                )
            case "intent":
                yield self._intent(state, place, me, txid)
            case "plans":
                yield Move(
                    f"{txid} reads the plans",
                    _put(state, place, me._replace(step=PLACE, condemned=_planned(state))),
                )
            case "place":
                yield self._place(state, place, me, txid)
            case "commit":
                yield from self._commit(state, place, me, txid)
            case "unsure":
                yield from self._resolve(state, place, me, txid)
            case "beaten":
                yield from self._beaten(state, place, me, txid)
            case "acknowledge":
                yield Move(
                    f"{txid} is acknowledged",
                    _put(_report(state, txid, OK), place, me._replace(step=CLEAN)),
                )
            case "clean":
                kept = frozenset(one for one in state.intents if one.txid != txid)
                done = Publisher(END)
                yield Move(f"{txid} cleans", _put(state._replace(intents=kept), place, done))

    def _intent(self, state: State, place: int, me: Publisher, txid: str) -> Move:
        if self.mutant is Mutant.NO_INTENT:
            return Move(f"{txid} writes no intent", _put(state, place, me._replace(step=PLANS)))
        others = frozenset(one for one in state.intents if one.txid != txid)
        intents = others | {Intent(txid, me.slot, _CONTENT[txid])}
        step = PLACE if self.mutant is Mutant.PLANS_BEFORE_INTENT else PLANS
        written = state._replace(intents=intents)
        return Move(f"{txid} writes its intent", _put(written, place, me._replace(step=step)))

    def _place(self, state: State, place: int, me: Publisher, txid: str) -> Move:
        """Reuse a chunk with our content that no plan names, else send it."""
        digest = _CONTENT[txid]
        barred = _NONE if self.mutant is Mutant.IGNORE_PLANS else me.condemned
        found = [key for key in state.blobs if _digest(key) == digest and key not in barred]
        if found:
            key = min(found)
            what = f"{txid} reuses {key}"
        else:
            reuse = self.mutant is Mutant.REUSE_KEY
            key = f"{digest}.{txid}" if reuse else f"{digest}.{txid}.{me.attempt}"
            state = state._replace(blobs=state.blobs | {key})
            what = f"{txid} sends {key}"
        return Move(what, _put(state, place, me._replace(step=COMMIT, key=key, condemned=_NONE)))

    def _commit(self, state: State, place: int, me: Publisher, txid: str) -> Iterator[Move]:
        sent = Sent(me.slot, Commit(txid, me.key))
        applied = self._apply(state, sent)
        won = applied is not state
        step = ACKNOWLEDGE if won else BEATEN
        yield Move(f"{txid} commits: {won}", _put(applied, place, me._replace(step=step)))
        if self.delays:
            delayed = state._replace(wire=state.wire | {sent})
            yield Move(
                f"{txid}'s commit is delayed", _put(delayed, place, me._replace(step=UNSURE))
            )
            yield Move(f"{txid} hears no answer", _put(applied, place, me._replace(step=UNSURE)))

    def _resolve(self, state: State, place: int, me: Publisher, txid: str) -> Iterator[Move]:
        if self.mutant is Mutant.TIMEOUT_IS_FAILURE:
            failed = _report(state, txid, FAILED)
            yield Move(
                f"{txid} takes no answer for failure", _put(failed, place, me._replace(step=CLEAN))
            )
        elif me.slot < len(state.log):
            step = ACKNOWLEDGE if state.log[me.slot].txid == txid else BEATEN
            yield Move(f"{txid} reads its slot", _put(state, place, me._replace(step=step)))
        else:
            yield Move(f"{txid} sends again", _put(state, place, me._replace(step=COMMIT)))
            filled = _report(_fence(state, f"fence {place}"), txid, FAILED)
            yield Move(f"{txid} fills its slot", _put(filled, place, me._replace(step=CLEAN)))

    def _beaten(self, state: State, place: int, me: Publisher, txid: str) -> Iterator[Move]:
        ours = me.slot < len(state.log) and state.log[me.slot].txid == txid
        if ours and self.mutant is not Mutant.UNCONDITIONAL_PUT:
            yield Move(f"{txid} finds its own", _put(state, place, me._replace(step=ACKNOWLEDGE)))
            return
        if self.rebase and me.attempt == 0:
            again = Publisher(HEAD, 0, "", me.attempt + 1)
            yield Move(f"{txid} rebases", _put(state, place, again))
        failed = _report(state, txid, FAILED)
        yield Move(f"{txid} reports a conflict", _put(failed, place, me._replace(step=CLEAN)))

    def _apply(self, state: State, sent: Sent) -> State:
        """The store takes a commit; the same state object when it refuses."""
        if sent.slot == len(state.log):
            return state._replace(log=(*state.log, sent.commit))
        if self.mutant is Mutant.UNCONDITIONAL_PUT and sent.slot < len(state.log):
            log = (*state.log[: sent.slot], sent.commit, *state.log[sent.slot + 1 :])
            return state._replace(log=log)
        return state

    def _wire_moves(self, state: State) -> Iterator[Move]:
        for sent in state.wire:
            landed = state._replace(wire=state.wire - {sent})
            yield Move(f"{sent.commit.txid}'s commit arrives late", self._apply(landed, sent))
            yield Move(f"{sent.commit.txid}'s commit is lost", landed)

    def _collector_moves(self, state: State, place: int, me: Collector) -> Iterator[Move]:
        name = f"c{place}"
        match me.step:
            case "mark":
                wanted = _wanted(state)
                found = frozenset(
                    key
                    for key in state.blobs
                    if key != state.log[-1].key and _digest(key) not in wanted
                )
                marked = Collector(PLAN if found else END, found)
                yield Move(f"{name} marks", _collect(state, place, marked))
            case "plan":
                yield self._plan(state, place, me)
            case "look at intents":
                wanted = _wanted(state)
                needed = frozenset(key for key in me.candidates if _digest(key) in wanted)
                last = self.mutant is Mutant.LOG_BEFORE_INTENTS
                step = DELETE if last else LOOK_LOG
                yield Move(f"{name} reads intents", _spare(state, place, me, needed, step))
            case "look at log":
                needed = me.candidates & {state.log[-1].key}
                first = self.mutant is Mutant.LOG_BEFORE_INTENTS
                step = LOOK_INTENTS if first else DELETE
                yield Move(f"{name} reads the log", _spare(state, place, me, needed, step))
            case "delete" if me.dead:
                key = min(me.dead)
                gone = state._replace(blobs=state.blobs - {key})
                rest = me.dead - {key}
                yield Move(f"{name} deletes {key}", _collect(gone, place, me._replace(dead=rest)))
            case "delete":
                yield Move(f"{name} has deleted", _collect(state, place, me._replace(step=UNPLAN)))
            case "unplan":
                kept = frozenset(one for one in state.plans if not self._droppable(state, me, one))
                done = state._replace(plans=kept)
                yield Move(f"{name} drops plans", _collect(done, place, Collector(END)))

    def _plan(self, state: State, place: int, me: Collector) -> Move:
        if self.mutant is Mutant.SINGLE_PHASE:
            at_once = _collect(state, place, me._replace(step=DELETE, dead=me.candidates))
            return Move(f"c{place} sweeps at once", at_once)
        planned = state._replace(plans=state.plans | {Planned(place, k) for k in me.candidates})
        step = LOOK_LOG if self.mutant is Mutant.LOG_BEFORE_INTENTS else LOOK_INTENTS
        return Move(f"c{place} writes its plan", _collect(planned, place, me._replace(step=step)))

    def _droppable(self, state: State, me: Collector, line: Planned) -> bool:
        if self.mutant is Mutant.DROP_PLAN_EARLY:
            return line.key in me.candidates
        return line.key not in state.blobs

    def _reaper_moves(self, state: State) -> Iterator[Move]:
        """An intent whose slot is taken is dead; a free slot is filled first."""
        for intent in state.intents:
            what = f"the reaper takes {intent.txid}'s intent"
            without = state._replace(intents=state.intents - {intent})
            if intent.slot < len(state.log) or self.mutant is Mutant.REAP_UNFENCED:
                yield Move(what, without)
            elif state.reaps < _REAPS:
                filled = _fence(state, f"fence of reap {state.reaps}")
                yield Move(
                    f"the reaper fills {intent.txid}'s slot", filled._replace(reaps=state.reaps + 1)
                )


def broken_promise(state: State) -> str:
    """Which invariant this state breaks; empty for none."""
    if state.log[-1].key not in state.blobs:
        return "I1 the current record names a chunk that is gone"
    txids = [commit.txid for commit in state.log]
    if len(set(txids)) != len(txids):
        return "I4 one publish is committed twice"
    for report in state.reports:
        if report.outcome == OK and report.txid not in txids:
            return "I2 an acknowledged publish is not in the log"
        if report.outcome == FAILED and report.txid in txids:
            return "I3 a publish reported as failed is in the log"
    return ""


def _digest(key: str) -> str:
    return key[0]


def _planned(state: State) -> frozenset[str]:
    return frozenset(line.key for line in state.plans)


def _wanted(state: State) -> set[str]:
    return {intent.digest for intent in state.intents}


def _report(state: State, txid: str, outcome: str) -> State:
    return state._replace(reports=state.reports | {Report(txid, outcome)})


def _fence(state: State, name: str) -> State:
    """A record that changes nothing, in the next slot."""
    return state._replace(log=(*state.log, Commit(name, state.log[-1].key)))


def _put(state: State, place: int, publisher: Publisher) -> State:
    all_ = state.publishers
    return state._replace(publishers=(*all_[:place], publisher, *all_[place + 1 :]))


def _collect(state: State, place: int, collector: Collector) -> State:
    all_ = state.collectors
    return state._replace(collectors=(*all_[:place], collector, *all_[place + 1 :]))


def _spare(state: State, place: int, me: Collector, needed: frozenset[str], step: str) -> State:
    """The state in which `me` has found these keys needed too and goes on to `step`."""
    needed |= me.needed
    return _collect(
        state, place, me._replace(step=step, needed=needed, dead=me.candidates - needed)
    )
