"""`push` and `rollback`: what an adapter serves, changed by one commit."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Tenant, out, say, size, upload_progress

if TYPE_CHECKING:
    from adapter_store.commit import Published, Publisher
    from adapter_store.objects import ObjectStore
    from adapter_store.record import BaseCard
    from adapter_store.settings import StoreSettings
    from adapter_store.validate import LocalAdapter

Name = Annotated[str, typer.Argument(help="The adapter's name.", show_default=False)]
ExpectGen = Annotated[
    int | None,
    typer.Option(help="Fail unless the current generation is this one; 0: must not exist yet."),
]


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
        Path | None, typer.Option(help="A base card file, registered first.")
    ] = None,
    expect_gen: ExpectGen = None,
    no_rebase: Annotated[
        bool, typer.Option("--no-rebase", help="Fail when another publisher was faster.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, send nothing.")
    ] = False,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Check an adapter and make it what NAME serves, for every node at once.

    The content is checked exactly as a node checks it. Chunks the store has already are not sent
    again, so after an interruption just run it again; equal content is not published twice.

    Example: adapter-store push ./pirate --name pirate --version v2
    """
    from adapter_store.settings import load_settings
    from adapter_store.validate import read_adapter_dir

    settings = load_settings()
    store = settings.open_store()
    card = _card(store, base, base_card, register=not dry_run)
    local = read_adapter_dir(folder, card=card)
    if not json:
        for ignored in local.ignored:
            say(f"ignored  {ignored}")
    if dry_run:
        _show_dry_run(folder, name, local, as_json=json)
        return
    publisher = _publisher(settings, store)
    with upload_progress(f"push {name}", quiet=json) as progress:
        done = publisher.publish(
            tenant or settings.tenant,
            name,
            local,
            label=version,
            expect_gen=expect_gen,
            rebase=not no_rebase,
            progress=progress,
        )
    _show_published(done, as_json=json, files={n: len(b) for n, b in local.files.items()})


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

    Example: adapter-store rollback pirate --to v1
    """
    from adapter_store.settings import load_settings

    settings = load_settings()
    publisher = _publisher(settings, settings.open_store())
    done = publisher.rollback(tenant or settings.tenant, name, to=to, expect_gen=expect_gen)
    _show_published(done, as_json=json, files={})


def _publisher(settings: StoreSettings, store: ObjectStore) -> Publisher:
    from adapter_store.commit import Publisher

    return Publisher(
        store,
        lock=settings.open_lock(),
        announcer=settings.open_announcer(),
        actor=f"{getpass.getuser()}@{socket.gethostname()}",
        warn=lambda message: say(f"warning: {message}"),
    )


def _card(
    store: ObjectStore, fingerprint: str | None, file: Path | None, *, register: bool
) -> BaseCard:
    """The base to check against: named, given as a file, or the only one there is."""
    from adapter_store.bases import list_bases, load_base, register_base
    from adapter_store.cli.bases import read_card
    from adapter_store.errors import InvalidName, NotFound

    if file is not None:
        card = read_card(file)
        if fingerprint not in (None, card.fingerprint):
            raise InvalidName(f"--base is {fingerprint}, {file} is {card.fingerprint}")
        if register:
            register_base(store, card)
        return card
    if fingerprint is not None:
        return load_base(store, fingerprint)
    cards = list_bases(store)
    if not cards:
        raise NotFound(
            "no base model is registered in this store",
            hint="start a node once, or: inference-node base-card > base.json && "
            "adapter-store base add base.json",
        )
    if len(cards) > 1:
        raise InvalidName(
            f"{len(cards)} base models are registered, which one is the adapter for?",
            hint="adapter-store base ls, then push again with --base <fingerprint>",
        )
    return cards[0]


def _show_dry_run(folder: Path, name: str, local: LocalAdapter, *, as_json: bool) -> None:
    total = sum(map(len, local.files.values()))
    if as_json:
        out({"dry_run": True, "adapter": name, "rank": local.spec.rank, "bytes": total})
    else:
        typer.echo(
            f"{folder} is fit to be published as {name}: rank {local.spec.rank} on "
            f"{', '.join(local.spec.target_modules)}, {size(total)}; nothing was sent"
        )


def _show_published(done: Published, *, as_json: bool, files: dict[str, int]) -> None:
    if as_json:
        out(_document(done))
        return
    for name, count in files.items():
        note = "exists" if not done.bytes_sent else "done"
        say(f"{note:7}  {name}  {size(count)}")
    served = f"{done.adapter}@{done.label}  generation {done.gen}  sha256:{done.vdig[:12]}"
    if done.unchanged:
        typer.echo(f"{served}  is served already: nothing to do")
    else:
        verb = "rolled back" if done.kind.value == "rollback" else "published"
        typer.echo(
            f"{verb} {served}  ({size(done.bytes_sent)} sent, {size(done.bytes_reused)} reused)"
        )


def _document(done: Published) -> dict[str, Any]:
    return {
        "tenant": done.tenant,
        "adapter": done.adapter,
        "generation": done.gen,
        "kind": done.kind.value,
        "version": done.label,
        "digest": done.vdig,
        "txid": done.txid,
        "unchanged": done.unchanged,
        "bytes_sent": done.bytes_sent,
        "bytes_reused": done.bytes_reused,
        "requests": done.requests,
    }
