"""The fleet for people and scripts: what `status --fleet` and `top --fleet` show."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import typer

from inference_node.cli.board import Rate
from inference_node.cli.console import out, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adapter_store.fleet_view import Fleet, FleetWatch

REFRESH = 1.0


def show(*, as_json: bool) -> int:
    """Print the fleet once; how many nodes take requests. Raises FleetUnseen."""
    from adapter_store.cli.console import table, tell
    from adapter_store.cli.nodes import COLUMNS, fleet_document, node_rows, skew_lines
    from adapter_store.fleet import State

    fleet = _watch().look()
    if as_json:
        out(fleet_document(fleet))
    else:
        table(COLUMNS, list(node_rows(fleet)))
        for line in skew_lines(fleet):
            tell(line)
    return sum(card.state is State.READY for card in fleet.nodes)


def watch(*, seconds: float | None, as_json: bool) -> None:
    """Show the fleet live, or with `seconds` look so long and print once. Raises FleetUnseen."""
    from rich.console import Console
    from rich.live import Live

    view, rates = _watch(), Rates()
    fleet = view.look()
    rates.take(fleet, at=time.monotonic())
    if seconds is not None:
        time.sleep(seconds)
        fleet = view.look()
        rates.take(fleet, at=time.monotonic())
        if as_json:
            from adapter_store.cli.nodes import fleet_document

            out(fleet_document(fleet) | {"tokens_per_second": rates.document()})
        else:
            Console().print(_picture(fleet, rates))
        return
    console = Console()
    if not sys.stdout.isatty():
        say("this is no terminal: --once prints one picture")
    with Live(_picture(fleet, rates), console=console, screen=console.is_terminal) as live:
        while True:
            time.sleep(REFRESH)
            fleet = view.look()
            rates.take(fleet, at=time.monotonic())
            live.update(_picture(fleet, rates), refresh=True)


class Rates:
    """Tokens a second of each node, from what it says of its total."""

    def __init__(self) -> None:
        self._of: dict[str, Rate] = {}
        self._at = 0.0

    def take(self, fleet: Fleet, *, at: float) -> None:
        self._of = {card.id: self._of.get(card.id, Rate()) for card in fleet.nodes}
        for card in fleet.nodes:
            self._of[card.id].note(at, card.generated_tokens)
        self._at = at

    def of(self, node: str) -> float:
        return self._of[node].at(self._at)

    def document(self) -> dict[str, float]:
        """By node id."""
        return {node: round(rate.at(self._at), 2) for node, rate in self._of.items()}


def _picture(fleet: Fleet, rates: Rates) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    from adapter_store.cli.nodes import COLUMNS, node_rows, skew_lines

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (*COLUMNS, "TOKENS/S"):
        table.add_column(name, no_wrap=True)
    for card, row in zip(fleet.nodes, node_rows(fleet), strict=True):
        table.add_row(*row, f"{rates.of(card.id):.1f}")
    return Group(table, "", *skew_lines(fleet))


def _watch() -> FleetWatch:
    from adapter_store.fleet_view import FleetWatch
    from adapter_store.settings import open_fleet

    return FleetWatch(open_fleet())


def refuse_node_options(context: typer.Context) -> None:
    """Raises a usage error for options that reach one node: a fleet is read from Redis."""
    named = ("address", "admin", "tls", "ca", "cert", "key", "token_file", "check")
    for name in named:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                "is for one node; a fleet is read from LORAPOOL_REDIS_URL",
                param_hint=f"--{name.replace('_', '-')}",
            )
