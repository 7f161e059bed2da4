"""`rollback` and `settle`, and what all three changing commands say at their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Name, Tenant, out, size, tell
from adapter_store.cli.outcome import Interrupted, next_steps
from adapter_store.cli.references import full_selector
from adapter_store.cli.session import publishing
from adapter_store.cli.store import open_configured
from adapter_store.errors import Conflict

if TYPE_CHECKING:
    from adapter_store.commit import Published

ExpectGen = Annotated[
    int | None,
    typer.Option(
        min=0, help="Fail unless the current generation is this one; 0: must not exist yet."
    ),
]


def rollback(
    name: Name,
    to: Annotated[
        str | None,
        typer.Option(help="A version label or sha256:<digest>; default: what was served before."),
    ] = None,
    expect_gen: ExpectGen = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Serve an older version again, under a new and higher generation.

    \b
    Examples:
      adapter-store rollback pirate
      adapter-store rollback pirate --to v1
      adapter-store rollback pirate --to sha256:3f5a9c0d11e2
    """
    from adapter_store.check import check_store
    from adapter_store.layout import check_id

    with next_steps():
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        check_id("adapter", name)
        check_store(store)
        with publishing(settings, store, tenant=owner, adapter=name) as publisher:
            selector = None if to is None else full_selector(store, owner, name, to)
            done = publisher.rollback(owner, name, to=selector, expect_gen=expect_gen)
    _show(done, as_json=json)


def settle(
    name: Name,
    txid: Annotated[str, typer.Argument(help="The transaction an error named.")],
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Find out for good whether an interrupted publish landed; afterwards it never will.

    Succeeds when it landed, ends with 4 when it did not.

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
        again = f"adapter-store push <folder> --name {name}"
        try:
            with (
                publishing(settings, store, tenant=owner, adapter=name) as publisher,
                next_steps({Conflict: again}),
            ):
                done = publisher.settle(owner, name, txid)
        except Interrupted as error:
            raise Interrupted("interrupted", hint="run the same command again") from error
    _show(done, as_json=json)


def published_document(done: Published) -> dict[str, Any]:
    return {
        "tenant": done.tenant,
        "adapter": done.adapter,
        "version": done.label,
        "generation": done.gen,
        "digest": done.vdig,
        "kind": done.kind.value,
        "unchanged": done.unchanged,
        "bytes_sent": done.bytes_sent,
        "bytes_reused": done.bytes_reused,
        "requests": done.requests,
        "txid": done.txid,
        "attempt": done.attempt,
    }


def tell_published(done: Published) -> None:
    served = f"{done.adapter}@{done.label}  generation {done.gen}  sha256:{done.vdig[:12]}"
    if done.unchanged:
        tell(f"unchanged {served}  is served already, nothing to do")
        return
    verb = "rolled back to" if done.kind.value == "rollback" else "published"
    tell(f"{verb} {served}  {size(done.bytes_sent)} sent, {size(done.bytes_reused)} reused")


def _show(done: Published, *, as_json: bool) -> None:
    if as_json:
        out(published_document(done))
    else:
        tell_published(done)
