"""`ls`, `show` and `history`: what the store holds, without changing it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Name, Tenant, out, say, size, table, tell
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.references import full_ref
from adapter_store.cli.session import tenant_option
from adapter_store.cli.store import open_configured
from adapter_store.errors import IntegrityError, NotFound

if TYPE_CHECKING:
    from adapter_store.reader import Reader
    from adapter_store.record import Record

_THREADS = 8

Reference = Annotated[
    str, typer.Argument(help="name, name@version or name@sha256:<digest>.", show_default=False)
]


def ls(tenant: Tenant = None, json: Json = False) -> None:
    """List adapters and what each of them serves.

    \b
    Examples:
      adapter-store ls
      adapter-store ls --tenant acme --json
    """
    from concurrent.futures import ThreadPoolExecutor

    from adapter_store.reader import Reader

    with next_steps():
        settings, store = open_configured()
        owner, reader = tenant or settings.tenant, Reader(store)
        names = list(reader.adapters(owner))
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda name: _head(reader, owner, name), names))
    heads = [head for head in found if head is not None and not isinstance(head, IntegrityError)]
    damaged = {
        name: str(error)
        for name, error in zip(names, found, strict=True)
        if isinstance(error, IntegrityError)
    }
    if json:
        documents = [_document(head) for head in heads]
        out({"tenant": owner, "adapters": documents, "damaged": sorted(damaged)})
        return
    for name, reason in damaged.items():
        say(f"damaged  {name}: {reason}; see: adapter-store verify {name}")
    if not heads and not damaged:
        say("nothing is published yet: adapter-store push <folder> --name <name>")
    if heads:
        columns = ("ADAPTER", "VERSION", "GENERATION", "DIGEST", "RANK", "SIZE", "PUBLISHED")
        table(columns, [_row(head) for head in heads])


def show(reference: Reference, tenant: Tenant = None, json: Json = False) -> None:
    """Show one version in full: what it is, what it was trained for, its files.

    \b
    Examples:
      adapter-store show pirate
      adapter-store show pirate@v1 --json
      adapter-store show pirate@sha256:3f5a9c0d11e2
    """
    from adapter_store.reader import Reader

    name = reference.partition("@")[0]
    with next_steps():
        settings, store = open_configured()
        owner = tenant or settings.tenant
        step = _after_not_found(reference, name, tenant_option(settings, owner))
        with next_steps({NotFound: step}):
            found = Reader(store).resolve(full_ref(store, owner, reference))
    version = found.version
    document: dict[str, Any] = {
        "tenant": owner,
        "adapter": found.adapter,
        "version": version.label,
        "generation": found.gen,
        "digest": version.vdig,
        "kind": found.kind.value,
        "base": version.base,
        "config": dict(version.config),
        "files": [
            {"name": f.name, "size": f.size, "sha256": f.sha256, "chunks": len(f.chunks)}
            for f in version.files
        ],
    }
    if json:
        out(document)
        return
    for key in ("tenant", "adapter", "version", "generation", "kind"):
        tell(f"{key:15} {document[key]}")
    tell(f"{'digest':15} sha256:{version.vdig}")
    tell(f"{'base':15} {version.base}")
    for key, value in version.config.items():
        tell(f"{key:15} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    for file in version.files:
        tell(f"{'file':15} {file.name}  {size(file.size)}  sha256:{file.sha256}")


def history(
    name: Name,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest so many.")] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """List every commit of an adapter, newest first; the hash chain is checked on the way.

    \b
    Examples:
      adapter-store history pirate
      adapter-store history pirate --limit 10 --json
    """
    from adapter_store.layout import check_id
    from adapter_store.reader import Reader

    with next_steps():
        settings, store = open_configured()
        owner = tenant or settings.tenant
        check_id("adapter", name)
        records = list(islice(Reader(store).history(owner, name), limit))
    if json:
        documents = [_document(record) for record in records]
        out({"tenant": owner, "adapter": name, "records": documents})
        return
    table(
        ("GENERATION", "KIND", "VERSION", "DIGEST", "BY", "AT"),
        [
            (
                record.gen,
                record.kind.value,
                record.active.label if record.active else "-",
                record.active.vdig[:12] if record.active else "-",
                record.actor,
                record.time,
            )
            for record in records
        ],
    )


def _head(reader: Reader, tenant: str, name: str) -> Record | IntegrityError | None:
    """The current record; a damaged log is an answer too, it must not hide the other adapters.

    None for a name without a log: some stores keep listing a folder that was emptied.
    """
    try:
        return reader.head(tenant, name)
    except NotFound:
        return None
    except IntegrityError as error:
        return error


def _after_not_found(reference: str, name: str, option: str) -> str:
    """Whoever asked for one version of an adapter wants to see the others."""
    return f"adapter-store history {name}{option}" if "@" in reference else "adapter-store ls"


def _row(head: Record) -> tuple[object, ...]:
    version = head.active
    if version is None:
        return head.adapter, "-", head.gen, "-", "-", "-", head.time
    rank = version.config.get("r", "-")
    digest = version.vdig[:12]
    return head.adapter, version.label, head.gen, digest, rank, size(version.bytes), head.time


def _document(record: Record) -> dict[str, Any]:
    active = record.active
    return {
        "adapter": record.adapter,
        "version": active.label if active else None,
        "generation": record.gen,
        "digest": active.vdig if active else None,
        "kind": record.kind.value,
        "base": active.base if active else None,
        "bytes": active.bytes if active else 0,
        "actor": record.actor,
        "time": record.time,
    }
