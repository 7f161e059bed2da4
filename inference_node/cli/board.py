"""What `top` shows: rates and swaps, worked out from what a node tells of itself. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference_node.client import Load, LoadedVersion, ModelInfo, PoolChange, PoolUse

WINDOW = 5.0
"""Seconds over which rates are taken."""
SWAPS = 8
"""Swaps that are remembered."""

Name = tuple[str, str]
"""Owner and adapter."""


@dataclass(frozen=True, slots=True)
class Swap:
    """A bare name came to mean another version."""

    tenant: str
    adapter: str
    before: str
    after: str
    generation: int
    at: float


@dataclass(slots=True)
class Rate:
    """Of a counter that only rises; of one that starts anew, from there."""

    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, at: float, count: int) -> None:
        if self.samples and count < self.samples[-1][1]:
            self.samples.clear()
        self.samples.append((at, count))
        # One sample from before the window stays: the window begins there.
        while len(self.samples) > 2 and self.samples[1][0] <= at - WINDOW:
            self.samples.popleft()

    def at(self, now: float) -> float:
        """A second, up to `now`: silence lowers it."""
        if len(self.samples) < 2:
            return 0.0
        (began, first), (_, last) = self.samples[0], self.samples[-1]
        return (last - first) / max(now - began, 1e-3)


class Board:
    """The node as it is known now. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.info: ModelInfo | None = None
        self.pool: PoolUse | None = None
        self.load: Load | None = None
        self.swaps: deque[Swap] = deque(maxlen=SWAPS)
        self._tokens = Rate()
        self._by_adapter: dict[Name, Rate] = {}
        self._versions: dict[tuple[str, str], LoadedVersion] = {}
        self._served: dict[Name, tuple[int, str]] = {}

    @property
    def running(self) -> int:
        return self.load.running if self.load else self.info.running if self.info else 0

    @property
    def waiting(self) -> int:
        return self.load.waiting if self.load else self.info.waiting if self.info else 0

    @property
    def versions(self) -> list[LoadedVersion]:
        """Those that requests hold first, then those used last."""
        return sorted(self._versions.values(), key=lambda v: (-v.leases, v.idle_seconds))

    def tokens_per_second(self, now: float) -> float:
        return self._tokens.at(now)

    def hottest(self, now: float) -> list[tuple[Name, float]]:
        """Adapters by their tokens a second, those with none left out."""
        rates = [(name, rate.at(now)) for name, rate in self._by_adapter.items()]
        return sorted((pair for pair in rates if pair[1] > 0), key=lambda pair: -pair[1])

    def take_info(self, info: ModelInfo, *, at: float) -> None:
        """What any caller may know."""
        self.info = info
        if self.load is None:
            self._tokens.note(at, info.generated_tokens)

    def take(self, change: PoolChange, *, at: float) -> None:
        """What an operator is told."""
        if self.load is None:
            self._tokens = Rate()
        self.pool, self.load = change.pool, change.load
        self._tokens.note(at, change.load.generated_tokens)
        hottest = {(each.tenant, each.adapter): each for each in change.load.hottest}
        self._by_adapter = {name: self._by_adapter.get(name, Rate()) for name in hottest}
        for name, each in hottest.items():
            self._by_adapter[name].note(at, each.generated_tokens)
        for gone in change.gone:
            self._versions.pop((gone.tenant, gone.digest), None)
        for version in change.changed:
            self._versions[version.served.tenant, version.served.digest] = version
            self._note_swaps(version, at)

    def document(self, now: float) -> dict[str, Any]:
        """Everything, for scripts."""
        return {
            "model": self.info.name if self.info else None,
            "device": self.info.device if self.info else None,
            "tokens_per_second": round(self.tokens_per_second(now), 2),
            "running": self.running,
            "waiting": self.waiting,
            "completed": self.load.completed if self.load else None,
            "failed": self.load.failed if self.load else None,
            "pool": asdict(self.pool) if self.pool else None,
            "hottest": [
                {"tenant": tenant, "adapter": adapter, "tokens_per_second": round(rate, 2)}
                for (tenant, adapter), rate in self.hottest(now)
            ],
            "versions": [_flat(version) for version in self.versions],
            "swaps": [_without(asdict(swap), "at") for swap in self.swaps],
        }

    def _note_swaps(self, version: LoadedVersion, at: float) -> None:
        for name in version.names:
            key = (name.tenant, name.adapter)
            generation, label = self._served.get(key, (0, ""))
            if name.generation > generation:
                self._served[key] = (name.generation, name.version)
                if label and label != name.version:
                    self.swaps.append(Swap(*key, label, name.version, name.generation, at))


def _flat(version: LoadedVersion) -> dict[str, Any]:
    standing = _without(asdict(version), "served", "names")
    standing |= {"tier": version.tier.value, "state": version.state.value}
    return asdict(version.served) | standing


def _without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}
