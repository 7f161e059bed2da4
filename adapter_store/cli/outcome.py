"""How a command ends: an exit code, and for an error one line and the next thing to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from adapter_store.errors import (
    CanaryStopped,
    Conflict,
    FleetUnseen,
    IntegrityError,
    InvalidAdapter,
    InvalidName,
    InvalidSetting,
    InvalidSplit,
    LockLost,
    NotFound,
    NotReady,
    OutcomeUnknown,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUnfit,
    Untrusted,
)

OK, OTHER, USAGE, NOT_FOUND, CONFLICT, INVALID, UNAVAILABLE, UNKNOWN = range(8)
INTERRUPTED = 130

_CODES: Mapping[type[StoreError], int] = {
    InvalidName: USAGE,
    InvalidSetting: USAGE,
    InvalidSplit: USAGE,
    NotFound: NOT_FOUND,
    Conflict: CONFLICT,
    LockLost: CONFLICT,
    NotReady: CONFLICT,
    CanaryStopped: CONFLICT,
    InvalidAdapter: INVALID,
    IntegrityError: INVALID,
    StoreUnavailable: UNAVAILABLE,
    StoreRefused: UNAVAILABLE,
    StoreUnfit: UNAVAILABLE,
    FleetUnseen: UNAVAILABLE,
    OutcomeUnknown: UNKNOWN,
}

_NEXT: Mapping[type[StoreError], str] = {
    InvalidName: "adapter-store --help",
    InvalidSetting: "adapter-store doctor",
    NotFound: "adapter-store ls",
    IntegrityError: "adapter-store verify --all",
    Untrusted: "adapter-store verify --all",
    StoreUnavailable: "adapter-store check",
    StoreRefused: "adapter-store init",
    StoreUnfit: "adapter-store check",
    FleetUnseen: "adapter-store doctor",
    CanaryStopped: "adapter-store history",
    NotReady: "adapter-store nodes",
}

_FALLBACK_HINTS: Mapping[type[StoreError], str] = {
    InvalidSetting: "mend it where it is set",
    NotFound: "see what there is",
    IntegrityError: "see what else is damaged",
    Untrusted: "see who signed what",
    InvalidAdapter: "mend the folder, then check it again",
    StoreUnavailable: "wait until the store answers again",
    StoreRefused: "mend the settings",
    StoreUnfit: "use a store that honours If-None-Match and checksums, then check it",
}


class Interrupted(Exception):
    """Ctrl-C; the message says what is true now, the hint what to run."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class LocalFault(Exception):
    """This machine's disk or folders said no; the store has nothing to do with it."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def exit_code(error: StoreError) -> int:
    kind = _known(error, _CODES)
    return OTHER if kind is None else _CODES[kind]


@contextmanager
def next_steps(commands: Mapping[type[StoreError], str] | None = None) -> Iterator[None]:
    """Lets a StoreError through with a hint that ends in a command; `commands` know better."""
    steps = {**_NEXT, **(commands or {})}
    try:
        yield
    except StoreError as error:
        hint, kind = error.hint, _known(error, _FALLBACK_HINTS)
        if not hint and kind is not None:
            hint = _FALLBACK_HINTS[kind]
        step = _known(error, steps)
        if step is not None and not any(word in hint for word in ("adapter-store ", "`make ")):
            hint = f"{hint}; run: {steps[step]}" if hint else steps[step]
        error.hint = hint
        raise


def _known(error: StoreError, kinds: Mapping[type[StoreError], object]) -> type[StoreError] | None:
    return next((kind for kind in type(error).__mro__ if kind in kinds), None)
