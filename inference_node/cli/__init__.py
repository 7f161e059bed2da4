"""`inference-node`: serve a base model with any number of adapters, and talk to a node.

Exit codes: 0 fine, 1 anything else, 2 usage or a bad setting, 3 not found, 4 a condition does not
hold, 5 damaged content, 6 nobody answers, 7 no room now, 8 the deadline passed,
9 the node does not let you.

Commands import what they need when they run: `--help` must not wait for torch or grpc.
"""

from __future__ import annotations

import sys

import typer

from adapter_store.errors import StoreError
from inference_node.cli.adapters import app as adapters
from inference_node.cli.base import base_card
from inference_node.cli.chat import chat
from inference_node.cli.console import report
from inference_node.cli.doctor import doctor
from inference_node.cli.gateway import gateway_config
from inference_node.cli.generate import generate
from inference_node.cli.serve import serve
from inference_node.cli.stack import down, up
from inference_node.cli.status import status
from inference_node.cli.top import top
from inference_node.errors import NodeError

app = typer.Typer(
    help="Serve LoRA adapters over one 4-bit base model, and talk to a node.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(adapters, name="adapters")
for command in (serve, generate, chat, status, top, doctor, up, down, gateway_config, base_card):
    app.command()(command)


def main() -> None:
    """Run one command; an error that has a name becomes a line and an exit code."""
    try:
        app()
    except (NodeError, StoreError) as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(130)
