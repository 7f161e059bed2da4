"""`adapter-store`: publish versions of adapters, look at them, take them back.

Exit codes: 0 done, 1 anything else, 2 usage or a bad setting, 3 not found, 4 conflict with another
publisher, 5 not a servable adapter or damaged content, 6 the store does not answer or refuses,
7 nobody knows whether the publish landed. With --json, results and errors are one JSON document on
stdout; everything for people goes to stderr.

Commands import what they need when they run: `--help` must not wait for boto3 or numpy.
"""

from __future__ import annotations

import os
import sys

import typer

from adapter_store.cli import bases, change, look
from adapter_store.cli.console import OTHER, report, report_unexpected
from adapter_store.errors import StoreError

EXAMPLES = """
Publish LoRA adapters as versions in an S3-compatible store, atomically.

Examples:

    adapter-store push ./my-adapter --name pirate

    adapter-store history pirate

    adapter-store rollback pirate --to v1

The store is the one `make up` runs in this folder, or the one LORAPOOL_S3_* name.
"""

app = typer.Typer(
    help=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (change.push, change.rollback, look.ls, look.show, look.history, look.verify):
    app.command()(command)
app.command()(bases.init)
app.command()(bases.check)
app.add_typer(bases.app, name="base")


def main() -> None:
    """Run one command; an error that has a name becomes a line, a next step and an exit code."""
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except StoreError as error:
        sys.exit(report(error, as_json=as_json))
    except KeyboardInterrupt:
        typer.echo("interrupted: run it again, only what is missing is sent", err=True)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("LORAPOOL_DEBUG"):
            raise
        report_unexpected(error, as_json=as_json)
        sys.exit(OTHER)
