"""The trust file: whose signatures count, for which adapters, and for how long.

It is TOML, lies outside the bucket, and has one table for each key:

    [[key]]
    id = "5f0c…"                          # what `adapter-store keygen` printed
    public = "base64 of the 32 bytes"
    name = "alice"                        # for people
    tenants = ["default"]                 # names, or patterns with * and ?
    adapters = ["pirate", "support-*"]
    valid_from = 2026-01-01T00:00:00Z     # optional, by the time the signature itself names
    valid_until = 2027-01-01T00:00:00Z    # optional
    from_generation = 1                   # optional, inclusive
    until_generation = 40                 # optional, inclusive
    revoked = true                        # optional: nothing it ever signed counts

Two keys with overlapping scopes make a rotation. A time can be written into a signature by
whoever holds the key, a generation cannot be used twice: close a key that may be in other hands
with `until_generation`, or revoke it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from adapter_store.errors import InvalidSetting

PUBLIC_KEY_BYTES = 32
_PATTERN = re.compile(r"[a-z0-9._*?-]{1,64}")
_FIELDS = frozenset(
    {
        *("id", "public", "name", "tenants", "adapters", "revoked"),
        *("valid_from", "valid_until", "from_generation", "until_generation"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """One key, and what it may speak for."""

    id: str
    public: bytes
    name: str
    tenants: tuple[str, ...]
    adapters: tuple[str, ...]
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    from_generation: int = 1
    until_generation: int | None = None
    revoked: bool = False

    def objection(self, tenant: str, adapter: str, *, gen: int, time: str) -> str:
        """Why its signature of that generation and time does not count; empty when it does."""
        if self.revoked:
            return "was revoked"
        if not _matches(tenant, self.tenants):
            return f"may not speak for tenant {tenant!r}"
        if not _matches(adapter, self.adapters):
            return f"may not speak for adapter {adapter!r}"
        if gen < self.from_generation:
            return f"counts from generation {self.from_generation} on, not for {gen}"
        if self.until_generation is not None and gen > self.until_generation:
            return f"counts up to generation {self.until_generation}, not for {gen}"
        return self._objection_to_time(time)

    def _objection_to_time(self, time: str) -> str:
        if self.valid_from is None and self.valid_until is None:
            return ""
        try:
            signed_at = datetime.fromisoformat(time)
        except ValueError:
            return "is valid for a while only, and the signature names no time"
        if signed_at.tzinfo is None:
            return "is valid for a while only, and the signature's time has no zone"
        if self.valid_from is not None and signed_at < self.valid_from:
            return f"is valid from {self.valid_from.isoformat()}, not at {time}"
        if self.valid_until is not None and signed_at >= self.valid_until:
            return f"expired at {self.valid_until.isoformat()}, before {time}"
        return ""


def key_id(public: bytes) -> str:
    """The name of a public key: the first half of its sha256, in hex."""
    return hashlib.sha256(public).hexdigest()[:32]


def parse_trust(text: str, *, origin: str) -> Mapping[str, TrustedKey]:
    """The keys of a trust file by id. Raises InvalidSetting naming `origin`, the key, the field."""
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSetting(f"{origin} is not TOML: {error}") from None
    tables = value.pop("key", [])
    if value:
        raise InvalidSetting(f"{origin}: {sorted(value)[0]!r} is not a field of a trust file")
    if not isinstance(tables, list) or not tables:
        raise InvalidSetting(
            f"{origin} names no key", hint="paste the [[key]] table that keygen printed"
        )
    keys: dict[str, TrustedKey] = {}
    for number, table in enumerate(tables, 1):
        key = _Table(f"{origin}: key {number}", table).key()
        if key.id in keys:
            raise InvalidSetting(f"{origin}: key {number}: id {key.id} is there twice")
        keys[key.id] = key
    return keys


class _Table:
    """One [[key]], read field by field."""

    def __init__(self, where: str, table: object) -> None:
        self._where = where
        if not isinstance(table, dict):
            raise InvalidSetting(f"{where} is not a table")
        self._table: dict[str, Any] = table

    def key(self) -> TrustedKey:
        unknown = sorted(set(self._table) - _FIELDS)
        if unknown:
            self._refuse(unknown[0], "is not a field")
        public = self._public()
        if self._table.get("id", key_id(public)) != key_id(public):
            self._refuse("id", f"is not that of `public`, which is {key_id(public)}")
        return TrustedKey(
            id=key_id(public),
            public=public,
            name=self._of("name", str, ""),
            tenants=self._patterns("tenants"),
            adapters=self._patterns("adapters"),
            valid_from=self._time("valid_from"),
            valid_until=self._time("valid_until"),
            from_generation=self._generation("from_generation") or 1,
            until_generation=self._generation("until_generation"),
            revoked=self._of("revoked", bool, False),
        )

    def _of(self, field: str, kind: type, default: Any) -> Any:
        value = self._table.get(field, default)
        if type(value) is not kind and value is not default:
            self._refuse(field, f"is not of type {kind.__name__}")
        return value

    def _public(self) -> bytes:
        text = self._of("public", str, None)
        try:
            public = base64.b64decode(text or "", validate=True)
        except (binascii.Error, ValueError):
            public = b""
        if len(public) != PUBLIC_KEY_BYTES:
            self._refuse("public", f"is not the base64 of {PUBLIC_KEY_BYTES} bytes")
        return public

    def _patterns(self, field: str) -> tuple[str, ...]:
        value = self._of(field, list, None)
        if not value:
            self._refuse(field, 'names nobody; say ["*"] for all')
        for pattern in value:
            if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
                self._refuse(field, f"has {pattern!r}, which is no name or pattern of * and ?")
        return tuple(value)

    def _time(self, field: str) -> datetime | None:
        value = self._of(field, datetime, None)
        if value is not None and value.tzinfo is None:
            self._refuse(field, "has no time zone, e.g. 2027-01-01T00:00:00Z")
        return None if value is None else datetime.fromisoformat(value.isoformat())

    def _generation(self, field: str) -> int | None:
        value = self._of(field, int, None)
        if value is not None and value < 1:
            self._refuse(field, "is not a generation from 1 on")
        return None if value is None else int(value)

    def _refuse(self, field: str, problem: str) -> NoReturn:
        raise InvalidSetting(f"{self._where}: {field} {problem}")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
