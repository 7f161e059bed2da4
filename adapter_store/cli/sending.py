"""What `push` and `stage` share: a folder is checked, sent, and what became of it is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from adapter_store.cli.bases import chosen_base
from adapter_store.cli.console import out, say
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.progress import Uploads, display
from adapter_store.cli.published import published_document, tell_published
from adapter_store.cli.session import publishing
from adapter_store.cli.store import open_configured
from adapter_store.errors import InvalidAdapter

if TYPE_CHECKING:
    from adapter_store.commit import Published, Publisher
    from adapter_store.objects import ObjectStore
    from adapter_store.record import BaseCard
    from adapter_store.settings import StoreSettings
    from adapter_store.upload import UploadProgress
    from adapter_store.validate import LocalAdapter

Into = Annotated[str, typer.Option("--name", help="The adapter it is for.", show_default=False)]
Version = Annotated[str | None, typer.Option(help="A label of your own; default: v<generation>.")]
Base = Annotated[
    str | None, typer.Option(help="Fingerprint of the base; default: the only one registered.")
]
Card = Annotated[
    Path | None, typer.Option(help="A file from `inference-node base-card`; it is registered.")
]
Rebase = Annotated[
    bool,
    typer.Option(
        "--rebase/--no-rebase",
        help="When another publisher was faster: go on top of theirs, at most 5 times, or fail.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check, and say what would be sent; write nothing.")
]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A checked folder, and where it goes."""

    command: str
    settings: StoreSettings
    store: ObjectStore
    tenant: str
    adapter: str
    local: LocalAdapter
    card: BaseCard
    card_is_new: bool


@contextmanager
def parcel(
    command: str,
    folder: Path,
    name: str,
    *,
    tenant: str | None,
    base: str | None,
    base_card: Path | None,
    as_json: bool,
) -> Iterator[Parcel]:
    """Reads and checks `folder`; while it lasts, errors name what to run next."""
    from adapter_store.layout import check_id

    rehearsal = f"adapter-store {command} {quote(str(folder))} --name {quote(name)} --dry-run"
    with next_steps({InvalidAdapter: rehearsal}):
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        check_id("adapter", name)
        card = chosen_base(store, base, base_card)
        local = read_folder(folder, card)
        if not as_json and local.ignored:
            say(f"not published: {', '.join(local.ignored)}")
        yield Parcel(command, settings, store, owner, name, local, card, base_card is not None)


def send(
    this: Parcel, change: Callable[[Publisher, UploadProgress], Published], *, as_json: bool
) -> Published:
    """Make `change` with the parcel's content, and say what it did. Raises what it raises."""
    from adapter_store.bases import register_base
    from adapter_store.check import check_store
    from adapter_store.upload import cut

    check_store(this.store)
    if this.card_is_new:
        register_base(this.store, this.card)
    files = cut(this.local.files)
    with display(files, silent=as_json) as shown:
        uploads = Uploads(files, shown)
        with publishing(
            this.settings, this.store, tenant=this.tenant, adapter=this.adapter
        ) as publisher:
            done = change(publisher, uploads)
        uploads.finish()
    show_sent(done, uploads.documents(), command=this.command, as_json=as_json)
    return done


def show_sent(
    done: Published, files: list[dict[str, str | int]], *, command: str, as_json: bool
) -> None:
    same = labels_of_the_same(done)
    if as_json:
        out({**published_document(done), "same_content_as": same, "files": files})
        return
    tell_published(done, command=command)
    if same and not done.unchanged:
        say(f"this is the content of {done.adapter}@{same[0]}, under a label of its own")


def labels_of_the_same(done: Published) -> list[str]:
    """Other labels of this very content, newest first."""
    return [
        entry.label
        for entry in reversed(done.record.versions)
        if entry.vdig == done.vdig and entry.label != done.label
    ]


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
