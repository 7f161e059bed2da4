"""`inference-node base-card`: what a publisher needs to know of the base, without loading it."""

from __future__ import annotations

from typing import Annotated

import typer


def base_card(
    base_model: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder or model id; LORAPOOL_BASE_MODEL. Default: bundled."),
    ] = None,
) -> None:
    """Print the base model's card, the JSON that `adapter-store base add` registers.

    A node registers its own base when it starts; this is for publishing before one ever ran.
    """
    from inference_node.cli.settings import load_settings
    from inference_node.engine.build import base_card as read_card

    settings = load_settings(base_model=base_model)
    card = read_card(settings.engine_config(settings.checkpoint()))
    typer.echo(card.encode().decode())
