"""`init` and `check`: the store itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from adapter_store.cli.console import Json, out, tell
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


def check(json: Json = False) -> None:
    """Prove that the store is safe to publish to, in about a second.

    A store that ignores If-None-Match, lists stale or accepts a wrong checksum is refused by the
    name of its fault.

    \b
    Example:
      adapter-store check && adapter-store push ./pirate --name pirate
    """
    with next_steps():
        settings, store = open_configured()
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
