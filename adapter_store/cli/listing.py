"""`ls`: every adapter and what it serves, page by page, never all of them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from adapter_store.cli.console import Json, Table, Tenant, out, say, size
from adapter_store.cli.look import record_document
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.published import arms
from adapter_store.cli.session import tenant_option
from adapter_store.cli.store import open_configured
from adapter_store.errors import IntegrityError, NotFound

if TYPE_CHECKING:
    from adapter_store.objects import ObjectStore
    from adapter_store.reader import Reader
    from adapter_store.record import Record

PAGE = 100
"""Adapters a table shows at a time."""
DOCUMENT = 1000
"""Adapters in one JSON document unless --limit says otherwise."""
_THREADS = 8
_COLUMNS = ("ADAPTER", "VERSION", "GENERATION", "DIGEST", "RANK", "SIZE", "PUBLISHED", "NOTE")

Limit = Annotated[
    int | None,
    typer.Option(min=1, help=f"At most so many adapters; with --json {DOCUMENT} when not given."),
]
After = Annotated[
    str | None, typer.Option(help="Go on where a listing ended: the `next` that it gave.")
]


@dataclass(frozen=True, slots=True)
class Page:
    """Some adapters in the store's order, and the token of what follows them."""

    heads: tuple[Record, ...]
    damaged: dict[str, str]
    next: str | None


def ls(limit: Limit = None, after: After = None, tenant: Tenant = None, json: Json = False) -> None:
    """List adapters and what each of them serves.

    \b
    Examples:
      adapter-store ls
      adapter-store ls --limit 50
      adapter-store ls --tenant acme --json
    """
    with next_steps():
        settings, store = open_configured()
        owner = tenant or settings.tenant
        if json:
            limit = limit or DOCUMENT
            following = _print_document(store, owner, limit=limit, after=after)
        else:
            listed = pages(store, owner, size=PAGE, limit=limit, after=after)
            following = _print_table(listed)
    if following is not None:
        more = f"adapter-store ls --limit {limit} --after '{following}'"
        say(f"more: {more}{tenant_option(settings, owner)}")


def _print_document(
    store: ObjectStore, tenant: str, *, limit: int, after: str | None
) -> str | None:
    """One document; the token of what was not asked for."""
    heads: list[Record] = []
    damaged: list[str] = []
    following = None
    for page in pages(store, tenant, size=DOCUMENT, limit=limit, after=after):
        heads += page.heads
        damaged += page.damaged
        following = page.next
    documents = [record_document(head) for head in heads]
    out({"tenant": tenant, "adapters": documents, "damaged": sorted(damaged), "next": following})
    return following


def _print_table(found: Iterator[Page]) -> str | None:
    """Every page as it comes; the token of what was not asked for."""
    table, empty, following = Table(_COLUMNS), True, None
    for page in found:
        for name, reason in page.damaged.items():
            say(f"damaged  {name}: {reason}; see: adapter-store verify {name}")
        if page.heads:
            table.add([_row(head) for head in page.heads])
        empty = empty and not page.heads and not page.damaged
        following = page.next
    if empty:
        say("nothing is published yet: adapter-store push <folder> --name <name>")
    return following


def pages(
    store: ObjectStore,
    tenant: str,
    *,
    size: int,
    limit: int | None = None,
    after: str | None = None,
) -> Iterator[Page]:
    """At most `limit` adapters, at most `size` at a time."""
    from concurrent.futures import ThreadPoolExecutor

    from adapter_store.reader import Reader

    left, token = limit, after
    with ThreadPoolExecutor(_THREADS) as pool:
        while True:
            # A reader remembers every adapter it was asked for, so each page has its own.
            reader = Reader(store)
            wanted = size if left is None else min(size, left)
            listed = reader.adapters_page(tenant, limit=wanted, token=token)
            look = partial(_head, reader, tenant)
            token = listed.next_token
            yield _page(listed.names, tuple(pool.map(look, listed.names)), token)
            left = None if left is None else left - len(listed.names)
            if token is None or left == 0:
                return


def _page(
    names: tuple[str, ...], found: tuple[Record | IntegrityError | None, ...], token: str | None
) -> Page:
    heads = (head for head in found if head is not None and not isinstance(head, IntegrityError))
    pairs = zip(names, found, strict=True)
    damaged = {name: str(error) for name, error in pairs if isinstance(error, IntegrityError)}
    return Page(tuple(heads), damaged, token)


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


def _row(head: Record) -> tuple[object, ...]:
    version = head.active
    if version is None:
        return head.adapter, "-", head.gen, "-", "-", "-", head.time, _note(head)
    rank, moment = version.config.get("r", "-"), head.time
    about = (version.label, head.gen, version.vdig[:12], rank, size(version.bytes), moment)
    return head.adapter, *about, _note(head)


def _note(record: Record) -> str:
    """What stands beside the active version, or why there is none."""
    notes = [f"staged {record.staged.label}"] if record.staged else []
    if record.split:
        notes.append(f"split {arms(record.split)}")
    if record.active is None and record.staged is None:
        notes.append("deleted" if record.versions else "empty")
    return ", ".join(notes)
