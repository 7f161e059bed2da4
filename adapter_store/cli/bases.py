"""`base`: the base models that adapters are checked against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, out, say, table, tell
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.store import open_configured

if TYPE_CHECKING:
    from adapter_store.objects import ObjectStore
    from adapter_store.record import BaseCard

MAKE_A_CARD = "inference-node base-card > card.json && adapter-store base add card.json"
HELP = """
List the base models that adapters are checked against, or register one.

\b
Examples:
  adapter-store base
  inference-node base-card > card.json
  adapter-store base add card.json
"""

app = typer.Typer(help=HELP, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def base(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_cards(json)


@app.command("ls")
def list_cards(json: Json = False) -> None:
    """List the registered base models."""
    from adapter_store.bases import list_bases

    with next_steps():
        cards = list_bases(open_configured()[1])
    if json:
        out({"bases": [_document(card) for card in cards]})
    elif not cards:
        say(f"no base model is registered yet: {MAKE_A_CARD}")
    else:
        table(
            ("FINGERPRINT", "NAME", "ARCHITECTURE", "MODULES", "MAX RANK"),
            [(c.fingerprint, c.name, c.architecture, len(c.modules), c.max_rank) for c in cards],
        )


@app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="What `inference-node base-card` printed.")],
    json: Json = False,
) -> None:
    """Register a base model's card; the same card again is fine.

    \b
    Example:
      inference-node base-card > card.json && adapter-store base add card.json
    """
    from adapter_store.bases import register_base

    with next_steps():
        card = read_card(file)
        register_base(open_configured()[1], card)
    if json:
        out(_document(card))
    else:
        tell(f"registered {card.name}  {card.fingerprint}")


def read_card(file: Path) -> BaseCard:
    """The card in a file. Raises NotFound, IntegrityError."""
    from adapter_store.errors import IntegrityError, NotFound
    from adapter_store.record import decode_base_card

    hint = "make one: inference-node base-card > card.json"
    try:
        body = file.read_bytes()
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}", hint=hint) from error
    try:
        return decode_base_card(body)
    except IntegrityError as error:
        raise IntegrityError(f"{file} is no base card: {error}", hint=hint) from error


def chosen_base(store: ObjectStore, fingerprint: str | None, file: Path | None) -> BaseCard:
    """The base to check against: named, given as a file, or the only one there is.

    Raises NotFound when there is none, InvalidName when there are several, IntegrityError.
    """
    from adapter_store.bases import list_bases, load_base
    from adapter_store.errors import InvalidName, NotFound

    if file is not None:
        card = read_card(file)
        if fingerprint not in (None, card.fingerprint):
            raise InvalidName(
                f"--base is {fingerprint} and the card in {file} is of {card.fingerprint}",
                hint="give one of the two: adapter-store base",
            )
        return card
    if fingerprint is not None:
        with next_steps({NotFound: "adapter-store base"}):
            return load_base(store, fingerprint)
    cards = list_bases(store)
    if not cards:
        raise NotFound(
            "no base model is registered in this store",
            hint=f"start a node once, or: {MAKE_A_CARD}",
        )
    if len(cards) > 1:
        raise InvalidName(
            f"{len(cards)} base models are registered; which one is the adapter for?",
            hint="find it with `adapter-store base`, then push again with --base <fingerprint>",
        )
    return cards[0]


def _document(card: BaseCard) -> dict[str, Any]:
    return {
        "fingerprint": card.fingerprint,
        "name": card.name,
        "architecture": card.architecture,
        "modules": len(card.modules),
        "max_rank": card.max_rank,
    }
