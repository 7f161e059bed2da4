"""A publisher at work for one adapter: its store watched, its warnings said once, its end true."""

from __future__ import annotations

import getpass
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
from adapter_store.errors import Conflict, InvalidSetting, LockLost, NotFound, OutcomeUnknown

if TYPE_CHECKING:
    from adapter_store.commit import Publisher
    from adapter_store.coordination import Announcer, Lease, PublishLock
    from adapter_store.objects import ObjectStore
    from adapter_store.settings import StoreSettings

SILENT_WAIT_S = 1.0


class TalkativeLock:
    """A PublishLock that says so when another publisher keeps it waiting."""

    def __init__(self, lock: PublishLock) -> None:
        self._lock = lock

    @property
    def reason(self) -> str:
        return self._lock.reason

    def acquire(self, tenant: str, adapter: str, *, floor: int) -> Lease | None:
        message = f"waiting for Redis, or for another publisher of {adapter} to finish ..."
        timer = threading.Timer(SILENT_WAIT_S, say, [message])
        timer.daemon = True
        timer.start()
        try:
            return self._lock.acquire(tenant, adapter, floor=floor)
        finally:
            timer.cancel()


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

    lock, announcer = _coordination(settings)
    publisher = Publisher(
        watched,
        lock=TalkativeLock(lock),
        announcer=announcer,
        actor=f"{user()}@{socket.gethostname()}",
        warn=warn_once(),
        new_txid=new_txid,
    )
    option = tenant_option(settings, tenant)
    history = f"adapter-store history {adapter}{option}"
    try:
        with (
            next_steps({Conflict: history, LockLost: history, NotFound: history}),
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


def _coordination(settings: StoreSettings) -> tuple[PublishLock, Announcer]:
    try:
        return settings.open_lock(), settings.open_announcer()
    except ValueError:
        # Not from the cause: its text may hold the password.
        raise InvalidSetting(
            "LORAPOOL_REDIS_URL is not a Redis URL", hint="e.g. redis://:password@host:6379/0"
        ) from None


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
