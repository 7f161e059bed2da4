"""The seam between the protocol and a store: five verbs, none with a default body.

A backend implements exactly these semantics and passes the contract suite in
`tests/adapter_store/object_store_contract.py`.
The atomic step is `put_new`: it either creates the key with these bytes or raises, and of any
number of racing callers exactly one creates it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What a store says about one object without sending its bytes."""

    key: str
    size: int
    sha256: str | None
    """Hex sha256 the store itself verified on receipt; None where it keeps none, and in a list."""
    modified: float
    """Seconds since the epoch on the store's own clock."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing, in ascending key order."""

    heads: tuple[ObjectHead, ...]
    folders: tuple[str, ...]
    """Common prefixes up to and including the delimiter, when one was given."""
    next_token: str | None
    """Pass as `token` for the next page; None when this is the last."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(head.key for head in self.heads)


class Damage(Enum):
    """Ways in which what arrives is not what was sent."""

    WRONG_SHA256 = "a body that does not match its sha256"
    WRONG_MD5 = "a body that does not match its Content-MD5"
    FLIPPED_BYTE = "a byte that changed on the way"
    TRUNCATED = "a body that ends before its Content-Length"


class ObjectStore(Protocol):
    """A strongly consistent, S3-shaped key-value store.

    Every method may raise StoreUnavailable (no answer, or 5xx after retries that are safe) and
    StoreRefused (credentials, bucket, permission).
    """

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises NotFound, and IntegrityError unread when it is too large.

        Nothing of ours is over layout.CHUNK_BYTES.
        """
        ...

    def put_new(self, key: str, body: bytes) -> None:
        """Create `key` with `body`, or raise; never overwrite.

        Sent once; again only after an answer that says nothing was stored (409). The sha256 of
        `body` travels with it and the store verifies it.
        Raises AlreadyExists when the key is taken (it may be taken by an earlier attempt of the
        caller's own), OutcomeUnknown when the request was sent and no usable answer came,
        StoreUnavailable only when it is certain that nothing was stored.
        """
        ...

    def head(self, key: str) -> ObjectHead:
        """Size, verified checksum and age. Raises NotFound."""
        ...

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        """Keys under `prefix` in ascending order, at most `limit` keys and folders together."""
        ...

    def delete(self, key: str) -> None:
        """Remove `key`; removing an absent key is not an error."""
        ...


def listed(store: ObjectStore, prefix: str) -> Iterator[ObjectHead]:
    """Every object under `prefix`, page after page."""
    token: str | None = None
    while True:
        page = store.list(prefix, token=token)
        yield from page.heads
        token = page.next_token
        if token is None:
            return
