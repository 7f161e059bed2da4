"""`show` and `history`: what the store holds of one adapter, without changing it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Name, Tenant, out, size, table, tell
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.published import arms, standing_document
from adapter_store.cli.references import full_ref
from adapter_store.cli.session import tenant_option
from adapter_store.cli.store import open_configured
from adapter_store.errors import NotFound

if TYPE_CHECKING:
    from adapter_store.record import Record

Reference = Annotated[
    str, typer.Argument(help="name, name@version or name@sha256:<digest>.", show_default=False)
]


def show(reference: Reference, tenant: Tenant = None, json: Json = False) -> None:
    """Show one version in full: what it is, what it was trained for, its files.

    \b
    Examples:
      adapter-store show pirate
      adapter-store show pirate@v1 --json
      adapter-store show pirate@sha256:3f5a9c0d11e2
    """
    from adapter_store.layout import parse_ref
    from adapter_store.pins import pins_of
    from adapter_store.reader import Reader
    from adapter_store.signing import key_ids

    name = reference.partition("@")[0]
    with next_steps():
        settings, store = open_configured()
        owner = tenant or settings.tenant
        reader = Reader(store)
        with next_steps({NotFound: "adapter-store ls"}):
            parse_ref(name, tenant=owner)
            head = reader.head(owner, name)
        history = f"adapter-store history {name}{tenant_option(settings, owner)}"
        with next_steps({NotFound: history}):
            found = reader.resolve(full_ref(store, owner, reference), refresh=False)
        pinned = any(pin.vdig == found.version.vdig for pin in pins_of(store, owner, name))
    version = found.version
    document: dict[str, Any] = {
        "tenant": owner,
        "adapter": found.adapter,
        "version": version.label,
        "generation": found.gen,
        "digest": version.vdig,
        "kind": found.kind.value,
        **standing_document(head),
        "pinned": pinned,
        "signed_by": list(key_ids(version)),
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
    if head.staged:
        tell(f"{'staged':15} {head.staged.label}  sha256:{head.staged.vdig}")
    if head.split:
        tell(f"{'split':15} {arms(head.split)}")
    tell(f"{'pinned':15} {'yes' if pinned else 'no'}")
    tell(f"{'signed by':15} {', '.join(key_ids(version)) or '-'}")
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
    from adapter_store.signing import key_ids

    with next_steps():
        settings, store = open_configured()
        owner = tenant or settings.tenant
        check_id("adapter", name)
        records = list(islice(Reader(store).history(owner, name), limit))
    if json:
        documents = [record_document(record) for record in records]
        out({"tenant": owner, "adapter": name, "records": documents})
        return
    table(
        ("GENERATION", "KIND", "VERSION", "DIGEST", "BY", "AT", "SIGNED BY"),
        [
            (
                record.gen,
                record.kind.value,
                *_about(record),
                record.actor,
                record.time,
                ", ".join(key_ids(record)) or "-",
            )
            for record in records
        ],
    )


def _about(record: Record) -> tuple[str, str]:
    """The version a record is about, and its digest."""
    from adapter_store.kinds import subject_of
    from adapter_store.record import RecordKind

    if record.kind is RecordKind.SPLIT:
        return arms(record.split), "-"
    version = subject_of(record, record.kind)
    return (version.label, version.vdig[:12]) if version else ("-", "-")


def record_document(record: Record) -> dict[str, Any]:
    """A record as `ls` and `history` print it with --json."""
    from adapter_store.signing import key_ids

    active = record.active
    return {
        "adapter": record.adapter,
        "version": active.label if active else None,
        "generation": record.gen,
        "digest": active.vdig if active else None,
        "kind": record.kind.value,
        **standing_document(record),
        "base": active.base if active else None,
        "bytes": active.bytes if active else 0,
        "actor": record.actor,
        "time": record.time,
        "signed_by": list(key_ids(record)),
    }
