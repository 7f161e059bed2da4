"""`push`: check a folder and make it what an adapter serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.bases import chosen_base
from adapter_store.cli.change import ExpectGen, published_document, tell_published
from adapter_store.cli.console import Json, Tenant, out, say, size, tell
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.progress import Uploads, display
from adapter_store.cli.session import publishing
from adapter_store.cli.store import open_configured
from adapter_store.errors import InvalidAdapter, NotFound

if TYPE_CHECKING:
    from adapter_store.objects import ObjectStore
    from adapter_store.record import BaseCard, Record
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
            _show(_rehearse(store, owner, name, local, label=version), local, as_json=json)
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
    if json:
        out({**published_document(done), "files": uploads.documents()})
    else:
        tell_published(done)


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


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """What a push would do now."""

    tenant: str
    adapter: str
    label: str | None
    vdig: str
    current: Record | None
    bytes_to_send: int

    @property
    def unchanged(self) -> bool:
        active = self.current.active if self.current else None
        return (
            active is not None
            and active.vdig == self.vdig
            and self.label in (None, active.label)
            and not self.bytes_to_send
        )


def _rehearse(
    store: ObjectStore, tenant: str, adapter: str, local: LocalAdapter, *, label: str | None
) -> _Rehearsal:
    from adapter_store.draft import local_content
    from adapter_store.layout import blob_prefix
    from adapter_store.reader import Reader
    from adapter_store.upload import holds

    content = local_content(local, label)
    try:
        current = Reader(store).head(tenant, adapter)
    except NotFound:
        current = None
    distinct = {chunk.sha256: chunk for file in content.files for chunk in file.chunks}
    missing = [
        chunk.length
        for chunk in distinct.values()
        if not any(
            holds(store, key, chunk) for key in store.list(blob_prefix(tenant, chunk.sha256)).keys
        )
    ]
    return _Rehearsal(tenant, adapter, label, content.vdig, current, sum(missing))


def _show(plan: _Rehearsal, local: LocalAdapter, *, as_json: bool) -> None:
    generation = plan.current.gen if plan.current else 0
    total = sum(map(len, local.files.values()))
    if as_json:
        document: dict[str, Any] = {
            "dry_run": True,
            "tenant": plan.tenant,
            "adapter": plan.adapter,
            "version": plan.label,
            "digest": plan.vdig,
            "base": local.base,
            "rank": local.spec.rank,
            "target_modules": list(local.spec.target_modules),
            "current_generation": generation,
            "unchanged": plan.unchanged,
            "bytes": total,
            "bytes_to_send": plan.bytes_to_send,
        }
        out(document)
        return
    what = f"{plan.adapter}@{plan.label}" if plan.label else plan.adapter
    tell(
        f"fit to publish as {what}  after generation {generation}  sha256:{plan.vdig[:12]}  "
        f"rank {local.spec.rank} on {', '.join(local.spec.target_modules)}"
    )
    if plan.unchanged:
        tell("it is served already: a push would change nothing")
    else:
        tell(f"a push would send {size(plan.bytes_to_send)} of {size(total)}; nothing was written")
