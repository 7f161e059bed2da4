"""One table from what the store says to what a request is told."""

from __future__ import annotations

from adapter_store.errors import (
    Behind,
    Incompatible,
    IntegrityError,
    InvalidAdapter,
    InvalidName,
    NotFound,
    StoreError,
    Untrusted,
)
from inference_node.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterNotFound,
    AdapterUntrusted,
    InvalidRequest,
    NodeError,
    StaleNode,
    StoreDown,
)

STORE_RETRY_SECONDS = 1.0


def as_node_error(error: StoreError | NodeError, what: str) -> NodeError:
    """The node's error for `error`, with the store's as its cause. NodeErrors pass unchanged."""
    if isinstance(error, NodeError):
        return error
    translated = _translate(error, what)
    translated.__cause__ = error
    return translated


def no_such_adapter(what: str) -> AdapterNotFound:
    """The same words whether it does not exist, was absent a moment ago, or is not the caller's."""
    return AdapterNotFound(
        f"there is no adapter {what}",
        hint="adapter-store ls shows what is published",
        details={"adapter": what},
    )


def is_permanent(error: NodeError) -> bool:
    """Whether the same version would fail the same way again."""
    return isinstance(error, AdapterCorrupt | AdapterIncompatible)


def _translate(error: StoreError, what: str) -> NodeError:
    match error:
        case InvalidName():
            return InvalidRequest("adapter", str(error), hint=error.hint)
        case NotFound():
            return no_such_adapter(what)
        case Incompatible():
            return AdapterIncompatible(f"{what}: {error}", hint=error.hint)
        case Untrusted():
            return AdapterUntrusted(
                f"{what}: {error}",
                hint="publish it with a key that this node's trust file names",
            )
        case InvalidAdapter() | IntegrityError():
            return AdapterCorrupt(
                f"{what}: {error}",
                hint="publish it again; the last good version keeps serving",
            )
        case Behind():
            return StaleNode(str(error), hint=error.hint, retry_after=STORE_RETRY_SECONDS)
        case _:
            return StoreDown(
                f"{what} is not on this node and the store does not answer",
                retry_after=STORE_RETRY_SECONDS,
            )
