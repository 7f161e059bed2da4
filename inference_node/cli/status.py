"""`inference-node status`: what a node serves and how much room it has, or the whole fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inference_node.cli import fleet
from inference_node.cli.console import UNREACHABLE, out
from inference_node.cli.reach import (
    DEFAULT_ADDRESS,
    Address,
    Ca,
    Cert,
    Key,
    Tls,
    TokenFile,
    open_client,
)
from inference_node.cli.stack import STATE_DIR, print_stack

if TYPE_CHECKING:
    from inference_node.request import ModelInfo


def status(
    context: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Only the exit code: 0 when the node is ready, else 6.")
    ] = False,
    stack: Annotated[
        bool, typer.Option("--stack", help="Instead: what `up` started in this folder.")
    ] = False,
    whole_fleet: Annotated[
        bool,
        typer.Option("--fleet", help="Every node that tells of itself in LORAPOOL_REDIS_URL."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    address: Address = DEFAULT_ADDRESS,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds.")] = 5.0,
) -> None:
    """Ask a node what it serves; `--check` is a probe for containers and scripts.

    With --fleet: which nodes there are, how busy they are, and of which adapters they serve
    different generations. Nothing that serves needs what is read there. Exit code 6 when no node
    takes requests.
    """
    from dataclasses import asdict

    if stack:
        print_stack(STATE_DIR)
        return
    if whole_fleet:
        fleet.refuse_node_options(context)
        if not fleet.show(as_json=as_json):
            raise typer.Exit(UNREACHABLE)
        return
    with open_client(address, tls=tls, ca=ca, cert=cert, key=key, token_file=token_file) as client:
        ready = client.ready(timeout=timeout)
        if not check:
            info = client.model_info(timeout=timeout)
            if as_json:
                out({"ready": ready} | asdict(info))
            else:
                _print(info, ready=ready)
    if not ready:
        raise typer.Exit(UNREACHABLE)


def _print(info: ModelInfo, *, ready: bool) -> None:
    pool = info.pool
    lines = {
        "ready": "yes" if ready else "no",
        "base": f"{info.name} ({info.architecture})",
        "fingerprint": info.base_fingerprint,
        "device": f"{info.device}, {info.kernel}",
        "memory": f"{info.base_bytes / 2**20:.0f} MiB in 4-bit, "
        f"{info.base_bytes_bf16 / 2**20:.0f} MiB in bf16",
        "context": f"{info.max_context} tokens",
        "pool": f"{pool.pages_free} of {pool.pages_total} pages free, "
        f"{pool.resident} adapter versions resident, {pool.leases} leases",
        "requests": f"{info.running} running, {info.waiting} waiting",
    }
    for name, value in lines.items():
        typer.echo(f"{name:<12} {value}")
