"""What can go wrong in the store, named by what is now true.

StoreError
├── InvalidName          an id breaks the grammar; nothing was sent
├── InvalidSetting       an environment variable does not parse; nothing was started
├── InvalidSplit         weights that make no split; nothing was sent
├── NotFound             the store answered: there is no such thing
├── AlreadyExists        the key is taken; our bytes are not there (objects.put_new)
├── Conflict             another publisher's commit holds the slot; ours did not land
├── OutcomeUnknown       nobody knows yet whether the commit landed; settle it by its txid
├── IntegrityError       bytes differ from what their digest or the log says
│   └── Untrusted        no key that may speak for the adapter signed the record
├── InvalidAdapter       the content is not a servable LoRA adapter; nothing was sent
│   └── Incompatible     it is one, but not for this base model
├── LockLost             the lease on the publish lock ran out; stop writing
├── StoreUnavailable     the store did not answer in time; try again
│   └── Behind           it did, and its log does not reach the generation asked for
├── StoreRefused         the store answered no: credentials, bucket, or permissions
├── FleetUnseen          Redis does not say which nodes there are; the store may be fine
├── NotReady             too few nodes have the version ready; nothing was activated
├── CanaryStopped        a canary broke a bound and was taken back, or could not be judged
└── StoreUnfit           the store breaks a promise the protocol needs
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of every error this package raises on purpose."""

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class InvalidName(StoreError):
    """An id, version label or reference breaks the grammar; nothing was sent."""


class InvalidSetting(StoreError):
    """A configuration value is malformed; the message names its variable."""


class InvalidSplit(StoreError):
    """The weights asked for do not make a split; nothing was sent."""

    hint = "name 2 to 8 different versions, each with a whole number of parts, as v1=95 v2=5"


class NotFound(StoreError):
    """The store answered: there is no such object, adapter or version."""


class AlreadyExists(StoreError):
    """The key is taken, by other bytes or by an earlier try of ours."""


class Conflict(StoreError):
    """Another commit took the slot, or the log is not where the caller expected it."""


class OutcomeUnknown(StoreError):
    """The commit was sent and the store could not be asked whether it landed."""

    def __init__(self, message: str, *, txid: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.txid = txid


class IntegrityError(StoreError):
    """Bytes do not match their recorded size, sha256 or place in the hash chain."""


class Untrusted(IntegrityError):
    """The record bears no valid signature of a key that may speak for its tenant and adapter."""


class InvalidAdapter(StoreError):
    """The content is not a servable LoRA adapter."""

    hint = "save it again with peft's save_pretrained, and copy the folder whole"


class Incompatible(InvalidAdapter):
    """The adapter is well formed but does not fit the base model."""

    hint = "name the base it was trained for: adapter-store base ls, then push --base <fingerprint>"


class LockLost(StoreError):
    """The publish lock is no longer ours."""


class StoreUnavailable(StoreError):
    """The store did not answer, or answered that it cannot serve now."""


class Behind(StoreUnavailable):
    """The log in the store does not reach the generation asked for, which may come yet."""


class StoreRefused(StoreError):
    """The store refused the request: wrong credentials, missing bucket, no permission."""


class StoreUnfit(StoreError):
    """The store ignores a condition or a checksum; publishing to it would not be safe."""


class NotReady(StoreError):
    """Too few nodes have the version ready to serve; nothing was activated."""


class CanaryStopped(StoreError):
    """A canary did not end well: the message says whether its split stands or was taken back."""


class FleetUnseen(StoreError):
    """Redis, where nodes tell of themselves, is not configured or does not answer."""

    hint = "set LORAPOOL_REDIS_URL to the Redis of the nodes"
