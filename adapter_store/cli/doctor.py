"""`doctor`: is everything here that publishing needs, and if not, what to do about it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import typer

from adapter_store.cli.bases import MAKE_A_CARD
from adapter_store.cli.console import Json, out, size, tell
from adapter_store.cli.outcome import UNAVAILABLE, exit_code, next_steps
from adapter_store.errors import InvalidSetting, StoreError, StoreRefused

if TYPE_CHECKING:
    from adapter_store.objects import ObjectStore
    from adapter_store.settings import StoreSettings

SKEW_WARN_S = 5.0
"""Beyond what a second's resolution and a slow request explain."""
SKEW_FAIL_S = 300.0
"""Signatures of requests are refused from 15 minutes on; there is little room left."""
FREE_WARN_BYTES = 1024**3


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    status: Status
    message: str
    hint: str = ""
    code: int = 0
    """The exit code of its class; 0 unless it failed."""
    on_node: str = ""
    """The hint on a node, which serves all the same; empty where it needs this too."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable as it is in force."""

    variable: str
    value: str
    source: str


def doctor(json: Json = False) -> None:
    """Check settings, store, clock, Redis and cache folder, and say what to do next.

    A line that says `warn` leaves publishing safe. The exit code is that of the first failure.

    \b
    Examples:
      adapter-store doctor
      adapter-store doctor --json
    """
    settings: list[Setting] = []
    findings: list[Finding] = []
    for found in examine():
        if isinstance(found, Setting):
            settings.append(found)
        else:
            findings.append(found)
        if not json:
            _tell(found)
    code = next((found.code for found in findings if found.status is Status.FAIL), 0)
    if json:
        checks = [
            {"check": f.check, "status": f.status.value, "message": f.message, "hint": f.hint}
            for f in findings
        ]
        known = [asdict(setting) for setting in settings]
        out({"healthy": not code, "exit_code": code, "settings": known, "checks": checks})
    raise typer.Exit(code)


def _tell(found: Setting | Finding) -> None:
    if isinstance(found, Setting):
        tell(f"{'':4}  {found.variable} = {found.value}  ({found.source})")
        return
    tell(f"{found.status.value:4}  {found.check}: {found.message}")
    if found.hint and found.status is not Status.OK:
        tell(f"{'':4}  -> {found.hint}")


def examine(given: Mapping[str, object] | None = None) -> Iterator[Setting | Finding]:
    """Every setting and every finding, in the order in which one needs the other.

    `given` are settings that go before the environment.
    """
    from adapter_store.settings import load_settings

    try:
        with next_steps():
            settings = load_settings(given=given or {})
            store = settings.open_store()
    except StoreError as error:
        yield _failure("settings", error)
        return
    yield Finding("settings", Status.OK, f"they name bucket {settings.s3_bucket}")
    yield from shown(settings)
    reached = _store(settings, store)
    yield reached
    if reached.status is Status.OK:
        writes = _writes(store)
        yield writes
        if writes.status is Status.OK:
            yield _clock(store, time.time)
        yield _bases(store)
    yield _redis(settings)
    yield _cache(settings)


def shown(settings: StoreSettings) -> Iterator[Setting]:
    """Each variable, its value unless it is a secret, and where it came from."""
    from pydantic import SecretStr

    from adapter_store.settings import STACK_FILE, STATE_DIR

    from_env = {name for name in type(settings).model_fields if os.environ.get(_variable(name))}
    on_stack = not any(name.startswith("s3_") for name in from_env)
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        secret = isinstance(value, SecretStr)
        source = "default"
        if name in from_env:
            source = "environment"
        elif on_stack and name in settings.model_fields_set:
            source = str(STATE_DIR / STACK_FILE)
        told = "not set" if value is None else "set, not shown" if secret else str(value)
        yield Setting(_variable(name), told, source)


def _variable(name: str) -> str:
    from adapter_store.settings import PREFIX

    return f"{PREFIX}{name.upper()}"


def _store(settings: StoreSettings, store: ObjectStore) -> Finding:
    started = time.monotonic()
    try:
        with next_steps():
            store.list("v1/", limit=1)
    except StoreError as error:
        return _failure("store", error)
    milliseconds = 1000 * (time.monotonic() - started)
    where = settings.s3_endpoint or "AWS"
    return Finding(
        "store", Status.OK, f"bucket {settings.s3_bucket} at {where} in {milliseconds:.0f} ms"
    )


def _writes(store: ObjectStore) -> Finding:
    from adapter_store.check import check_store

    try:
        with next_steps():
            check_store(store)
    except StoreRefused as error:
        return Finding(
            "writes",
            Status.FAIL,
            f"this identity may read and not write: {error}",
            "enough for a node; a publisher needs PutObject and DeleteObject on v1/*",
            UNAVAILABLE,
            on_node="a node may; register its base with `adapter-store base add`",
        )
    except StoreError as error:
        return _failure("writes", error)
    return Finding("writes", Status.OK, "allowed; conditions, listings and checksums hold")


def _clock(store: ObjectStore, now: Callable[[], float]) -> Finding:
    """The store's clock by the time it gives a fresh object, which it cuts to whole seconds."""
    from adapter_store.layout import check_key

    key = check_key(secrets.token_hex(16))
    try:
        with next_steps():
            before = now()
            store.put_new(key, b"clock")
            after = now()
            stored_at = store.head(key).modified
            store.delete(key)
            left_behind = key in store.list(key).keys
    except StoreError as error:
        return _failure("clock", error)
    if left_behind:
        hint = "allow DeleteObject on v1/*, or leave it to a collector that may"
        return Finding("clock", Status.WARN, "this identity may not delete", hint)
    skew = max(before - stored_at - 1.0, stored_at - after, 0.0)
    words = f"within {skew + 1:.0f} s of the store's" if skew < SKEW_WARN_S else f"{skew:.0f} s off"
    if skew < SKEW_WARN_S:
        return Finding("clock", Status.OK, words)
    hint = "set this machine's clock: timedatectl set-ntp true"
    if skew < SKEW_FAIL_S:
        return Finding("clock", Status.WARN, words, hint)
    return Finding("clock", Status.FAIL, words, hint, UNAVAILABLE)


def _bases(store: ObjectStore) -> Finding:
    from adapter_store.bases import list_bases

    try:
        with next_steps():
            cards = list_bases(store)
    except StoreError as error:
        return _failure("bases", error)
    if not cards:
        return Finding("bases", Status.WARN, "none is registered yet", MAKE_A_CARD)
    return Finding("bases", Status.OK, ", ".join(sorted(card.name for card in cards)))


def _redis(settings: StoreSettings) -> Finding:
    try:
        url = settings.full_redis_url()
    except InvalidSetting as error:
        return _failure("redis", error)
    if url is None:
        hint = "set LORAPOOL_REDIS_URL to spare publishers races and nodes the wait"
        return Finding("redis", Status.WARN, "none; publishers go without a lock", hint)
    from adapter_store.redis_check import check_redis

    try:
        answer = check_redis(url)
    except ValueError:
        # Its text may hold the password.
        hint = "mend LORAPOOL_REDIS_URL, e.g. redis://:password@host:6379/0"
        return Finding("redis", Status.FAIL, "LORAPOOL_REDIS_URL is no Redis URL", hint, 2)
    if answer.error:
        hint = "start it or mend LORAPOOL_REDIS_URL; until then publishers go without a lock"
        return Finding("redis", Status.FAIL, f"no answer: {answer.error}", hint, UNAVAILABLE)
    if answer.refused:
        refused = ", ".join(answer.refused)
        hint = f"allow this user {refused} on keys lorapool:*"
        return Finding(
            "redis",
            Status.FAIL,
            f"refuses {refused}",
            hint,
            UNAVAILABLE,
            on_node="only publishers need these; the README has a node's" if answer.hears else "",
        )
    return Finding("redis", Status.OK, "answers and allows what locks and hints need")


def _cache(settings: StoreSettings) -> Finding:
    folder = settings.cache_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        hint = "name another folder with LORAPOOL_CACHE_DIR; without, everything is fetched"
        message = f"{folder} cannot be written: {error.strerror}"
        return Finding("cache", Status.WARN, message, hint)
    message = f"{folder} has {size(free)} free"
    if free < FREE_WARN_BYTES:
        hint = "free some space, or name another folder with LORAPOOL_CACHE_DIR"
        return Finding("cache", Status.WARN, message, hint)
    return Finding("cache", Status.OK, message)


def _failure(check: str, error: StoreError) -> Finding:
    return Finding(check, Status.FAIL, str(error), error.hint, exit_code(error))
