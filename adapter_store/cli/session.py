"""A publisher at work for one adapter: its store watched, its warnings said once, its end true."""

from __future__ import annotations

import getpass
import math
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adapter_store.cli.console import say
from adapter_store.cli.interrupt import WatchedStore, interruptible
from adapter_store.cli.outcome import Interrupted, next_steps
from adapter_store.errors import (
    Conflict,
    InvalidSetting,
    LockLost,
    NotFound,
    OutcomeUnknown,
    Untrusted,
)

if TYPE_CHECKING:
    from adapter_store.commit import Publisher
    from adapter_store.coordination import Announcer, Lease, PublishLock
    from adapter_store.notify import HintStream
    from adapter_store.objects import ObjectStore
    from adapter_store.settings import StoreSettings

SILENT_WAIT_S = 1.0


class TalkativeLock:
    """A PublishLock that says for whom it waits, and for how long at most."""

    def __init__(self, opened: Callable[[Callable[[str, float], None]], PublishLock]) -> None:
        """`opened` makes the lock, given what to call when another holds it."""
        self._lock = opened(self._heard)
        self._timer = threading.Timer(0, lambda: None)
        self._adapter = ""

    @property
    def reason(self) -> str:
        return self._lock.reason

    def acquire(self, tenant: str, adapter: str, *, floor: int) -> Lease | None:
        self._adapter = adapter
        self._timer = threading.Timer(SILENT_WAIT_S, say, ["waiting for Redis to answer ..."])
        self._timer.daemon = True
        self._timer.start()
        try:
            return self._lock.acquire(tenant, adapter, floor=floor)
        finally:
            self._timer.cancel()

    def _heard(self, holder: str, left_s: float) -> None:
        self._timer.cancel()
        who = holder or "another publisher"
        say(
            f"waiting for {who} to finish with {self._adapter}: "
            f"a publisher that has died gives way in {math.ceil(left_s)} s ..."
        )


@contextmanager
def publishing(
    settings: StoreSettings,
    store: ObjectStore,
    *,
    tenant: str,
    adapter: str,
) -> Iterator[Publisher]:
    """A publisher to `store`; every way out of the block says what is true and what to run next.

    Raises InvalidSetting, and Interrupted after Ctrl-C.
    """
    from adapter_store.commit import Publisher

    watched = WatchedStore(store, tenant=tenant, adapter=adapter)
    txids: list[str] = []

    def new_txid() -> str:
        txids.append(secrets.token_hex(16))
        return txids[-1]

    actor = f"{user()}@{socket.gethostname()}"
    lock, announcer = _coordination(settings, f"{actor} (process {os.getpid()})")
    warn = warn_once()
    publisher = Publisher(
        watched,
        lock=lock,
        announcer=announcer,
        signer=settings.open_signer(),
        verifier=settings.open_verifier(warn),
        actor=actor,
        warn=warn,
        new_txid=new_txid,
    )
    option = tenant_option(settings, tenant)
    history = f"adapter-store history {adapter}{option}"
    reclaim = f"adapter-store reclaim {adapter}{option}"
    try:
        with (
            next_steps(
                {Conflict: history, LockLost: history, NotFound: history, Untrusted: reclaim}
            ),
            interruptible(watched.stop),
        ):
            yield publisher
    except OutcomeUnknown as error:
        error.hint = f"when the store answers: {_settle(adapter, error.txid, option)}"
        raise
    except KeyboardInterrupt:
        if watched.committing:
            # The first id drawn is the transaction's; later ones are of fence records.
            raise Interrupted(
                "interrupted while the commit was on its way: it may have landed",
                hint=f"run the same command again, or ask: {_settle(adapter, txids[0], option)}",
            ) from None
        raise Interrupted(
            "interrupted: nothing was published",
            hint="run the same command again; what was sent already is not sent twice",
        ) from None


def _coordination(settings: StoreSettings, who: str) -> tuple[PublishLock, Announcer]:
    try:
        lock = TalkativeLock(lambda heard: settings.open_lock(who=who, on_wait=heard))
        return lock, settings.open_announcer()
    except ValueError:
        # Not from the cause: its text may hold the password.
        raise _no_redis_url() from None


def open_hints(settings: StoreSettings) -> HintStream | None:
    """The hints to listen to; None without Redis. Raises InvalidSetting."""
    try:
        return settings.open_hints()
    except ValueError:
        raise _no_redis_url() from None


def _no_redis_url() -> InvalidSetting:
    return InvalidSetting(
        "LORAPOOL_REDIS_URL is not a Redis URL", hint="e.g. redis://:password@host:6379/0"
    )


def warn_once() -> Callable[[str], None]:
    """Says each warning on stderr the first time it is given."""
    said: set[str] = set()

    def warn(message: str) -> None:
        if message not in said:
            said.add(message)
            say(f"warning: {message}")

    return warn


def tenant_option(settings: StoreSettings, tenant: str) -> str:
    """What to add to a suggested command so that it speaks of the same tenant."""
    return "" if tenant == settings.tenant else f" --tenant {tenant}"


def user() -> str:
    """Who publishes; in a container the user id may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid{os.getuid()}"


def _settle(adapter: str, txid: str, option: str) -> str:
    return f"adapter-store settle {adapter} {txid}{option}"
