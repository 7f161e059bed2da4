"""`inference-node adapters`: what is on a node, and orders about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inference_node.cli.console import error_document, exit_code, out
from inference_node.cli.reach import Ca, Cert, Key, Tls, TokenFile, open_operator
from inference_node.errors import NodeError

if TYPE_CHECKING:
    from inference_node.client import LoadedVersion, Operator

DEFAULT_ADMIN_ADDRESS = "127.0.0.1:50052"

Adapter = Annotated[str, typer.Argument(help="name, name@version or name@sha256:<digest>.")]
Tenant = Annotated[str, typer.Option(help="Who owns the adapter.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Patience = Annotated[float, typer.Option(min=0.001, help="Seconds.")]

app = typer.Typer(
    help="What is on a node, and orders about it. The node listens for them on "
    "LORAPOOL_ADMIN_LISTEN, and nowhere when that is not set.",
    no_args_is_help=True,
)


@app.callback()
def reach(
    context: typer.Context,
    admin: Annotated[
        str, typer.Option(envvar="LORAPOOL_ADMIN_LISTEN", help="The node's address for orders.")
    ] = DEFAULT_ADMIN_ADDRESS,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Remember where the node is; commands connect when they run."""
    context.obj = lambda: open_operator(
        admin, tls=tls, ca=ca, cert=cert, key=key, token_file=token_file
    )


@app.command()
def preload(
    context: typer.Context,
    adapter: Adapter,
    tenant: Tenant = "",
    min_generation: Annotated[int, typer.Option(min=0, help="Load nothing older.")] = 0,
    as_json: Json = False,
    timeout: Patience = 60.0,
) -> None:
    """Load what the reference means, ahead of the requests for it."""

    def order(operator: Operator) -> dict[str, Any]:
        loaded = operator.preload(
            adapter, tenant=tenant, min_generation=min_generation, timeout=timeout
        )
        return _document(loaded)

    _give(context, order, "loaded", as_json=as_json)


@app.command()
def pin(
    context: typer.Context,
    adapter: Adapter,
    tenant: Tenant = "",
    as_json: Json = False,
    timeout: Patience = 60.0,
) -> None:
    """Load it and keep it on the device: a version, or whatever a bare name comes to mean."""
    _give(
        context,
        lambda operator: _document(operator.pin(adapter, tenant=tenant, timeout=timeout)),
        "pinned",
        as_json=as_json,
    )


@app.command()
def unpin(
    context: typer.Context, adapter: Adapter, tenant: Tenant = "", as_json: Json = False
) -> None:
    """End a pin, by the reference that was pinned."""
    _give(
        context,
        lambda operator: _document(operator.unpin(adapter, tenant=tenant)),
        "unpinned",
        as_json=as_json,
    )


@app.command()
def unload(
    context: typer.Context,
    adapter: Adapter,
    tenant: Tenant = "",
    force: Annotated[
        bool, typer.Option("--force", help="End the requests that hold it, instead of waiting.")
    ] = False,
    as_json: Json = False,
    timeout: Patience = 60.0,
) -> None:
    """Take it off the device once its requests have ended; the next one loads it again."""

    def order(operator: Operator) -> dict[str, Any]:
        gone = operator.unload(adapter, tenant=tenant, force=force, timeout=timeout)
        return asdict(gone.served) | {"failed_requests": gone.failed_requests}

    _give(context, order, "unloaded", as_json=as_json)


@app.command()
def ls(context: typer.Context, as_json: Json = False) -> None:
    """List every version on the device, on the host, or on the way."""
    with _operator(context) as operator:
        try:
            found = list(operator.loaded())
            pool = operator.pool()
        except NodeError as error:
            _refuse(error, as_json=as_json)
    if as_json:
        out({"loaded": [_document(version) for version in found], "pool": asdict(pool)})
    else:
        _print_table(found)


def _operator(context: typer.Context) -> Operator:
    opened: Operator = context.obj()
    return opened


def _give(
    context: typer.Context,
    order: Callable[[Operator], dict[str, Any]],
    done: str,
    *,
    as_json: bool,
) -> None:
    """Give an order, and say what is so now."""
    with _operator(context) as operator:
        try:
            document = order(operator)
        except NodeError as error:
            _refuse(error, as_json=as_json)
    if as_json:
        out(document)
        return
    line = (
        f"{done}  {document['adapter']}@{document['version']}  generation "
        f"{document['generation']}  sha256:{document['digest'][:12]}"
    )
    if document.get("failed_requests"):
        line += f"  {document['failed_requests']} requests were ended for it"
    typer.echo(line)


def _refuse(error: NodeError, *, as_json: bool) -> None:
    """Raises what ends the command."""
    if not as_json:
        raise error
    out(error_document(error))
    raise typer.Exit(exit_code(error)) from None


def _document(loaded: LoadedVersion) -> dict[str, Any]:
    """One flat object: which version, then how it stands."""
    standing = asdict(loaded)
    served = standing.pop("served")
    return {**served, **standing, "tier": loaded.tier.value, "state": loaded.state.value}


def _print_table(found: Iterable[LoadedVersion]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("ADAPTER", "VERSION", "GENERATION", "DIGEST", "TIER", "STATE", "NOTE"):
        table.add_column(column)
    for name in ("PAGES", "MIB", "LEASES"):
        table.add_column(name, justify="right")
    for version in found:
        served = version.served
        name = served.adapter if served.tenant == "default" else f"{served.tenant}/{served.adapter}"
        table.add_row(
            name,
            served.version,
            str(served.generation),
            served.digest[:12],
            version.tier.value,
            version.state.value,
            "pinned" if version.pinned else "",
            str(sum(version.pages)),
            f"{version.bytes / 2**20:.1f}",
            str(version.leases),
        )
    Console().print(table)
