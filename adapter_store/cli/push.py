"""`push`: check a folder and make it what an adapter serves."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from adapter_store.cli.bases import chosen_base
from adapter_store.cli.console import Json, Tenant, out, say
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.progress import Uploads, display
from adapter_store.cli.published import ExpectGen, published_document, tell_published
from adapter_store.cli.rehearsal import rehearse
from adapter_store.cli.session import publishing
from adapter_store.cli.store import open_configured
from adapter_store.errors import InvalidAdapter

if TYPE_CHECKING:
    from adapter_store.commit import Published
    from adapter_store.record import BaseCard
    from adapter_store.validate import LocalAdapter


def push(
    folder: Annotated[
        Path, typer.Argument(help="What peft's save_pretrained wrote.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="The adapter to publish to.", show_default=False)],
    version: Annotated[
        str | None, typer.Option(help="A label of your own; default: v<generation>.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Fingerprint of the base; default: the only one registered.")
    ] = None,
    base_card: Annotated[
        Path | None, typer.Option(help="A file from `inference-node base-card`; it is registered.")
    ] = None,
    expect_gen: ExpectGen = None,
    no_rebase: Annotated[
        bool, typer.Option("--no-rebase", help="Fail when another publisher was faster.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and say what would be sent; write nothing.")
    ] = False,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Check an adapter and make it what NAME serves, for every node at once.

    The content is checked exactly as a node checks it. Chunks the store has already are not sent
    again, so after an interruption just run it again. Content that is served already is not
    published twice: the command says so and succeeds.

    \b
    Examples:
      adapter-store push ./pirate --name pirate --version v2
      adapter-store push ./pirate --name pirate --dry-run
      adapter-store push ./pirate --name pirate --expect-gen 7 --json
      adapter-store push ./pirate --name pirate --base-card card.json
    """
    from adapter_store.bases import register_base
    from adapter_store.check import check_store
    from adapter_store.layout import check_id
    from adapter_store.upload import cut

    rehearsal = f"adapter-store push {quote(str(folder))} --name {quote(name)} --dry-run"
    with next_steps({InvalidAdapter: rehearsal}):
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        check_id("adapter", name)
        card = chosen_base(store, base, base_card)
        local = read_folder(folder, card)
        if not json and local.ignored:
            say(f"not published: {', '.join(local.ignored)}")
        if dry_run:
            rehearse(
                store,
                local,
                as_json=json,
                publish=lambda publisher, progress: publisher.publish(
                    owner, name, local, label=version, expect_gen=expect_gen, progress=progress
                ),
            )
            return
        check_store(store)
        if base_card is not None:
            register_base(store, card)
        files = cut(local.files)
        with display(files, silent=json) as shown:
            uploads = Uploads(files, shown)
            with publishing(settings, store, tenant=owner, adapter=name) as publisher:
                done = publisher.publish(
                    owner,
                    name,
                    local,
                    label=version,
                    expect_gen=expect_gen,
                    rebase=not no_rebase,
                    progress=uploads,
                )
            uploads.finish()
    _show(done, uploads, as_json=json)


def read_folder(folder: Path, card: BaseCard) -> LocalAdapter:
    """A checked folder. Raises InvalidAdapter and Incompatible, also when it cannot be read."""
    from adapter_store.validate import read_adapter_dir

    try:
        return read_adapter_dir(folder, card=card)
    except OSError as error:
        raise InvalidAdapter(
            # Of a file that is opened but cannot be read, the error has only a number.
            f"{error.filename if isinstance(error.filename, str) else folder} cannot be read: "
            f"{error.strerror}",
            hint="its files must be plain ones that you may read",
        ) from error


def labels_of_the_same(done: Published) -> list[str]:
    """Other labels of this very content, newest first."""
    return [
        entry.label
        for entry in reversed(done.record.versions)
        if entry.vdig == done.vdig and entry.label != done.label
    ]


def _show(done: Published, uploads: Uploads, *, as_json: bool) -> None:
    same = labels_of_the_same(done)
    if as_json:
        files = uploads.documents()
        out({**published_document(done), "same_content_as": same, "files": files})
        return
    tell_published(done)
    if same and not done.unchanged:
        say(f"this is the content of {done.adapter}@{same[0]}, under a label of its own")
