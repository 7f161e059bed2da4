"""What a caller may do: in which roles, for which tenants and adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

MAX_NAMES = 64
"""Of each kind, in one scope."""
_PATTERN = re.compile(r"[a-z0-9._-]{1,64}\*?|\*")
_FIELDS = frozenset({"tenants", "adapters", "roles", "max_priority"})
HIGHEST = 10
"""Priority that there is."""


class Role(Enum):
    """What a caller comes for."""

    GENERATE = "generate"
    CATALOG = "catalog"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Scope:
    """Names are exact, or the beginning of a name and a `*`. Nothing is allowed but what is here.

    The base model needs no adapter, only a tenant.
    """

    tenants: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    roles: frozenset[Role] = frozenset()
    max_priority: int = HIGHEST
    """Requests that ask for a higher one are refused."""

    def covers(self, tenant: str, adapter: str = "") -> bool:
        """Whether `adapter` of `tenant` is in it; the empty adapter is the base model."""
        return _among(tenant, self.tenants) and (not adapter or _among(adapter, self.adapters))

    def covers_all(self, tenant: str) -> bool:
        """Whether every adapter of `tenant` is in it."""
        return _among(tenant, self.tenants) and "*" in self.adapters

    @property
    def home(self) -> str:
        """The first tenant that it names in full; empty when it names only patterns."""
        return next((name for name in self.tenants if not name.endswith("*")), "")


EVERYTHING = Scope(("*",), ("*",), frozenset(Role))


class NoScope(Exception):
    """It does not say what may be done; the text says why, and repeats nothing secret."""


def parse_scope(value: object) -> Scope:
    """`{"tenants": […], "adapters": […], "roles": […], "max_priority": 0}`. Raises NoScope."""
    if not isinstance(value, Mapping):
        raise NoScope("is no object of tenants, adapters and roles")
    unknown = sorted(str(name) for name in set(value) - _FIELDS)
    if unknown:
        raise NoScope(f"has the unknown field {unknown[0][:64]!r}")
    return Scope(
        tenants=_patterns(value, "tenants"),
        adapters=_patterns(value, "adapters"),
        roles=frozenset(_role(name) for name in _list(value, "roles")),
        max_priority=_priority(value.get("max_priority", HIGHEST)),
    )


def _among(name: str, patterns: tuple[str, ...]) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
    )


def _patterns(value: Mapping[str, object], field: str) -> tuple[str, ...]:
    names = _list(value, field)
    for name in names:
        if not _PATTERN.fullmatch(name):
            raise NoScope(f"{field}: {name[:64]!r} is no name, nor the beginning of one and a *")
    return names


def _priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -HIGHEST <= value <= HIGHEST:
        raise NoScope(f"max_priority is no whole number from {-HIGHEST} to {HIGHEST}")
    return value


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        known = ", ".join(role.value for role in Role)
        raise NoScope(f"roles: {name[:64]!r} is none of {known}") from None


def _list(value: Mapping[str, object], field: str) -> tuple[str, ...]:
    names = value.get(field, [])
    if not isinstance(names, list) or len(names) > MAX_NAMES:
        raise NoScope(f"{field} is no list of at most {MAX_NAMES}")
    if not all(isinstance(name, str) for name in names):
        raise NoScope(f"{field} has what is no text")
    return tuple(names)
