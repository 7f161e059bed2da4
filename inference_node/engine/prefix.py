"""Names for what full KV blocks hold, so that equal prefixes are computed once.

A block's name is a sha256 chained over all its tokens and those before it, and the chain starts
from everything else that keys and values depend on, or that must keep them apart: tenant, digest of
the adapter version (empty for the base model), fingerprint of the base. Two requests reach the same
block only if all of it is equal. A name never comes to mean something else, so nothing is ever
invalidated: not by a publish, a rollback, or an adapter that leaves and comes back. Pure Python.
"""

from __future__ import annotations

from array import array
from hashlib import sha256

from inference_node.engine.sequence import Sequence


class PrefixNames:
    """Names of the blocks of requests to one base model."""

    def __init__(self, base_fingerprint: str, *, block_tokens: int) -> None:
        self._base = base_fingerprint
        self._block_tokens = block_tokens

    def of(self, sequence: Sequence, blocks: int) -> list[bytes]:
        """Names of the request's first `blocks` blocks, which its tokens fill."""
        names, size = sequence.block_names, self._block_tokens
        assert blocks * size <= len(sequence.tokens)
        while len(names) < blocks:
            before = names[-1] if names else self.root(sequence)
            tokens = sequence.tokens[len(names) * size : (len(names) + 1) * size]
            names.append(sha256(before + array("Q", tokens).tobytes()).digest())
        return names[:blocks]

    def reusable(self, sequence: Sequence) -> list[bytes]:
        """Names of the blocks it may take from others: the last token is always computed."""
        if sequence.scores_prompt:
            return []
        return self.of(sequence, (len(sequence.tokens) - 1) // self._block_tokens)

    def root(self, sequence: Sequence) -> bytes:
        """What the chain starts from. No field can hold the separator."""
        entry = sequence.entry
        tenant, vdig = (
            (sequence.request.tenant, "") if entry is None else (entry.key.tenant, entry.key.vdig)
        )
        return sha256("\0".join(("kv", tenant, vdig, self._base)).encode()).digest()
