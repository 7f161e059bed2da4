"""What the workers that look up and load adapters report to the engine thread."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapter_store.record import VersionRef
from inference_node.adapters.versions import Entry, Resident, VersionKey
from inference_node.adapters.weights import HostAdapter
from inference_node.errors import NodeError
from inference_node.tracing import Trace


@dataclass(frozen=True, slots=True)
class Target:
    """What a reference resolved to, with where its bytes are."""

    entry: Entry
    version: VersionRef
    trace: Trace | None = field(default=None, compare=False)
    """What loading it is told as a part of."""

    @property
    def size(self) -> int:
        """Bytes that are fetched for it."""
        return sum(file.size for file in self.version.files)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The reference of request `token` means `target`."""

    token: str
    target: Target
    arm: Target | None = None
    """What the request's affinity key gets of a split; None when no key was given."""
    asked: bool = True
    """Whether the store was asked for news."""
    seconds: float = field(default=0.0, compare=False)
    """That the look-up took."""
    ahead: tuple[Target, ...] = ()
    """What the record names beside the active version."""


@dataclass(frozen=True, slots=True)
class Unresolved:
    token: str
    error: NodeError
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What it took to bring a version to the host."""

    fetch: float
    """Seconds, as `verify`: of reading its files, and of checking and laying out what they hold."""
    verify: float
    bytes: int
    """Of the files."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version is verified and laid out on the host."""

    key: VersionKey
    host: HostAdapter
    fetched: Fetched | None = field(default=None, compare=False)
    """None when the host had it."""


@dataclass(frozen=True, slots=True)
class Unprepared:
    key: VersionKey
    error: NodeError


@dataclass(frozen=True, slots=True)
class Filled:
    """A staged version's pages hold its bytes."""

    staged: Resident


@dataclass(frozen=True, slots=True)
class Unfilled:
    """A version's pages could not be filled."""

    staged: Resident
    error: NodeError
    wiped: bool
    """Whether they are all zeros again; else nobody may be given them."""


@dataclass(frozen=True, slots=True)
class Learned:
    """The log of a served name has grown; `target` is None after a tombstone."""

    tenant: str
    adapter: str
    gen: int
    target: Target | None
    ahead: tuple[Target, ...] = ()
    """What the record names beside the active version: staged, or arms of a split."""


@dataclass(frozen=True, slots=True)
class AskedAhead:
    """Somebody wants this node to be ready for an adapter that it may not serve."""

    tenant: str
    adapter: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What the name served up to `gen` is no longer trusted."""

    tenant: str
    adapter: str
    gen: int


@dataclass(frozen=True, slots=True)
class Heard:
    """There may be news of these names, tenant and adapter; None: of any."""

    names: frozenset[tuple[str, str]] | None


LoaderEvent = (
    Resolved
    | Unresolved
    | Prepared
    | Unprepared
    | Filled
    | Unfilled
    | Learned
    | Withdrawn
    | Heard
    | AskedAhead
)
