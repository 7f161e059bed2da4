"""`init` and `check`: the store itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, out, say, tell
from adapter_store.cli.outcome import next_steps

if TYPE_CHECKING:
    from adapter_store.s3 import S3Store
    from adapter_store.settings import StoreSettings


def init(json: Json = False) -> None:
    """Create the bucket if it is not there, and prove that the store is safe to publish to.

    \b
    Example:
      LORAPOOL_S3_BUCKET=adapters adapter-store init
    """
    with next_steps():
        settings, store = open_configured()
        store.ensure_bucket()
        _prove(settings, store, as_json=json)


def check(
    full: Annotated[
        bool,
        typer.Option("--full", help="Ask each promise hundreds of times; about half a minute."),
    ] = False,
    json: Json = False,
) -> None:
    """Prove that the store is safe to publish to, in a second or so.

    A store that ignores If-None-Match, lists stale or accepts a wrong checksum is refused by the
    name of its fault. With --full also races, lost answers, four kinds of damaged bodies and keys
    that look alike, often enough to trust a store that nobody has tried before.

    \b
    Examples:
      adapter-store check && adapter-store push ./pirate --name pirate
      adapter-store check --full
    """
    with next_steps():
        settings, store = open_configured()
        if full:
            _prove_in_full(settings, store, as_json=json)
        else:
            _prove(settings, store, as_json=json)


def open_configured() -> tuple[StoreSettings, S3Store]:
    """The store the environment names; sends nothing. Raises InvalidSetting, StoreUnavailable."""
    from adapter_store.settings import load_settings

    settings = load_settings()
    return settings, settings.open_store()


def _prove(settings: StoreSettings, store: S3Store, *, as_json: bool) -> None:
    from adapter_store.check import check_store

    started = time.monotonic()
    check_store(store)
    seconds = time.monotonic() - started
    endpoint = settings.s3_endpoint or "AWS"
    if as_json:
        out({"bucket": store.bucket, "endpoint": endpoint, "fit": True, "seconds": seconds})
    else:
        tell(
            f"bucket {store.bucket} at {endpoint} is fit: conditional writes, reads after writes, "
            f"listing and checksums hold ({seconds:.1f} s)"
        )


def _prove_in_full(settings: StoreSettings, store: S3Store, *, as_json: bool) -> None:
    from adapter_store.conformance import Conformance

    started = time.monotonic()
    endpoint = settings.s3_endpoint or "AWS"
    promises: list[dict[str, Any]] = []
    if not as_json:
        say(f"asking bucket {store.bucket} at {endpoint} ...")
    for done in Conformance(store):
        promises.append(
            {
                "name": done.name,
                "cases": done.cases,
                "seconds": done.seconds,
                "note": done.note,
            }
        )
        if not as_json:
            word = "ok" if done.cases else "skipped"
            tell(
                f"{word:7}  {done.name:16}  {done.cases:5} cases  {done.seconds:5.1f} s"
                f"{'  ' if done.note else ''}{done.note}"
            )
    seconds = time.monotonic() - started
    if as_json:
        document = {"bucket": store.bucket, "endpoint": endpoint, "fit": True, "seconds": seconds}
        out({**document, "promises": promises})
    else:
        tell(f"bucket {store.bucket} at {endpoint} is fit ({seconds:.1f} s)")
