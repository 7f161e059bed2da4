"""How commands speak: results on stdout, everything else on stderr, errors as stable codes."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import typer

from adapter_store.cli.outcome import exit_code as store_exit_code
from adapter_store.errors import StoreError
from inference_node import errors as node

OK, OTHER, USAGE, NOT_FOUND, CONDITION, DAMAGED, UNREACHABLE, EXHAUSTED, DEADLINE, DENIED = range(
    10
)

_BY_REASON = {
    node.InvalidRequest.reason: USAGE,
    node.BadConfiguration.reason: USAGE,
    node.UnsupportedModel.reason: USAGE,
    node.Unauthenticated.reason: DENIED,
    node.CredentialsExpired.reason: DENIED,
    node.Forbidden.reason: DENIED,
    node.AdapterNotFound.reason: NOT_FOUND,
    node.AdapterNotLoaded.reason: NOT_FOUND,
    node.AdapterIncompatible.reason: CONDITION,
    node.AdapterUnloaded.reason: CONDITION,
    node.StaleNode.reason: CONDITION,
    node.RequestInFlight.reason: CONDITION,
    node.AdapterCorrupt.reason: DAMAGED,
    node.AdapterUntrusted.reason: DAMAGED,
    node.StoreDown.reason: UNREACHABLE,
    node.Draining.reason: UNREACHABLE,
    node.LoadFailed.reason: UNREACHABLE,
    node.BaseModelUnavailable.reason: UNREACHABLE,
    "NODE_UNREACHABLE": UNREACHABLE,
    node.PoolFull.reason: EXHAUSTED,
    node.PinRefused.reason: EXHAUSTED,
    node.QuotaExceeded.reason: EXHAUSTED,
    node.QueueFull.reason: EXHAUSTED,
    node.DeadlineExpired.reason: DEADLINE,
}


def exit_code(error: node.NodeError | StoreError) -> int:
    if isinstance(error, node.NodeError):
        return _BY_REASON.get(error.reason, OTHER)
    return store_exit_code(error)


def report(error: node.NodeError | StoreError) -> int:
    """Say what went wrong and what to do about it; the exit code."""
    typer.echo(f"error: {error}", err=True)
    if error.hint:
        say(f"hint: {error.hint}")
    return exit_code(error)


def error_document(error: node.NodeError) -> dict[str, Any]:
    return {
        "error": {
            "reason": error.reason,
            "message": str(error),
            "hint": error.hint,
            "retry_after": error.retry_after,
            "details": error.details,
        }
    }


def say(line: str) -> None:
    """A dim line on stderr."""
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    typer.echo(typer.style(line, dim=True) if coloured else line, err=True)


def out(value: object) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))
