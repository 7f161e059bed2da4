"""`nodes`: who serves what, as the nodes tell it; and how a fleet is written for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Tenant, out, table, tell
from adapter_store.cli.outcome import next_steps

if TYPE_CHECKING:
    from adapter_store.fleet import Copy, Holding, NodeCard
    from adapter_store.fleet_view import Fleet

COLUMNS = ("NODE", "STATE", "BASE", "SERVES", "LOADED", "FREE", "RUN", "WAIT")
SHOWN_SKEWS = 16


def nodes(
    name: Annotated[
        str | None, typer.Argument(help="Only this adapter, and which node has which version.")
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Which nodes there are, what they serve, and which versions they hold ready.

    Nodes tell of themselves in Redis, each under a lease of 10 seconds: one that dies is gone when
    its lease ends. A node without LORAPOOL_REDIS_URL serves all the same and is not listed.

    \b
    Examples:
      adapter-store nodes
      adapter-store nodes pirate               who has which version of it
      adapter-store nodes --json
    """
    from adapter_store.fleet_view import FleetWatch
    from adapter_store.layout import check_id
    from adapter_store.settings import open_fleet, tenant_setting

    with next_steps():
        if name is not None:
            check_id("adapter", name)
        owner = check_id("tenant", tenant or tenant_setting())
        fleet = FleetWatch(open_fleet()).look()
    only = None if name is None else (owner, name)
    if json:
        out(fleet_document(fleet, only))
        return
    table(COLUMNS, list(node_rows(fleet)))
    if only is None:
        for line in skew_lines(fleet):
            tell(line)
    else:
        table(("NODE", "SERVES", "HAS"), list(_copy_rows(fleet, only)))


def fleet_document(fleet: Fleet, only: tuple[str, str] | None = None) -> dict[str, Any]:
    """Everything, or of one adapter all there is."""
    adapters = [
        {
            "tenant": spread.name[0],
            "adapter": spread.name[1],
            "generation": spread.newest,
            "skew": spread.skew,
            "nodes": len(spread.generations),
        }
        for spread in fleet.spreads()
        if only in (None, spread.name)
    ]
    return {
        "nodes": [
            {
                **_card_document(card),
                "holdings": [
                    _holding_document(holding)
                    for holding in fleet.holdings[card.id]
                    if only in (None, holding.name)
                ],
            }
            for card in fleet.nodes
        ],
        "adapters": adapters,
        "skewed": sum(1 for adapter in adapters if adapter["skew"]),
    }


def node_rows(fleet: Fleet) -> Iterator[tuple[str, ...]]:
    """A row of COLUMNS for each node: names, versions on the device, free pages, requests."""
    for card in fleet.nodes:
        numbers = (card.adapters, card.resident, f"{card.pages_free}/{card.pages_total}")
        work = (card.running, card.waiting)
        yield card.address, card.state.value, card.base[:8], *map(str, (*numbers, *work))


def skew_lines(fleet: Fleet) -> Iterator[str]:
    """How far apart the nodes are, in words."""
    spreads, skewed = fleet.spreads(), fleet.skewed()
    shared = sum(1 for spread in spreads if len(spread.generations) > 1)
    yield (
        f"{len(fleet.nodes)} nodes serve {len(spreads)} adapters, {shared} of them on more than "
        f"one node, {len(skewed)} in different generations"
    )
    addresses = {card.id: card.address for card in fleet.nodes}
    for spread in skewed[:SHOWN_SKEWS]:
        where = ", ".join(
            f"{addresses[node]} {generation}"
            for node, generation in sorted(spread.generations.items(), key=lambda one: one[1])
        )
        yield f"skew  {'/'.join(spread.name)}  generations by node: {where}"
    if len(skewed) > SHOWN_SKEWS:
        yield f"and {len(skewed) - SHOWN_SKEWS} more"


def _copy_rows(fleet: Fleet, name: tuple[str, str]) -> Iterator[tuple[str, ...]]:
    for card in fleet.nodes:
        for holding in fleet.holdings[card.id]:
            if holding.name == name:
                served = holding.copies.get(holding.digest)
                label = f"{served.version} " if served is not None else ""
                serves = f"{label}generation {holding.generation}" if holding.generation else "-"
                yield card.address, serves, ", ".join(map(_copy_words, holding.copies.values()))


def _copy_words(copy: Copy) -> str:
    reason = f" ({copy.reason})" if copy.reason else ""
    return f"{copy.version} {copy.standing.value}{reason}"


def _card_document(card: NodeCard) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(card), "state": card.state.value}


def _holding_document(holding: Holding) -> dict[str, Any]:
    return {
        "tenant": holding.tenant,
        "adapter": holding.adapter,
        "generation": holding.generation,
        "digest": holding.digest or None,
        "versions": [
            {
                "version": copy.version,
                "digest": digest,
                "standing": copy.standing.value,
                "reason": copy.reason or None,
            }
            for digest, copy in sorted(holding.copies.items())
        ],
    }
