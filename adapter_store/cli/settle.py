"""`settle`, and the same as the beginning of a push: what became of an unknown outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from adapter_store.cli.console import Json, Name, Tenant
from adapter_store.cli.outcome import Interrupted, next_steps
from adapter_store.cli.published import show_published
from adapter_store.cli.session import publishing
from adapter_store.cli.store import open_configured
from adapter_store.errors import Conflict

if TYPE_CHECKING:
    from adapter_store.commit import Published
    from adapter_store.objects import ObjectStore
    from adapter_store.settings import StoreSettings


def settle(
    name: Name,
    txid: Annotated[str, typer.Argument(help="The transaction an error named.")],
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Find out for good whether an interrupted change landed; afterwards it never will.

    Succeeds when it landed, ends with 4 when it did not and with 7 while nobody can tell. Works
    for every kind of change; `push --resume` also pushes anew what did not land.

    \b
    Example:
      adapter-store settle pirate 9f86d081884c7d659a2feaa0c55ad015
    """
    from adapter_store.layout import check_id, check_txid

    with next_steps():
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        check_id("adapter", name)
        check_txid(txid)
        done = settled(settings, store, owner, name, txid)
    show_published(done, as_json=json)


def settled(
    settings: StoreSettings, store: ObjectStore, tenant: str, name: str, txid: str
) -> Published:
    """What the transaction committed. Raises Conflict when it never will, OutcomeUnknown."""
    again = f"adapter-store push <folder> --name {name}"
    try:
        with (
            publishing(settings, store, tenant=tenant, adapter=name) as publisher,
            next_steps({Conflict: again}),
        ):
            return publisher.settle(tenant, name, txid)
    except Interrupted as error:
        raise Interrupted("interrupted", hint="run the same command again") from error
