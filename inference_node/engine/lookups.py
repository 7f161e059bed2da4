"""What references mean, asked of the store: once for all who ask at the same time.

For the engine thread. Who asks while a look-up runs gets the answer of the next one, which begins
after it asked: a publish that ended before a request began is never missed for the sake of sharing.
What was absent a moment ago is not asked for again, and a store that keeps failing is left alone
for a while but for one look-up at a time that finds out whether it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from adapter_store.layout import AdapterRef
from inference_node.adapters.absent import AbsentNames
from inference_node.adapters.backoff import Backoff, Delays
from inference_node.adapters.loader import Loader
from inference_node.adapters.outcomes import no_such_adapter
from inference_node.engine.claims import Claim
from inference_node.engine.names import Name
from inference_node.errors import AdapterNotFound, NodeError, StoreDown

OUTAGE = Delays(first=1.0, longest=10.0)
TOLERATED = 2
"""Failures in a row before the store is left alone."""


@dataclass(frozen=True, slots=True)
class _Question:
    """Equal ones have the same answer."""

    ref: AdapterRef
    min_generation: int
    affinity: str
    ask: bool


@dataclass(slots=True, eq=False)
class Lookup:
    """One look-up, and for whom."""

    question: _Question
    claims: list[Claim]
    late: list[Claim] = field(default_factory=list)
    """Asked after it began: its answer is not for them."""
    doubted: bool = False
    """News of the name came meanwhile: that it was absent means nothing any more."""


class Lookups:
    """Claims whose reference is being looked up."""

    def __init__(
        self,
        loader: Loader,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._loader = loader
        self._clock = clock
        self._absent = AbsentNames(clock=clock)
        self._outage: Backoff[None] = Backoff(OUTAGE, clock=clock, random=random)
        self._probe = ""
        """The look-up that finds out whether the store is back."""
        self._running: dict[str, Lookup] = {}
        self._asked: dict[_Question, str] = {}

    @property
    def store_is_away(self) -> bool:
        return self._outage.failures(None) > TOLERATED

    def ask(self, claims: list[Claim], *, store: bool = True) -> NodeError | None:
        """Look up what claims for the same thing mean, or the answer that is known already.

        Without `store`, what is known of the log is to answer claims with an affinity key.
        """
        claim = claims[0]
        ref = claim.ref
        # What a reference pins is the same in every generation and for every key.
        least, affinity = (0, "") if ref.pinned else (claim.min_generation, claim.affinity)
        question = _Question(ref, least, affinity, store)
        token = self._asked.get(question)
        if token is not None:
            self._running[token].late += claims
            return None
        if store and self._absent.recalls(ref, least):
            return no_such_adapter(str(ref))
        if store and self.store_is_away and (self._probe or self._outage.error(None)):
            wait = max(0.1, self._outage.until(None) - self._clock())
            return StoreDown(f"{ref} is not on this node and the store is away", retry_after=wait)
        self._begin(question, claims)
        return None

    def answered(self, token: str, error: NodeError | None, *, asked: bool = True) -> Lookup | None:
        """A look-up ended, and the store was `asked` for it; None when nobody waited for it."""
        lookup = self._running.pop(token, None)
        if lookup is None:
            return None
        question = lookup.question
        del self._asked[question]
        if asked:
            self._note_store(token, error)
        if error is None:
            self._absent.found(question.ref)
        elif isinstance(error, AdapterNotFound) and not lookup.doubted:
            self._absent.note(question.ref, question.min_generation)
        return lookup

    def withdraw(self, claim: Claim) -> None:
        for lookup in self._running.values():
            for claims in (lookup.claims, lookup.late):
                if claim in claims:
                    claims.remove(claim)

    def heard(self, names: Collection[Name] | None) -> None:
        """There may be news of these names, or of any: what was absent is asked for again."""
        if names is None:
            self._absent.forget_all()
        else:
            for name in names:
                self._absent.forget(*name)
        for lookup in self._running.values():
            ref = lookup.question.ref
            lookup.doubted |= names is None or (ref.tenant, ref.adapter) in names

    def count(self, claim: Claim) -> int:
        """In how many places it waits."""
        return sum(
            lookup.claims.count(claim) + lookup.late.count(claim)
            for lookup in self._running.values()
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when a look-up is lost or what is remembered breaks its bound."""
        self._absent.check_integrity()
        asked = {token: lookup.question for token, lookup in self._running.items()}
        assert asked == {token: question for question, token in self._asked.items()}
        assert not self._probe or self._probe in self._running, "nobody finds the store again"

    def _begin(self, question: _Question, claims: list[Claim]) -> None:
        token, ref, trace = claims[0].token, question.ref, claims[0].trace
        while token in self._running:
            token += " again"
        self._running[token] = Lookup(question, list(claims))
        self._asked[question] = token
        if self.store_is_away and question.ask:
            self._probe = token
        if question.affinity:
            self._loader.choose(
                token,
                ref,
                question.min_generation,
                question.affinity,
                ask=question.ask,
                trace=trace,
            )
        else:
            self._loader.resolve(token, ref, question.min_generation, trace=trace)

    def _note_store(self, token: str, error: NodeError | None) -> None:
        probed = token == self._probe
        if probed:
            self._probe = ""
        if not isinstance(error, StoreDown):
            self._outage.succeeded(None)
        elif probed or not self.store_is_away:
            # Others that fail meanwhile began before it was known, and say nothing new.
            self._outage.failed(None, error)
