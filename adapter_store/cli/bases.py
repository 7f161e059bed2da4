"""`init`, `check` and `base`: the store itself, and the bases adapters are checked against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter_store.cli.console import Json, out, table

if TYPE_CHECKING:
    from adapter_store.record import BaseCard

app = typer.Typer(help="Base models that adapters are checked against.", no_args_is_help=True)


def init(json: Json = False) -> None:
    """Create the bucket if it is not there, and check that the store keeps its promises."""
    from adapter_store.check import check_store
    from adapter_store.settings import load_settings

    settings = load_settings()
    store = settings.open_store()
    store.ensure_bucket()
    check_store(store)
    _fit(settings.s3_bucket, as_json=json)


def check(json: Json = False) -> None:
    """Prove in seconds that the store is safe to publish to.

    A store that ignores If-None-Match, lists stale or accepts a wrong checksum is refused by
    name of the fault.
    """
    from adapter_store.check import check_store
    from adapter_store.settings import load_settings

    settings = load_settings()
    check_store(settings.open_store())
    _fit(settings.s3_bucket, as_json=json)


@app.command("ls")
def list_cards(json: Json = False) -> None:
    """List the registered base models."""
    from adapter_store.bases import list_bases
    from adapter_store.settings import load_settings

    cards = list_bases(load_settings().open_store())
    if json:
        found = [
            {"fingerprint": c.fingerprint, "name": c.name, "architecture": c.architecture}
            for c in cards
        ]
        out({"bases": found})
    else:
        table(
            ("FINGERPRINT", "NAME", "ARCHITECTURE", "LINEARS"),
            [(c.fingerprint, c.name, c.architecture, len(c.modules)) for c in cards],
        )


@app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="What `inference-node base-card` printed.")],
    json: Json = False,
) -> None:
    """Register a base model's card; the same card again is fine."""
    from adapter_store.bases import register_base
    from adapter_store.settings import load_settings

    card = read_card(file)
    register_base(load_settings().open_store(), card)
    if json:
        out({"fingerprint": card.fingerprint, "name": card.name})
    else:
        typer.echo(f"registered {card.name}  {card.fingerprint}")


def read_card(file: Path) -> BaseCard:
    """The card in a file. Raises NotFound, IntegrityError."""
    from adapter_store.errors import NotFound
    from adapter_store.record import decode_base_card

    try:
        body = file.read_bytes()
    except OSError as error:
        raise NotFound(
            f"{file} cannot be read", hint="inference-node base-card > base.json makes one"
        ) from error
    return decode_base_card(body)


def _fit(bucket: str, *, as_json: bool) -> None:
    if as_json:
        out({"bucket": bucket, "fit": True})
    else:
        typer.echo(f"bucket {bucket} is fit: conditional writes, listing and checksums hold")
