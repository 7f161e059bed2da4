"""`inference-node up` and `down`: store, locks and a node on loopback, left running."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inference_node.cli.console import OTHER, say
from inference_node.errors import BadConfiguration, NodeError

if TYPE_CHECKING:
    from adapter_store.embedded import EmbeddedStack

NODE = "node"
START_SECONDS = 180.0
"""The first start on a machine converts the bundled base model."""

StateDir = Annotated[
    Path, typer.Option(help="Where data, logs and process ids are kept.", file_okay=False)
]


def up(state_dir: StateDir = Path(".lorapool")) -> None:
    """Start SeaweedFS, Valkey and a node on loopback and leave them running.

    Does nothing when they already run. Data stays in the state folder.
    """
    from adapter_store.embedded import start_detached, stop_detached
    from adapter_store.settings import S3_SERVICE, read_stack
    from inference_node.cli.settings import load_settings

    listen = load_settings().server_config().listen
    running = read_stack(state_dir)
    if running is not None and running.is_running(S3_SERVICE) and running.is_running(NODE):
        say(f"already running in {state_dir}; `inference-node down` stops it")
        return
    stop_detached(state_dir)
    _check_free(listen)
    stack = start_detached(state_dir)
    program = str(Path(sys.executable).parent / "inference-node")
    stack.spawn(NODE, [program, "serve"], env={"LORAPOOL_DRAIN_DELAY": "0"})
    if not _becomes_ready(stack, listen):
        say(stack.log(NODE).read_text(errors="replace")[-2000:])
        stop_detached(state_dir)
        typer.echo(f"error: the node did not start; its log is {stack.log(NODE)}", err=True)
        raise typer.Exit(OTHER)
    typer.echo(f"store  {stack.endpoints.s3_endpoint}  bucket {stack.endpoints.s3_bucket}")
    typer.echo(f"node   {listen}")
    say(f"logs and data in {state_dir}; `inference-node down` stops everything")


def down(state_dir: StateDir = Path(".lorapool")) -> None:
    """Stop what `up` started; data stays."""
    from adapter_store.embedded import stop_detached

    stopped = stop_detached(state_dir)
    say(f"stopped {', '.join(stopped)}" if stopped else f"nothing runs in {state_dir}")


def _check_free(address: str) -> None:
    """Raises BadConfiguration when another program listens there: it would answer for our node."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except OSError:
        return
    raise BadConfiguration(
        f"another program listens on {address}", hint="stop it, or set LORAPOOL_LISTEN"
    )


def _becomes_ready(stack: EmbeddedStack, address: str) -> bool:
    from inference_node.client import Client

    deadline = time.monotonic() + START_SECONDS
    with Client(address) as client:
        while stack.is_running(NODE) and time.monotonic() < deadline:
            try:
                if client.ready(timeout=2.0):
                    return True
            except NodeError:
                pass
            time.sleep(0.2)
    return False
