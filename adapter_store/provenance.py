"""ed25519 keys at work: signing what is published, checking what is read.

The only room that imports `cryptography`. What is signed is said in signing.py, who is believed
in trust.py. A signature in a record is `{"key": <id>, "sig": <base64>}`, and of a version also
the `gen` and `time` it was first signed for.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from adapter_store.errors import InvalidSetting, Untrusted
from adapter_store.record import Record, RecordKind, SplitArm, VersionRef
from adapter_store.signing import record_message, version_message
from adapter_store.trust import TrustedKey, key_id, parse_trust

MAX_SIGNATURES = 8
"""Of one record or version; more are not looked at but refused."""


class KeySigner:
    """A Signer with one private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_id = key_id(self.public)

    def sign(self, record: Record, *, vouched: Collection[str]) -> Record:
        def seal(version: VersionRef | None) -> VersionRef | None:
            if version is None or version.vdig not in vouched:
                return version
            entry = {"key": self.key_id, "gen": record.gen, "time": record.time}
            message = version_message(
                record, version, gen=record.gen, time=record.time, key_id=self.key_id
            )
            return replace(version, signatures=({**entry, "sig": self._sign(message)},))

        sealed = replace(
            record,
            active=seal(record.active),
            staged=seal(record.staged),
            split=tuple(SplitArm(a.weight, seal(a.version) or a.version) for a in record.split),
            signatures=(),
        )
        signature = {"key": self.key_id, "sig": self._sign(record_message(sealed))}
        return replace(sealed, signatures=(signature,))

    def has_signed(self, record: Record) -> bool:
        alone = TrustedKey(
            id=self.key_id, public=self.public, name="", tenants=("*",), adapters=("*",)
        )
        try:
            check_record(record, {self.key_id: alone})
        except Untrusted:
            return False
        return True

    def _sign(self, message: bytes) -> str:
        return base64.b64encode(self._key.sign(message)).decode()


class TrustFile:
    """A Verifier by the keys of a file, which is read again whenever it has changed.

    A change that cannot be read is reported once and ignored: what was trusted stays trusted.
    """

    def __init__(self, path: Path, *, warn: Callable[[str], None]) -> None:
        """Raises InvalidSetting when the file cannot be read or understood."""
        self._path = path
        self._warn = warn
        self._lock = threading.Lock()
        self._seen = self._look()
        self._keys = self._read()
        self._epoch = 1

    @property
    def epoch(self) -> int:
        with self._lock:
            seen = self._look()
            if seen != self._seen:
                self._seen = seen
                self._reload()
            return self._epoch

    @property
    def keys(self) -> Mapping[str, TrustedKey]:
        return self._keys

    def check(self, record: Record) -> None:
        check_record(record, self._keys)

    def check_version(self, record: Record, version: VersionRef) -> None:
        check_version(record, version, self._keys)

    def _reload(self) -> None:
        try:
            self._keys = self._read()
        except InvalidSetting as error:
            self._warn(f"the changed trust file is ignored: {error}")
        else:
            self._epoch += 1

    def _read(self) -> Mapping[str, TrustedKey]:
        try:
            text = self._path.read_text()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InvalidSetting(f"trust file {self._path} cannot be read: {reason}") from None
        return parse_trust(text, origin=f"trust file {self._path}")

    def _look(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return 0, 0, 0
        return status.st_mtime_ns, status.st_size, status.st_ino


def check_record(record: Record, keys: Mapping[str, TrustedKey]) -> None:
    """Raises Untrusted unless a key in scope signed `record`, and each version in it."""
    what = f"generation {record.gen} of {record.adapter}"
    if record.kind is RecordKind.FENCE:
        raise Untrusted(f"{what} is a fence on nothing that is trusted")
    _check(
        record.signatures,
        keys,
        record,
        what=what,
        message=lambda entry: (record.gen, record.time, record_message(record)),
    )
    for version in record.contents():
        check_version(record, version, keys)


def check_version(record: Record, version: VersionRef, keys: Mapping[str, TrustedKey]) -> None:
    """Raises Untrusted unless a key in scope vouched for `version` under its label."""

    def message(entry: Mapping[str, Any]) -> tuple[int, str, bytes] | None:
        gen, time, key = entry.get("gen"), entry.get("time"), entry.get("key")
        if type(gen) is not int or not 1 <= gen <= record.gen or not isinstance(time, str):
            return None
        return gen, time, version_message(record, version, gen=gen, time=time, key_id=key)

    what = f"version {version.label!r} in generation {record.gen} of {record.adapter}"
    _check(version.signatures, keys, record, what=what, message=message)


def _check(
    signatures: tuple[Mapping[str, Any], ...],
    keys: Mapping[str, TrustedKey],
    record: Record,
    *,
    what: str,
    message: Callable[[Mapping[str, Any]], tuple[int, str, bytes] | None],
) -> None:
    """`message` says for which generation and time a signature speaks and what it signs."""
    if not signatures:
        raise Untrusted(f"{what} is not signed")
    if len(signatures) > MAX_SIGNATURES:
        raise Untrusted(f"{what} bears more than {MAX_SIGNATURES} signatures")
    reasons = []
    for entry in signatures:
        named = entry.get("key")
        key = keys.get(named) if isinstance(named, str) else None
        said = message(entry)
        if key is None:
            reasons.append("is signed by a key the trust file does not know")
            continue
        if said is None:
            reasons.append("bears a signature that is malformed")
            continue
        gen, time, signed = said
        objection = key.objection(record.tenant, record.adapter, gen=gen, time=time)
        if not _is_valid(key, entry.get("sig"), signed):
            reasons.append(f"bears a wrong signature of key {_name(key)}")
        elif objection:
            reasons.append(f"is signed by key {_name(key)}, which {objection}")
        else:
            return
    raise Untrusted(f"{what} {reasons[0]}")


def _is_valid(key: TrustedKey, signature: object, message: bytes) -> bool:
    try:
        raw = base64.b64decode(signature if isinstance(signature, str) else "", validate=True)
        Ed25519PublicKey.from_public_bytes(key.public).verify(raw, message)
    except (binascii.Error, ValueError, InvalidSignature):
        return False
    return True


def _name(key: TrustedKey) -> str:
    return f"{key.id} ({key.name})" if key.name else key.id


def generate_key(path: Path) -> KeySigner:
    """A new private key in a file of its own that only its owner may read.

    Raises InvalidSetting when the file exists already or cannot be made.
    """
    key = Ed25519PrivateKey.generate()
    body = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidSetting(
            f"{path} exists; a key is never overwritten", hint="choose another name with --out"
        ) from None
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be made: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    return KeySigner(key)


def load_signer(path: Path) -> KeySigner:
    """The key that `generate_key` wrote. Raises InvalidSetting; its text never quotes the file."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InvalidSetting(f"signing key {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidSetting(
            f"{path} is not an unencrypted ed25519 private key in PEM",
            hint="make one: adapter-store keygen --out FILE",
        )
    return KeySigner(key)


def trust_entry(signer: KeySigner, *, name: str, tenant: str) -> str:
    """The table to paste into a trust file; its scope is for people to narrow or widen."""
    return "\n".join(
        (
            "[[key]]",
            f'id = "{signer.key_id}"',
            f'public = "{base64.b64encode(signer.public).decode()}"',
            f"name = {json.dumps(name)}",
            f'tenants = ["{tenant}"]',
            'adapters = ["*"]',
        )
    )
