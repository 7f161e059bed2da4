"""Every object key is built here, from checked ids and hex digests alone.

v1/format                                    store format
v1/base/<fingerprint>.json                   base card
v1/t/<tenant>/a/<adapter>/log/<inv>-<gen>    commit record; inv makes the newest list first
v1/t/<tenant>/blob/<sha256>.<txid>.<attempt> one chunk, at most 16 MiB
v1/t/<tenant>/txn/<txid>.<attempt>           publish intent
v1/t/<tenant>/gc/<planid>                    garbage collection plan
v1/t/<tenant>/pin/<adapter>/<vdig>           pin: this version's chunks are kept
v1/check/<random>                            probe of the conformance check, deleted after it

Some stores alias `a//b` to `a/b`, so an id never contains a slash and is never empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapter_store.errors import InvalidName
from adapter_store.names import MAX_GENERATION as MAX_GENERATION
from adapter_store.names import check_digest as check_digest
from adapter_store.names import check_id as check_id
from adapter_store.names import check_txid as check_txid
from adapter_store.names import shown

ROOT = "v1"
FORMAT_KEY = f"{ROOT}/format"
DEFAULT_TENANT = "default"
CHUNK_BYTES = 16 * 1024 * 1024

_LOG_NAME = re.compile(r"[0-9a-f]{16}-([0-9]{1,19})")
_BLOB_NAME = re.compile(r"([0-9a-f]{64})\.[0-9a-f]{32}\.[0-9]{1,9}")


def base_card_key(fingerprint: str) -> str:
    return f"{ROOT}/base/{check_digest(fingerprint)}.json"


def base_cards_prefix() -> str:
    return f"{ROOT}/base/"


def tenants_prefix() -> str:
    return f"{ROOT}/t/"


def tenant_prefix(tenant: str) -> str:
    return f"{ROOT}/t/{check_id('tenant', tenant)}/"


def adapters_prefix(tenant: str) -> str:
    return f"{tenant_prefix(tenant)}a/"


def log_prefix(tenant: str, adapter: str) -> str:
    return f"{adapters_prefix(tenant)}{check_id('adapter', adapter)}/log/"


def log_key(tenant: str, adapter: str, gen: int) -> str:
    if not 1 <= gen <= MAX_GENERATION:
        raise InvalidName(f"generation {gen} is out of range")
    return f"{log_prefix(tenant, adapter)}{_log_name(gen)}"


def parse_log_key(key: str) -> int:
    """The generation in a log key; raises InvalidName unless `log_key` would end the same way."""
    name = key.rsplit("/", 1)[-1]
    match = _LOG_NAME.fullmatch(name)
    gen = int(match[1]) if match else 0
    if not 1 <= gen <= MAX_GENERATION or name != _log_name(gen):
        raise InvalidName(f"{shown(key)} is not a log key")
    return gen


def _log_name(gen: int) -> str:
    return f"{MAX_GENERATION - gen:016x}-{gen}"


def blobs_prefix(tenant: str) -> str:
    return f"{tenant_prefix(tenant)}blob/"


def blob_prefix(tenant: str, sha256: str) -> str:
    return f"{blobs_prefix(tenant)}{check_digest(sha256)}."


def blob_key(tenant: str, sha256: str, txid: str, attempt: int) -> str:
    return f"{blob_prefix(tenant, sha256)}{check_txid(txid)}.{attempt}"


def names_content(key: str) -> bool:
    """Whether a key is a chunk's: it carries the sha256 of what lies there."""
    return key.rsplit("/", 2)[-2:-1] == ["blob"]


def parse_blob_key(key: str) -> str:
    """The sha256 in a chunk's key; raises InvalidName."""
    match = _BLOB_NAME.fullmatch(key.rsplit("/", 1)[-1])
    if match is None:
        raise InvalidName(f"{shown(key)} is not a chunk key")
    return match[1]


def intents_prefix(tenant: str) -> str:
    return f"{tenant_prefix(tenant)}txn/"


def intent_key(tenant: str, txid: str, attempt: int) -> str:
    return f"{intents_prefix(tenant)}{check_txid(txid)}.{attempt}"


def plans_prefix(tenant: str) -> str:
    return f"{tenant_prefix(tenant)}gc/"


def plan_key(tenant: str, plan_id: str) -> str:
    return f"{plans_prefix(tenant)}{check_txid(plan_id)}"


def pins_prefix(tenant: str) -> str:
    return f"{tenant_prefix(tenant)}pin/"


def version_pins_prefix(tenant: str, adapter: str, vdig: str) -> str:
    """Where the pins of one version lie: one for each time that it was pinned."""
    return f"{pins_prefix(tenant)}{check_id('adapter', adapter)}/{check_digest(vdig)}."


def pin_key(tenant: str, adapter: str, vdig: str, pin_id: str) -> str:
    return f"{version_pins_prefix(tenant, adapter, vdig)}{check_txid(pin_id)}"


def checks_prefix() -> str:
    return f"{ROOT}/check/"


def check_key(nonce: str) -> str:
    return f"{checks_prefix()}{check_txid(nonce)}"


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """What a caller asks for: an adapter and, optionally, which version of it."""

    tenant: str
    adapter: str
    label: str = ""
    """A version label; empty for whatever is current."""
    vdig: str = ""
    """A content digest; empty unless the caller pinned one."""

    def __str__(self) -> str:
        suffix = f"@{self.label}" if self.label else f"@sha256:{self.vdig}" if self.vdig else ""
        return f"{self.adapter}{suffix}"

    @property
    def pinned(self) -> bool:
        return bool(self.label or self.vdig)


def parse_ref(text: str, *, tenant: str = DEFAULT_TENANT) -> AdapterRef:
    """`name`, `name@label` or `name@sha256:<64 hex>`; raises InvalidName."""
    name, at, selector = text.partition("@")
    check_id("tenant", tenant)
    check_id("adapter", name)
    if not at:
        return AdapterRef(tenant, name)
    if selector.startswith("sha256:"):
        return AdapterRef(tenant, name, vdig=check_digest(selector.removeprefix("sha256:")))
    return AdapterRef(tenant, name, label=check_id("version", selector))
