"""A version on this node, by what it is and by the pages it holds. Pure Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from inference_node.request import Served


@dataclass(frozen=True, slots=True)
class VersionKey:
    """Identity of content on this node."""

    tenant: str
    vdig: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What a name resolved to: immutable, held by a request from admission to its last token."""

    tenant: str
    adapter: str
    label: str
    gen: int
    key: VersionKey

    @property
    def served(self) -> Served:
        """As an answer says it."""
        return Served(self.tenant, self.adapter, self.label, self.gen, self.key.vdig)


class Residency(Enum):
    """Where a version stands on the way to, or from, the device."""

    STAGING = "staging"
    """Pages are taken and being filled; nobody may read them."""
    RESIDENT = "resident"
    DRAINING = "draining"
    """No new lease; freed when the last one is dropped."""
    FREED = "freed"
    CONDEMNED = "condemned"
    """Its pages could not be wiped after a failed copy: nobody gets them again."""


@dataclass(slots=True, eq=False)
class Resident:
    """A version that holds pages."""

    key: VersionKey
    pages: tuple[tuple[int, ...], ...]  # [groups][pages]
    scale: float
    stamp: int
    """Distinct for every allocation; the pool's pages carry it while they are this version's."""
    state: Residency = Residency.STAGING
    leases: int = 0
    last_used: int = 0
    since: float = 0.0
    """When requests could first hold it, on the engine's clock."""
    used: bool = False
    """Whether any request ever held it."""
    superseded: bool = False
    """A newer version serves the name: first to go when pages are needed."""
    idle_since: float = 0.0
    """When the last lease was dropped, or the version came, on the engine's clock."""
    known_as: dict[tuple[str, str], Entry] = field(default_factory=dict)
    """By adapter and label: what it was asked for as, the last one last."""

    def know(self, entry: Entry) -> None:
        """Remember a reference that means this version."""
        self.known_as.pop((entry.adapter, entry.label), None)
        self.known_as[entry.adapter, entry.label] = entry

    def disown(self, adapter: str) -> None:
        """Forget what an adapter called it."""
        self.known_as = {name: entry for name, entry in self.known_as.items() if name[0] != adapter}
