"""A fleet seen at one moment: its nodes, what they have, and how far apart they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from adapter_store.fleet import Holding, Name, NodeCard


class Registry(Protocol):
    """Where nodes tell of themselves; `adapter_store.registry.FleetRegistry` is the real one."""

    def nodes(self) -> list[NodeCard]: ...

    def holdings(self, node: str, /) -> list[Holding]: ...


@dataclass(frozen=True, slots=True)
class Spread:
    """One adapter across the nodes that serve it."""

    name: Name
    generations: Mapping[str, int]
    """By node."""

    @property
    def newest(self) -> int:
        return max(self.generations.values())

    @property
    def skew(self) -> int:
        """Generations between the newest and the oldest that are served."""
        return self.newest - min(self.generations.values())


@dataclass(frozen=True, slots=True)
class Fleet:
    """Nodes by address, and by node what each has."""

    nodes: tuple[NodeCard, ...]
    holdings: Mapping[str, tuple[Holding, ...]]

    def spreads(self) -> list[Spread]:
        """Every adapter that any node serves, by name."""
        found: dict[Name, dict[str, int]] = {}
        for node, holdings in self.holdings.items():
            for holding in holdings:
                if holding.generation:
                    found.setdefault(holding.name, {})[node] = holding.generation
        return [Spread(name, found[name]) for name in sorted(found)]

    def skewed(self) -> list[Spread]:
        """Those of which nodes serve different generations, the farthest apart first."""
        apart = [spread for spread in self.spreads() if spread.skew]
        return sorted(apart, key=lambda spread: -spread.skew)


@dataclass(slots=True)
class FleetWatch:
    """Looks again and again, and reads only the holdings of nodes whose digest has changed."""

    registry: Registry
    _known: dict[str, tuple[str, tuple[Holding, ...]]] = field(default_factory=dict)

    def look(self) -> Fleet:
        """Raises FleetUnseen."""
        nodes = tuple(self.registry.nodes())
        known = self._known
        self._known = {}
        for card in nodes:
            digest, holdings = known.get(card.id, ("", ()))
            if digest != card.residency:
                holdings = tuple(self.registry.holdings(card.id))
            self._known[card.id] = (card.residency, holdings)
        return Fleet(nodes, {node: holdings for node, (_, holdings) in self._known.items()})
