"""`adapter-store`: publish versions of adapters, look at them, take them back.

Exit codes: 0 done, 1 anything else, 2 usage or a bad setting, 3 not found, 4 conflict with another
publisher, 5 not a servable adapter or damaged content, 6 the store does not answer or refuses,
7 nobody knows whether the publish landed, 130 interrupted. With --json, results and errors are one
JSON document on stdout, as docs/cli-json describes them; everything for people goes to stderr.

Commands import what they need when they run: `--help` must not wait for boto3 or numpy.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from adapter_store.cli import (
    bases,
    canary,
    care,
    change,
    completion,
    diff,
    doctor,
    follow,
    keys,
    listing,
    look,
    nodes,
    pull,
    push,
    settle,
    store,
    verify,
)
from adapter_store.cli.console import complain, complain_as_json, tell
from adapter_store.cli.outcome import INTERRUPTED, OTHER, USAGE, Interrupted, LocalFault, exit_code
from adapter_store.cli.panels import LOOK, PUBLISH, SET_UP, TAKE_CARE, Panels
from adapter_store.errors import OutcomeUnknown, StoreError

PROGRAM = "adapter-store"
DEBUG_VARIABLE = "LORAPOOL_DEBUG"
HELP = """
Publish LoRA adapters as versions in an S3-compatible store, atomically.

\b
Examples:
  adapter-store doctor                                is everything there?
  adapter-store init                                  once: the bucket
  adapter-store push ./pirate --name pirate           serve this content
  adapter-store push ./pirate-2 --name pirate --version v2
  adapter-store ls                                    what is served
  adapter-store history pirate                        every commit
  adapter-store diff pirate@v1 pirate@v2              what changed
  adapter-store rollback pirate --to v1               serve v1 again
  adapter-store stage ./pirate-3 --name pirate        beside what is served
  adapter-store activate pirate                       serve what is staged
  adapter-store split pirate v1=95 v2=5               two versions side by side
  adapter-store canary pirate v2 --share 5            watched, then promoted or not
  adapter-store watch                                 every commit, live
  adapter-store nodes                                 who serves what
  adapter-store verify --all                          read and check every byte

\b
The store is the one that `make up` runs in this folder, or what the
environment names:
  LORAPOOL_S3_ENDPOINT  LORAPOOL_S3_BUCKET  LORAPOOL_S3_REGION
  LORAPOOL_S3_ACCESS_KEY  LORAPOOL_S3_SECRET_KEY  LORAPOOL_REDIS_URL
  LORAPOOL_SIGN_KEY_FILE  LORAPOOL_TRUST_FILE

\b
Exit codes: 0 done, 1 other, 2 usage, 3 not found, 4 conflict, 5 invalid
adapter or damaged content, 6 store unavailable, 7 outcome unknown,
130 interrupted.
"""

app = typer.Typer(
    cls=Panels,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# One line a command, in the order of --help.
app.command(rich_help_panel=PUBLISH)(push.push)
app.command(rich_help_panel=PUBLISH)(push.stage)
app.command(rich_help_panel=PUBLISH)(change.activate)
app.command(rich_help_panel=PUBLISH)(change.rollback)
app.command(rich_help_panel=PUBLISH)(change.split)
app.command(rich_help_panel=PUBLISH)(canary.canary)
app.command(rich_help_panel=PUBLISH)(change.delete)
app.command(rich_help_panel=PUBLISH)(settle.settle)
app.command(rich_help_panel=LOOK)(listing.ls)
app.command(rich_help_panel=LOOK)(look.show)
app.command(rich_help_panel=LOOK)(look.history)
app.command(rich_help_panel=LOOK)(diff.diff)
app.command(rich_help_panel=LOOK)(pull.pull)
app.command(rich_help_panel=LOOK)(follow.watch)
app.command(rich_help_panel=LOOK)(nodes.nodes)
app.command(rich_help_panel=TAKE_CARE)(verify.verify)
app.command(rich_help_panel=TAKE_CARE)(care.fsck)
app.command(rich_help_panel=TAKE_CARE)(care.gc)
app.command(rich_help_panel=TAKE_CARE)(care.pin)
app.command(rich_help_panel=TAKE_CARE)(care.unpin)
app.command(rich_help_panel=TAKE_CARE)(keys.reclaim)
app.command(rich_help_panel=SET_UP)(keys.keygen)
app.command(rich_help_panel=SET_UP)(store.init)
app.command(rich_help_panel=SET_UP)(store.check)
app.command(rich_help_panel=SET_UP)(doctor.doctor)
app.command(rich_help_panel=SET_UP)(completion.completion)
app.add_typer(bases.app, name="base", rich_help_panel=SET_UP)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        tell(f"{PROGRAM} {version('lorapool')}")
        raise typer.Exit


@app.callback(help=HELP)
def root(
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show tracebacks; same as {DEBUG_VARIABLE}=1.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Print the version of this program.",
        ),
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def main() -> None:
    """Run one command; an error becomes a line, a next step and an exit code."""
    completion.prepare_completion()
    sys.exit(_run(as_json="--json" in sys.argv[1:]))


def _run(*, as_json: bool) -> int:
    def report(error: Exception, hint: str, code: int, **more: str) -> int:
        return _report(error, hint, code, as_json=as_json, **more)

    try:
        code = app(prog_name=PROGRAM, standalone_mode=False)
        if code == INTERRUPTED:
            raise Interrupted("interrupted", hint="run the same command again; it repeats nothing")
    except typer.TyperException as error:
        return _report_usage(error, as_json=as_json)
    except StoreError as error:
        more = {"txid": error.txid} if isinstance(error, OutcomeUnknown) else {}
        return report(error, error.hint, exit_code(error), **more)
    except Interrupted as error:
        return report(error, error.hint, INTERRUPTED)
    except LocalFault as error:
        return report(error, error.hint, OTHER)
    except Exception as error:
        kind = type(error).__name__
        hint = f"run it again with {DEBUG_VARIABLE}=1 (or adapter-store --debug ...) to see where"
        return report(error, hint, OTHER, prefix=f"{kind}: ", kind="Unexpected")
    return code if isinstance(code, int) else 0


def _report(
    error: Exception,
    hint: str,
    code: int,
    *,
    as_json: bool,
    prefix: str = "",
    kind: str = "",
    **more: str,
) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    message = f"{prefix}{error}"
    if as_json:
        complain_as_json(kind or type(error).__name__, message, hint, code, **more)
    else:
        complain(message, hint)
    return code


def _report_usage(error: typer.TyperException, *, as_json: bool) -> int:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else PROGRAM
    if as_json:
        complain_as_json("Usage", message, f"{command} --help", USAGE)
    elif message.startswith("Usage:"):
        typer.echo(message, err=True)
    else:
        complain(message, f"{command} --help")
    return USAGE
