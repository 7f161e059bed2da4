"""`inference-node up` and `down`: store, locks and nodes on loopback, left running."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inference_node.addresses import parse_address
from inference_node.cli.console import OTHER, UNREACHABLE, say
from inference_node.errors import BadConfiguration, NodeError

if TYPE_CHECKING:
    from adapter_store.embedded import EmbeddedStack
    from inference_node.cli.settings import NodeSettings

STATE_DIR = Path(".lorapool")
HOST = "127.0.0.1"
GATEWAY = "gateway"
START_SECONDS = 180.0
"""The first start on a machine converts the bundled base model."""

StateDir = Annotated[
    Path, typer.Option(help="Where data, logs and process ids are kept.", file_okay=False)
]


def up(
    state_dir: StateDir = STATE_DIR,
    nodes: Annotated[int, typer.Option(min=1, max=64, help="How many nodes.")] = 1,
    gateway: Annotated[
        bool,
        typer.Option("--gateway", help="Envoy before the nodes, on LORAPOOL_LISTEN."),
    ] = False,
) -> None:
    """Start SeaweedFS, Valkey and nodes on loopback and leave them running.

    LORAPOOL_LISTEN is the first node's address, or the gateway's where there is one; what else is
    set (LORAPOOL_ADMIN_LISTEN, _METRICS_LISTEN, _PLAYGROUND_LISTEN) is the first node's. The others
    listen on free ports. Does nothing when they already run. Data stays in the state folder.
    """
    from adapter_store.embedded import start_detached, stop_detached
    from adapter_store.settings import S3_SERVICE, read_stack
    from inference_node.cli.settings import load_settings

    settings = load_settings()
    front = _front(settings)
    running = read_stack(state_dir)
    if running is not None and running.addresses and running.is_whole():
        _print(running.addresses)
        say(f"already running in {state_dir}; `inference-node down` stops it")
        return
    stop_detached(state_dir)
    _check_free(front)
    if gateway:
        from inference_node.gateway.program import envoy

        envoy()
    stack = start_detached(state_dir)
    try:
        _start_nodes(stack, settings, count=nodes, behind_gateway=gateway)
        if gateway:
            _start_gateway(stack, front, insecure=settings.insecure)
        _wait_ready(stack)
    except BaseException:
        stop_detached(state_dir)
        raise
    typer.echo(
        f"{S3_SERVICE:<10} {stack.endpoints.s3_endpoint}  bucket {stack.endpoints.s3_bucket}"
    )
    _print(stack.addresses)
    say(f"logs and data in {state_dir}; `inference-node down` stops everything")


def down(state_dir: StateDir = STATE_DIR) -> None:
    """Stop what `up` started; data stays."""
    from adapter_store.embedded import stop_detached

    stopped = stop_detached(state_dir)
    say(f"stopped {', '.join(stopped)}" if stopped else f"nothing runs in {state_dir}")


def print_stack(state_dir: Path) -> None:
    """What `up` started here and whether it runs; leaves with 6 when something does not."""
    from adapter_store.settings import read_stack

    stack = read_stack(state_dir)
    if stack is None:
        say(f"nothing runs in {state_dir}; `inference-node up` starts it")
        raise typer.Exit(UNREACHABLE)
    for name, process in stack.processes.items():
        state = "running" if stack.is_running(name) else "gone"
        typer.echo(f"{name:<10} {state:<8} pid {process.pid:<8} {stack.addresses.get(name, '')}")
    if not stack.is_whole():
        raise typer.Exit(UNREACHABLE)


def _front(settings: NodeSettings) -> str:
    """Where callers come. Raises BadConfiguration for what is not for one's own machine."""
    config = settings.server_config()
    if config.tls is not None:
        raise BadConfiguration(
            "`up` runs everything in the clear, and LORAPOOL_TLS_CERT_FILE is set",
            hint="unset it, or run `inference-node serve` and `gateway-config` by themselves",
        )
    return config.listen


def _start_nodes(
    stack: EmbeddedStack, settings: NodeSettings, *, count: int, behind_gateway: bool
) -> None:
    variables = {}
    if not behind_gateway:
        variables["LORAPOOL_DRAIN_DELAY"] = "0"
    if count > 1 and "OMP_NUM_THREADS" not in os.environ:
        # With more threads than cores they would wait for each other in every step.
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    program = str(Path(sys.executable).parent / "inference-node")
    chosen = {
        "LORAPOOL_LISTEN": settings.listen,
        "LORAPOOL_ADMIN_LISTEN": settings.admin_listen,
        "LORAPOOL_METRICS_LISTEN": settings.metrics_listen,
        "LORAPOOL_PLAYGROUND_LISTEN": settings.playground_listen,
    }
    for number in range(1, count + 1):
        # What is set can be one node's alone, and the gateway listens where callers come.
        moved = set(chosen) if number > 1 else {"LORAPOOL_LISTEN"} if behind_gateway else set()
        listens = {
            name: _free_address() if name in moved else address
            for name, address in chosen.items()
            if address
        }
        stack.spawn(
            f"node-{number}",
            [program, "serve"],
            env=variables | listens,
            address=listens["LORAPOOL_LISTEN"],
        )


def _free_address() -> str:
    from adapter_store.services import free_ports

    return f"{HOST}:{free_ports(HOST, 1)[0]}"


def _start_gateway(stack: EmbeddedStack, front: str, *, insecure: bool) -> None:
    from inference_node.gateway.config import GatewayConfig
    from inference_node.gateway.program import command
    from inference_node.gateway.render import render

    config = GatewayConfig(
        nodes=tuple(stack.addresses.values()),
        listen=front,
        admin=_free_address(),
        metrics=_free_address(),
        insecure=insecure,
    )
    file = stack.state_dir / "envoy.yaml"
    file.write_text(render(config))
    stack.spawn(GATEWAY, command(file), address=front)


def _print(addresses: Mapping[str, str]) -> None:
    for name, address in addresses.items():
        json = "  gRPC, gRPC-Web and JSON" if name == GATEWAY else ""
        typer.echo(f"{name:<10} {address}{json}")


def _check_free(address: str) -> None:
    """Raises BadConfiguration when another program listens there: it would answer for our node.

    Also for a socket's path and for port 0: what `up` starts is found by host and port.
    """
    place = parse_address(address, "LORAPOOL_LISTEN")
    try:
        socket.create_connection((place.host, place.port), timeout=1.0).close()
    except OSError:
        return
    raise BadConfiguration(
        f"another program listens on {address}", hint="stop it, or set LORAPOOL_LISTEN"
    )


def _wait_ready(stack: EmbeddedStack) -> None:
    """Until each node and the gateway answer; leaves with the log of the one that does not."""
    deadline = time.monotonic() + START_SECONDS
    for name, address in stack.addresses.items():
        if not _becomes_ready(stack, name, address, deadline):
            say(stack.log(name).read_text(errors="replace")[-2000:])
            typer.echo(f"error: {name} did not start; its log is {stack.log(name)}", err=True)
            raise typer.Exit(OTHER)


def _becomes_ready(stack: EmbeddedStack, name: str, address: str, deadline: float) -> bool:
    from inference_node.client import Client

    while stack.is_running(name) and time.monotonic() < deadline:
        # A new one each time: who was refused comes again only after ever longer pauses.
        with Client(address) as client, contextlib.suppress(NodeError):
            if client.ready(timeout=2.0):
                return True
        time.sleep(0.2)
    return False
