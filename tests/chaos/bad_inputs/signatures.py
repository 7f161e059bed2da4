"""Records that nobody who may speak for the adapter has signed: forged after a signed good one.

The reader trusts one key. Each second record is refused by the check of signatures, and whoever
asks is served the first one still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from adapter_store import layout
from adapter_store.errors import Untrusted
from adapter_store.provenance import KeySigner, check_record, check_version, generate_key
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind, VersionRef, decode_record
from adapter_store.trust import TrustedKey
from tests.adapter_store.publishing import publisher
from tests.chaos.bad_inputs.case import TENANT, BadInput, Scene
from tests.chaos.bad_inputs.forgery import LABEL, dumped, next_value
from tests.chaos.bad_inputs.records import good_local

LONG_AGO, FAR_OFF = datetime(2001, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Trusting:
    """A Verifier by keys given once."""

    keys: Mapping[str, TrustedKey]
    epoch: int = 1

    def check(self, record: Record) -> None:
        check_record(record, self.keys)

    def check_version(self, record: Record, version: VersionRef) -> None:
        check_version(record, version, self.keys)


@dataclass(frozen=True, slots=True)
class Keys:
    """Whom the forger may have sign: the trusted key's holder, and a stranger."""

    ours: KeySigner
    stranger: KeySigner


Forged = Callable[[Record, Record, Keys], Record]
"""From the good record and the unsigned second one."""


def signed(record: Record, signer: KeySigner) -> Record:
    return signer.sign(record, vouched=[version.vdig for version in record.contents()])


def with_entry(change: Callable[[dict[str, Any]], object]) -> Forged:
    """Well signed, then its signature changed."""

    def forge(good: Record, second: Record, keys: Keys) -> Record:
        record = signed(second, keys.ours)
        entry = dict(record.signatures[0])
        change(entry)
        return replace(record, signatures=(entry,))

    return forge


def unsigned_version(good: Record, second: Record, keys: Keys) -> Record:
    return keys.ours.sign(second, vouched=[])


def version_of_another_label(good: Record, second: Record, keys: Keys) -> Record:
    assert good.active is not None
    assert second.active is not None
    taken = replace(second.active, signatures=good.active.signatures)
    return keys.ours.sign(replace(second, active=taken), vouched=[])


def version_of_the_future(good: Record, second: Record, keys: Keys) -> Record:
    later = signed(replace(second, gen=9), keys.ours)
    return keys.ours.sign(replace(second, active=later.active), vouched=[])


def posing(good: Record, second: Record, keys: Keys) -> Record:
    record = signed(second, keys.stranger)
    entry = {**record.signatures[0], "key": keys.ours.key_id}
    return replace(record, signatures=(entry,))


def changed_after(good: Record, second: Record, keys: Keys) -> Record:
    return replace(signed(second, keys.ours), actor="somebody else")


def too_many(good: Record, second: Record, keys: Keys) -> Record:
    record = signed(second, keys.ours)
    return replace(record, signatures=record.signatures * 100)


def fence_with_news(good: Record, second: Record, keys: Keys) -> Record:
    return replace(second, kind=RecordKind.FENCE)


def ours(good: Record, second: Record, keys: Keys) -> Record:
    return signed(second, keys.ours)


SIGNATURES: tuple[tuple[str, Forged, Mapping[str, Any]], ...] = (
    ("not signed", lambda good, second, keys: second, {}),
    ("a version not signed", unsigned_version, {}),
    ("a version signed under another label", version_of_another_label, {}),
    ("a version signed for a later generation", version_of_the_future, {}),
    ("signed by a stranger", lambda good, second, keys: signed(second, keys.stranger), {}),
    ("signed by a stranger in our name", posing, {}),
    ("changed after it was signed", changed_after, {}),
    ("the signature of the record before", lambda good, second, keys: replace(
        signed(second, keys.ours), signatures=good.signatures), {}),
    ("a signature cut", with_entry(lambda entry: entry.update(sig=entry["sig"][:-8])), {}),
    ("a signature not in base64", with_entry(lambda entry: entry.update(sig="*" * 88)), {}),
    ("a signature that is a number", with_entry(lambda entry: entry.update(sig=1)), {}),
    ("a signature of no key", with_entry(lambda entry: entry.pop("key")), {}),
    ("no signature in it", with_entry(lambda entry: entry.pop("sig")), {}),
    ("a key that is a list", with_entry(lambda entry: entry.update(key=["x"])), {}),
    ("100 signatures", too_many, {}),
    ("a fence that brings news", fence_with_news, {}),
    ("a key for another tenant", ours, {"tenants": ("other",)}),
    ("a key for another adapter", ours, {"adapters": ("other-*",)}),
    ("a revoked key", ours, {"revoked": True}),
    ("a key that has expired", ours, {"valid_until": LONG_AGO}),
    ("a key that is not valid yet", ours, {"valid_from": FAR_OFF}),
    ("a key closed a generation ago", ours, {"until_generation": 1}),
    ("a key that opens a generation later", ours, {"from_generation": 3}),
)  # fmt: skip


def _prepare(forge: Forged, limits: Mapping[str, Any], scene: Scene) -> Scene:
    scene.folder.mkdir(parents=True)
    keys = Keys(generate_key(scene.folder / "ours"), generate_key(scene.folder / "stranger"))
    publisher(scene.store, signer=keys.ours).publish(
        TENANT, scene.adapter, good_local(scene), label="good"
    )
    good = Reader(scene.store).head(TENANT, scene.adapter)
    value = next_value(good)
    value["active"].pop("signatures")
    value["signatures"] = []
    second = forge(good, decode_record(dumped(value)), keys)
    key = TrustedKey(
        id=keys.ours.key_id, public=keys.ours.public, name="", tenants=("*",), adapters=("*",)
    )
    # What limits a key must not take the good record with it, where that can be.
    warm = Reader(scene.store, verifier=Trusting({key.id: key}))
    warm.head(TENANT, scene.adapter)
    scene.store.put_new(layout.log_key(TENANT, scene.adapter, 2), second.encode())
    limited = Trusting({key.id: replace(key, **limits)})
    cold = Reader(scene.store, verifier=limited)
    return replace(scene, readers={"warm": cold if limits else warm, "cold": cold})


def _check(scene: Scene) -> object:
    verifier = scene.readers["cold"]._verifier
    assert verifier is not None
    verifier.check(decode_record(scene.store.get(layout.log_key(TENANT, scene.adapter, 2))))
    return "trusted"


def _ask(who: str, scene: Scene) -> object:
    found = scene.readers[who].resolve(layout.AdapterRef(TENANT, scene.adapter))
    if found.version.label == LABEL or found.gen != 1:
        return found
    raise Untrusted("the record before is served instead")


SIGNED: tuple[BadInput, ...] = tuple(
    BadInput(
        group="signatures",
        what=what,
        error=Untrusted,
        says="",
        offers=(_check, partial(_ask, "warm"), partial(_ask, "cold")),
        prepare=partial(_prepare, forge, limits),
    )
    for what, forge, limits in SIGNATURES
)
