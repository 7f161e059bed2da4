"""What may be called what: ids, digests and transaction ids, checked before anything is built.

Some stores alias `a//b` to `a/b`, and a file system reads `..` its own way, so a name that ends up
in a key or a path holds nothing that either could interpret.
"""

from __future__ import annotations

import re

from adapter_store.errors import InvalidName

MAX_GENERATION = 2**63 - 1

_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_FILE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_TXID = re.compile(r"[0-9a-f]{32}")
_SHOWN = 80


def check_id(kind: str, value: str) -> str:
    """`value` itself when it obeys the id grammar; raises InvalidName naming `kind` otherwise."""
    if not _ID.fullmatch(value) or ".." in value:
        raise InvalidName(
            f"{kind} {shown(value)} is not a valid name",
            hint="1 to 64 of a-z 0-9 . _ -, no '..', first and last a letter or digit",
        )
    return value


def check_file_name(value: str) -> str:
    """`value` itself when it names a plain file in any folder; raises InvalidName."""
    if not _FILE.fullmatch(value) or ".." in value:
        raise InvalidName(f"{shown(value)} is not a plain file name")
    return value


def check_digest(value: str) -> str:
    """`value` itself when it is 64 lower-case hex digits; raises InvalidName."""
    if not _HEX64.fullmatch(value):
        raise InvalidName(f"{shown(value)} is not a sha256 digest", hint="64 lower-case hex digits")
    return value


def check_txid(value: str) -> str:
    """`value` itself when it is 32 lower-case hex digits; raises InvalidName."""
    if not _TXID.fullmatch(value):
        raise InvalidName(
            f"{shown(value)} is not a transaction id", hint="32 lower-case hex digits"
        )
    return value


def shown(value: str) -> str:
    """`value` as an error may quote it: ASCII, in quotes, and short whatever it is."""
    text = ascii(value[:_SHOWN])
    return text if len(value) <= _SHOWN else f"{text}..."
