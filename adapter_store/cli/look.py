"""`ls`, `show`, `history` and `verify`: what the store holds, without changing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Tenant, out, say, size, table

if TYPE_CHECKING:
    from adapter_store.layout import AdapterRef
    from adapter_store.objects import ObjectStore
    from adapter_store.reader import Reader
    from adapter_store.record import Record, VersionRef

_THREADS = 8

Reference = Annotated[
    str, typer.Argument(help="name, name@version or name@sha256:<digest>.", show_default=False)
]


def ls(tenant: Tenant = None, json: Json = False) -> None:
    """List adapters and what each of them serves."""
    from concurrent.futures import ThreadPoolExecutor

    reader, owner = _reader(tenant)
    names = list(reader.adapters(owner))
    with ThreadPoolExecutor(_THREADS) as pool:
        heads = list(pool.map(lambda name: reader.head(owner, name), names))
    if json:
        out({"tenant": owner, "adapters": [_summary(head) for head in heads]})
        return
    if not heads:
        say("nothing is published yet: adapter-store push <folder> --name <name>")
        return
    rows = [
        (h.adapter, h.active.label, h.gen, _rank(h.active), size(h.active.bytes), h.time)
        if h.active
        else (h.adapter, "-", h.gen, "-", "-", h.time)
        for h in heads
    ]
    table(("ADAPTER", "VERSION", "GENERATION", "RANK", "SIZE", "PUBLISHED"), rows)


def show(reference: Reference, tenant: Tenant = None, json: Json = False) -> None:
    """Show one version in full: what it is, what it was trained for, its files.

    Example: adapter-store show pirate@v1
    """
    from adapter_store.layout import parse_ref

    reader, owner = _reader(tenant)
    found = reader.resolve(parse_ref(reference, tenant=owner))
    version = found.version
    document = {
        "tenant": owner,
        "adapter": found.adapter,
        "generation": found.gen,
        "kind": found.kind.value,
        "version": version.label,
        "digest": version.vdig,
        "base": version.base,
        "config": dict(version.config),
        "files": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in version.files],
    }
    if json:
        out(document)
        return
    for key in ("adapter", "version", "generation", "kind", "digest", "base"):
        typer.echo(f"{key:11} {document[key]}")
    for key, value in version.config.items():
        typer.echo(f"{key:11} {', '.join(value) if isinstance(value, list) else value}")
    for file in version.files:
        typer.echo(f"{'file':11} {file.name}  {size(file.size)}  sha256:{file.sha256[:12]}")


def history(
    name: Annotated[str, typer.Argument(help="The adapter's name.", show_default=False)],
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """List every commit of an adapter, newest first; the hash chain is checked on the way."""
    reader, owner = _reader(tenant)
    records = list(reader.history(owner, name))
    if json:
        out({"tenant": owner, "adapter": name, "records": [_summary(r) for r in records]})
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


def verify(
    reference: Annotated[
        str | None, typer.Argument(help="name, name@version or name@sha256:<digest>.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every adapter.")] = False,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Fetch every byte and check it: digests, structure, fit to the base, the log's hash chain."""
    from adapter_store.errors import InvalidName
    from adapter_store.layout import parse_ref
    from adapter_store.reader import Reader

    if everything == (reference is not None):
        raise InvalidName("name one adapter, or give --all", hint="adapter-store verify --all")
    store, owner = _open(tenant)
    reader = Reader(store)
    names = list(reader.adapters(owner)) if everything else [str(reference)]
    checked = []
    for name in names:
        checked.append(_verify(store, reader, parse_ref(name, tenant=owner)))
        if not json:
            last = checked[-1]
            typer.echo(
                f"ok  {last['adapter']}@{last['version']}  generation {last['generation']}  "
                f"{size(last['bytes'])}  {last['records']} records"
            )
    if json:
        out({"tenant": owner, "verified": checked})


def _verify(store: ObjectStore, reader: Reader, ref: AdapterRef) -> dict[str, Any]:
    from adapter_store.bases import load_base
    from adapter_store.validate import check_content

    found = reader.resolve(ref)
    version = found.version
    files = reader.fetch(ref.tenant, version, adapter=found.adapter)
    card = load_base(store, version.base)
    check_content(files, config=version.config, card_modules=card.modules)
    return {
        "adapter": found.adapter,
        "version": version.label,
        "generation": found.gen,
        "digest": version.vdig,
        "bytes": version.bytes,
        "records": sum(1 for _ in reader.history(ref.tenant, found.adapter)),
    }


def _open(tenant: str | None) -> tuple[ObjectStore, str]:
    from adapter_store.settings import load_settings

    settings = load_settings()
    return settings.open_store(), tenant or settings.tenant


def _reader(tenant: str | None) -> tuple[Reader, str]:
    from adapter_store.reader import Reader

    store, owner = _open(tenant)
    return Reader(store), owner


def _summary(record: Record) -> dict[str, Any]:
    active = record.active
    return {
        "adapter": record.adapter,
        "generation": record.gen,
        "kind": record.kind.value,
        "version": active.label if active else None,
        "digest": active.vdig if active else None,
        "base": active.base if active else None,
        "bytes": active.bytes if active else 0,
        "actor": record.actor,
        "time": record.time,
    }


def _rank(version: VersionRef) -> Any:
    return version.config.get("r", "-")
