"""Which arm of a split a caller gets: always the same one while the weights allow it.

Weighted rendezvous hashing. Each arm draws a number u in (0, 1) from a hash of the caller's
affinity key and the arm's content, and the arm with the largest ln(u) / weight wins. An arm's
score depends on its own weight alone, so raising one weight only ever moves callers to that arm,
lowering it only away from it, and an arm that joins or leaves moves nobody between the others.

Source: Thaler and Ravishankar 1998; the weights after Schindelhauer and Schomaker 2005.
"""

from __future__ import annotations

import hashlib
import math

from adapter_store.record import Record, SplitArm, VersionRef, canonical_json

_BITS = 53


def choose_arm(record: Record, affinity: str) -> VersionRef:
    """The version of `record`'s split that this affinity key gets; the split is not empty."""
    return max(record.split, key=lambda arm: _score(record, affinity, arm)).version


def _score(record: Record, affinity: str, arm: SplitArm) -> float:
    drawn = canonical_json([record.tenant, record.adapter, affinity, arm.version.vdig])
    digest = hashlib.sha256(drawn).digest()
    number = int.from_bytes(digest[:8], "big") >> (64 - _BITS)
    return math.log((number + 0.5) / 2**_BITS) / arm.weight
