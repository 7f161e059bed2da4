"""`push` and `stage`: a folder becomes what an adapter serves, or what it may serve next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter_store.cli.console import Json, Tenant, say
from adapter_store.cli.keys import SignKey
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.published import ExpectGen
from adapter_store.cli.readiness import Spread, ask_ahead
from adapter_store.cli.rehearsal import rehearse
from adapter_store.cli.sending import (
    Base,
    Card,
    DryRun,
    Into,
    Rebase,
    Version,
    parcel,
    read_folder,
    send,
    show_sent,
)
from adapter_store.cli.settle import settled
from adapter_store.cli.store import open_configured
from adapter_store.errors import Conflict, StoreError

if TYPE_CHECKING:
    from adapter_store.commit import Published, Publisher
    from adapter_store.objects import ObjectStore
    from adapter_store.upload import UploadProgress


def push(
    name: Into,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="What peft's save_pretrained wrote; with --resume it may be left out.",
            show_default=False,
        ),
    ] = None,
    version: Version = None,
    base: Base = None,
    base_card: Card = None,
    expect_gen: ExpectGen = None,
    sign_key: SignKey = None,
    rebase: Rebase = True,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="TXID",
            help="Find out first whether that push landed; push only if it never will.",
        ),
    ] = None,
    dry_run: DryRun = False,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Check an adapter and make it what NAME serves, for every node at once.

    The content is checked exactly as a node checks it. Chunks the store has already are not sent
    again, so after an interruption just run it again. Content that is served already is not
    published twice: the command says so and succeeds. A push ends a split and a staging.

    \b
    Examples:
      adapter-store push ./pirate --name pirate --version v2
      adapter-store push ./pirate --name pirate --dry-run
      adapter-store push ./pirate --name pirate --expect-gen 7 --json
      adapter-store push ./pirate --name pirate --base-card card.json
      adapter-store push ./pirate --name pirate --resume 9f86d081884c7d659a2feaa0c55ad015
    """
    if dry_run and resume is not None:
        raise typer.BadParameter("--resume settles for good, and --dry-run writes nothing")
    if folder is None and resume is None:
        raise typer.BadParameter("which folder? It may be left out with --resume alone")
    if resume is not None and _landed(name, resume, folder, tenant, as_json=json):
        return
    assert folder is not None
    with parcel(
        "push", folder, name, tenant=tenant, base=base, base_card=base_card, as_json=json
    ) as this:

        def change(publisher: Publisher, progress: UploadProgress) -> Published:
            return publisher.publish(
                this.tenant,
                name,
                this.local,
                label=version,
                expect_gen=expect_gen,
                rebase=rebase,
                progress=progress,
            )

        if dry_run:
            rehearse(this.store, this.local, command="push", change=change, as_json=json)
            return
        send(this, change, as_json=json)


def stage(
    folder: Annotated[
        Path, typer.Argument(help="What peft's save_pretrained wrote.", show_default=False)
    ],
    name: Into,
    version: Version = None,
    base: Base = None,
    base_card: Card = None,
    expect_gen: ExpectGen = None,
    sign_key: SignKey = None,
    rebase: Rebase = True,
    spread: Spread = 1,
    dry_run: DryRun = False,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Send an adapter beside what NAME serves; `activate` then serves it at once.

    Every node that holds the adapter fetches it ahead and says when it is ready, and --spread
    nodes do where fewer hold it. Until it is activated only who names its label or digest gets it.
    It takes the place of what was staged before; a push, a rollback or an activation ends the
    staging.

    \b
    Examples:
      adapter-store stage ./pirate-2 --name pirate --version v2
      adapter-store stage ./parrot --name parrot --spread 2
      adapter-store nodes pirate               who has it ready?
      adapter-store activate pirate
    """
    with parcel(
        "stage", folder, name, tenant=tenant, base=base, base_card=base_card, as_json=json
    ) as this:

        def change(publisher: Publisher, progress: UploadProgress) -> Published:
            return publisher.stage(
                this.tenant,
                name,
                this.local,
                label=version,
                expect_gen=expect_gen,
                rebase=rebase,
                progress=progress,
            )

        if dry_run:
            rehearse(this.store, this.local, command="stage", change=change, as_json=json)
        else:
            done = send(this, change, as_json=json)
            ask_ahead(this.settings, done, spread=spread, silent=json)


def _landed(
    name: str, txid: str, folder: Path | None, tenant: str | None, *, as_json: bool
) -> bool:
    """Settle the transaction; True when it landed, which is then said.

    Raises OutcomeUnknown, and Conflict when it never will land and there is no `folder` to push.
    """
    from adapter_store.layout import check_id, check_txid

    with next_steps():
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        check_id("adapter", name)
        try:
            done = settled(settings, store, owner, name, check_txid(txid))
        except Conflict as error:
            if folder is None:
                raise
            say(f"{error}; pushing anew")
            return False
    if done.kind.value != "publish":
        raise typer.BadParameter(
            f"transaction {txid} landed and was no push but a {done.kind.value}: "
            f"adapter-store settle {name} {txid}"
        )
    if folder is not None and _holds_other_content(store, folder, done):
        say(f"warning: {folder} holds other content than what landed; push it without --resume")
    show_sent(done, [], command="push", as_json=as_json)
    return True


def _holds_other_content(store: ObjectStore, folder: Path, done: Published) -> bool:
    """Whether `folder` can be read and is something else than what was published."""
    from adapter_store.bases import load_base
    from adapter_store.draft import local_content

    assert done.record.active is not None
    try:
        local = read_folder(folder, load_base(store, done.record.active.base))
    except StoreError:
        return False
    return local_content(local, None).vdig != done.vdig
