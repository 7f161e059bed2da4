"""What a node can answer instead of tokens, named by what is now true.

NodeError
├── InvalidRequest       a field breaks its bound; nothing was queued
│   └── RequestInFlight  another request of that id still runs; nothing was queued
├── Unauthenticated      the node does not know who calls; nothing was looked at
│   └── CredentialsExpired   it did until a moment ago: get a new token
├── Forbidden            the caller is known, and lacks the role that the RPC needs
├── AdapterNotFound      no such adapter or version for this tenant (forbidden answers the same)
├── AdapterIncompatible  it exists, but was published for another base, or cannot fit this node
├── AdapterCorrupt       its bytes are not what the log says; the last good version keeps serving
├── AdapterUntrusted     no key that this node trusts signed it, nor anything older of it
├── AdapterNotLoaded     the reference means nothing that is resident on this node
├── AdapterUnloaded      an operator took the version off the device under the request; ask again
├── PinRefused           pinning it too would leave too few pages for all that is not pinned
├── PoolFull             every page is leased; come back after `retry_after`
├── QuotaExceeded        the tenant has taken what it may for now; come back after `retry_after`
├── QueueFull            the waiting line is at its bound; come back after `retry_after`
├── StoreDown            the version is not here and the store did not answer
├── LoadFailed           its last load failed for a passing reason; tried again after `retry_after`
├── StaleNode            `min_generation` is above anything this node could learn of
├── Draining             the node is stopping and takes no new work
├── DeadlineExpired      the caller's deadline passed; decode stopped
├── Cancelled            the caller went away; decode stopped
├── ModelFailure         this request's logits were not finite; only it is failed
├── EngineFailure        the step failed for a reason of our own; every request in it is told so
├── UnsupportedModel     the base model cannot be served (refused at start)
├── BaseModelUnavailable the base checkpoint could not be made or found
└── BadConfiguration     a setting is malformed; its name is in the message
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import ClassVar, Self


class NodeError(Exception):
    """Base of every error this package raises on purpose."""

    reason: ClassVar[str] = "INTERNAL"
    """UPPER_SNAKE word for machines, stable across releases."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry_after: float | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.retry_after = retry_after
        """Seconds after which trying again makes sense; None when it never does by itself."""
        self.details = dict(details or {})

    def again(self, *, retry_after: float | None = None) -> Self:
        """The same answer for somebody else, without the frames that led to it."""
        other = copy(self).with_traceback(None)
        other.__cause__ = other.__context__ = None
        other.retry_after = self.retry_after if retry_after is None else retry_after
        return other


class InvalidRequest(NodeError):
    """A field breaks its bound; `field` is its path in the request."""

    reason = "INVALID_REQUEST"

    def __init__(self, field: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{field}: {message}", hint=hint, details={"field": field})
        self.field = field
        self.problem = message


class RequestInFlight(InvalidRequest):
    """The request's id names another one that still runs on this node."""

    reason = "REQUEST_IN_FLIGHT"


class Unauthenticated(NodeError):
    """No credentials, or none that this node accepts."""

    reason = "UNAUTHENTICATED"


class CredentialsExpired(Unauthenticated):
    """The token counted, and its time is over."""

    reason = "CREDENTIALS_EXPIRED"


class Forbidden(NodeError):
    """The caller lacks the role that the RPC needs; adapters out of scope are not found instead."""

    reason = "ROLE_REQUIRED"


class AdapterNotFound(NodeError):
    """No such adapter or version for this tenant."""

    reason = "ADAPTER_NOT_FOUND"


class AdapterIncompatible(NodeError):
    """The adapter was published for another base model, or can never fit this node's pool."""

    reason = "ADAPTER_INCOMPATIBLE"


class AdapterCorrupt(NodeError):
    """The stored bytes fail their digest or structure checks."""

    reason = "ADAPTER_CORRUPT"


class AdapterUntrusted(NodeError):
    """This node has a trust file, and no record of the adapter counts by it."""

    reason = "ADAPTER_UNTRUSTED"


class AdapterNotLoaded(NodeError):
    """Nothing that the reference means is resident on this node."""

    reason = "ADAPTER_NOT_LOADED"


class AdapterUnloaded(NodeError):
    """An operator unloaded the version by force while the request ran."""

    reason = "ADAPTER_UNLOADED"


class PinRefused(NodeError):
    """With one more pin the largest version and the headroom would not fit any more."""

    reason = "PIN_REFUSED"


class PoolFull(NodeError):
    """No pages can be freed before the request's deadline."""

    reason = "POOL_FULL"


class QuotaExceeded(NodeError):
    """The tenant has taken what it may for now; `details` names which quota."""

    reason = "QUOTA_EXCEEDED"


class QueueFull(NodeError):
    """The waiting line is at its bound."""

    reason = "QUEUE_FULL"


class StoreDown(NodeError):
    """The version is not on this node and the store did not answer."""

    reason = "STORE_UNAVAILABLE"


class LoadFailed(NodeError):
    """The version failed to load a moment ago, for a reason that may pass."""

    reason = "ADAPTER_LOAD_FAILED"


class StaleNode(NodeError):
    """The store's log does not reach the generation the caller asked for."""

    reason = "GENERATION_NOT_REACHED"


class Draining(NodeError):
    """The node is stopping."""

    reason = "DRAINING"


class DeadlineExpired(NodeError):
    """The caller's deadline passed."""

    reason = "DEADLINE_EXCEEDED"


class Cancelled(NodeError):
    """The caller cancelled."""

    reason = "CANCELLED"


class ModelFailure(NodeError):
    """The model produced logits that are not finite for this request."""

    reason = "MODEL_FAILURE"


class EngineFailure(NodeError):
    """A step of the engine failed."""

    reason = "INTERNAL"


class UnsupportedModel(NodeError):
    """The base model uses something this engine cannot serve exactly."""

    reason = "UNSUPPORTED_MODEL"


class BaseModelUnavailable(NodeError):
    """The base checkpoint could not be made or found."""

    reason = "BASE_MODEL_UNAVAILABLE"


class BadConfiguration(NodeError):
    """A setting is malformed or contradicts another."""

    reason = "BAD_CONFIGURATION"
