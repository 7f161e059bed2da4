"""What every answer is held against: whom it says it is by, what its tokens say, and the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapter_store.layout import DEFAULT_TENANT
from adapter_store.reader import Reader
from inference_node.errors import DeadlineExpired, NodeError, PoolFull, StaleNode, StoreDown
from inference_node.request import Served
from tests.chaos.stateful.history import History
from tests.inference_node.tattoo import BASE, Mark, Verdict, verdict

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and what may be answered."""

    name: str
    """Of the adapter; empty for the base model."""
    ref: str
    prompt: tuple[int, ...]
    tokens: int
    at: float
    """When, by the monotonic clock."""
    floor: int = 0
    """The generation its bare name had been answered by before it was asked."""
    min_generation: int = 0
    vdig: str = ""
    """What `ref` pins."""
    leave_after: int | None = None
    """Tokens after which the caller leaves."""
    timeout: float | None = None

    def __str__(self) -> str:
        return f"a request for {self.ref or 'the base'}"


class Judge:
    """Counts answers by verdict and keeps the first broken promises."""

    def __init__(self, marks: Mapping[str, Mark]) -> None:
        self._marks = marks
        self.verdicts: Counter[Verdict] = Counter()
        """Of whole answers by adapters."""
        self.tally: Counter[str] = Counter()
        self.violations: list[str] = []
        self.broken = 0
        """How many there are, shown or not."""
        self.floors: Counter[str] = Counter()
        """The highest generation by which each bare name was answered."""
        self.served: set[tuple[str, int, str, str]] = set()
        """Adapter, generation, label and digest of every answer to a bare name."""

    @property
    def answers(self) -> int:
        return self.verdicts.total()

    @property
    def wrong(self) -> int:
        return self.answers - self.verdicts[Verdict.RIGHT]

    def started(self, asked: Asked, served: Served) -> None:
        """It is settled which version answers."""
        if not asked.name:
            self.hold(served.digest == "", f"{asked} is served {served}")
            return
        named = (served.tenant, served.adapter) == (DEFAULT_TENANT, asked.name)
        self.hold(named, f"{asked} is served {served}")
        self.hold(served.digest in self._marks, f"{asked} is served {served}, which never was")
        if asked.vdig:
            self.hold(served.digest == asked.vdig, f"{asked} is served {served.version}")
            return
        least = max(asked.floor, asked.min_generation)
        gen = served.generation
        self.hold(gen >= least, f"{asked} is served generation {gen}, {least} is due")
        self.served.add((asked.name, gen, served.version, served.digest))
        before = self.floors[asked.name]
        if gen > before:
            self.floors[asked.name] = gen
            self.tally["swaps seen"] += before > 0

    def left(self, asked: Asked, served: Served | None, tokens: Sequence[int]) -> None:
        """The caller went away after these tokens."""
        self.tally["cancelled"] += 1
        if served is not None and tokens:
            self._judge(asked, served, tokens)

    def answered(self, asked: Asked, served: Served, tokens: Sequence[int]) -> None:
        """It came to its end."""
        found = self._judge(asked, served, tokens)
        self.hold(len(tokens) == asked.tokens, f"{asked} ends after {len(tokens)} tokens")
        if asked.name:
            self.verdicts[found] += 1
        else:
            self.tally["base answers"] += 1

    def failed(self, asked: Asked, error: NodeError, *, store_troubled: bool) -> None:
        """`store_troubled`: whether the store was away a moment ago, or is."""
        self.tally[type(error).__name__] += 1
        due = {
            DeadlineExpired: asked.timeout is not None,
            PoolFull: asked.timeout is not None,
            StoreDown: store_troubled,
            StaleNode: store_troubled and asked.min_generation > 0,
        }
        self.hold(
            due.get(type(error), False), f"{asked} fails with {type(error).__name__}: {error}"
        )

    def check_log(self, reader: Reader, names: Sequence[str]) -> None:
        """Every generation that answered is in the log, with this label and digest."""
        history = History()
        for name in names:
            for record in reversed(list(reader.history(DEFAULT_TENANT, name))):
                history.learn(record, now=0.0)
        for name, gen, label, digest in sorted(self.served):
            log = history.log(DEFAULT_TENANT, name)
            due = log.labels.get(label) == digest and digest in log.serves(gen, "")
            self.hold(due, f"{name} was served generation {gen} as {label} with {digest[:12]}")

    def hold(self, promise: bool, otherwise: str) -> None:
        if not promise:
            self.broken += 1
            if len(self.violations) < _SHOWN:
                self.violations.append(otherwise)

    def _judge(self, asked: Asked, served: Served, tokens: Sequence[int]) -> Verdict:
        if not asked.name:
            self.hold(set(tokens) <= {BASE}, f"{asked} is answered {sorted(set(tokens))}")
            return Verdict.BASE
        mark = self._marks.get(served.digest)
        if mark is None:
            return Verdict.WRONG_ADAPTER
        found = verdict(tokens, mark)
        self.hold(found is Verdict.RIGHT, f"{asked}, served {served.version}: {found.value}")
        return found
