"""`rollback`, `activate`, `split` and `delete`: changes that send no content."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from adapter_store.cli.console import Json, Name, Tenant, printable
from adapter_store.cli.keys import SignKey
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.published import ExpectGen, show_published
from adapter_store.cli.readiness import (
    NoWait,
    Patience,
    QuorumOption,
    Timeout,
    await_ready,
    say_who_kept,
)
from adapter_store.cli.references import full_selector
from adapter_store.cli.session import publishing, tenant_option
from adapter_store.cli.store import open_configured
from adapter_store.errors import Conflict, InvalidSplit, NotFound

if TYPE_CHECKING:
    from adapter_store.commit import Publisher
    from adapter_store.objects import ObjectStore
    from adapter_store.record import Record
    from adapter_store.settings import StoreSettings


def rollback(
    name: Name,
    to: Annotated[
        str | None,
        typer.Option(help="A version label or sha256:<digest>; default: what was served before."),
    ] = None,
    expect_gen: ExpectGen = None,
    sign_key: SignKey = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Serve an older version again, under a new and higher generation.

    It waits for no node: those that served the version have kept it, and say so. Ends a split and
    a staging. During a split the default is the version that callers without an
    affinity key get.

    \b
    Examples:
      adapter-store rollback pirate
      adapter-store rollback pirate --to v1
      adapter-store rollback pirate --to sha256:3f5a9c0d11e2
    """
    with changing(name, tenant) as at:
        selector = None if to is None else at.selector(to)
        done = at.publisher.rollback(at.tenant, name, to=selector, expect_gen=expect_gen)
    show_published(done, command="rollback", as_json=json)
    if not json:
        say_who_kept(at.settings, done)


def activate(
    name: Name,
    version: Annotated[
        str | None,
        typer.Option(help="A version label or sha256:<digest>; default: what is staged."),
    ] = None,
    quorum: QuorumOption = None,
    timeout: Timeout = 60.0,
    no_wait: NoWait = False,
    expect_gen: ExpectGen = None,
    sign_key: SignKey = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Serve what is staged, or any version of the log, to everybody; nothing is sent.

    It waits until the nodes that hold the adapter have the version in memory, then one record
    flips them all: within a second of each other, or of a poll where there is no Redis. When too
    few are ready in time nothing is activated, and the message says who is not and why. A node
    that dies meanwhile is not waited for once its lease of 10 seconds has ended. A version that is
    neither staged nor an arm of a split is not fetched ahead, and so not waited for.

    Ends a split and a staging: naming an arm of a split promotes it.

    \b
    Examples:
      adapter-store activate pirate
      adapter-store activate pirate --quorum 80% --timeout 20
      adapter-store activate pirate --no-wait
      adapter-store activate pirate --version v2
      adapter-store activate pirate --version v2 --expect-gen 7 --json
    """
    staging = f"adapter-store stage <folder> --name {name}"
    with changing(name, tenant, not_found="" if version else staging) as at:
        label = None if version is None else at.selector(version)
        watched = await_ready(
            at.settings,
            at.store,
            at.tenant,
            name,
            label=label,
            patience=Patience(quorum, timeout, wait=not no_wait),
            silent=json,
        )
        if watched is not None and expect_gen is None:
            # What was waited for is what is served, or nothing: others may stage meanwhile.
            expect_gen = watched.gen
        done = at.publisher.activate(at.tenant, name, label=label, expect_gen=expect_gen)
    if watched is not None:
        watched.confirm(done.gen)
    nodes = None if watched is None else watched.document()
    show_published(done, command="activate", as_json=json, more={"nodes": nodes})
    if watched is not None and not json:
        watched.say()


def split(
    name: Name,
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="VERSION=PARTS...",
            help="2 to 8 versions of the log and their parts of the traffic.",
            show_default=False,
        ),
    ],
    expect_gen: ExpectGen = None,
    sign_key: SignKey = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Serve several versions side by side, each to its share of the callers: a canary.

    A caller with an affinity key always gets the same version, and raising one weight moves
    callers to that version only. A caller without a key gets the active version, which stays what
    it was. `canary` watches how the arms do. Promote an arm with `activate --version`, take the
    split back with `rollback`.

    \b
    Examples:
      adapter-store split pirate v1=95 v2=5
      adapter-store split pirate v1=50 v2=50
      adapter-store activate pirate --version v2
    """
    asked = [_part(part) for part in parts]
    with changing(name, tenant) as at:
        weights = {at.selector(one.version): one.weight for one in asked}
        if len(weights) < len(asked):
            raise InvalidSplit("a version is named twice")
        done = at.publisher.split(at.tenant, name, weights, expect_gen=expect_gen)
    show_published(done, command="split", as_json=json)


def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    expect_gen: ExpectGen = None,
    sign_key: SignKey = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Serve nothing under this name any more; requests that run finish.

    The log and its labels stay: push to serve something again, or roll back while the content is
    kept. On a terminal you are asked to type the name.

    \b
    Examples:
      adapter-store delete pirate
      adapter-store delete pirate --yes --expect-gen 7
    """
    if not yes:
        _confirm(name)
    with changing(name, tenant) as at:
        done = at.publisher.delete(at.tenant, name, expect_gen=expect_gen)
    show_published(done, command="delete", as_json=json)


@dataclass(frozen=True, slots=True)
class Change:
    """One adapter about to be changed."""

    settings: StoreSettings
    publisher: Publisher
    store: ObjectStore
    tenant: str
    adapter: str

    def head(self) -> Record:
        """The newest record. Raises NotFound."""
        from adapter_store.reader import Reader

        return Reader(self.store).head(self.tenant, self.adapter)

    def selector(self, text: str) -> str:
        """A label or digest in full. Raises InvalidName, NotFound."""
        return full_selector(self.store, self.tenant, self.adapter, text)


@contextmanager
def changing(name: str, tenant: str | None, *, not_found: str = "") -> Iterator[Change]:
    """`not_found` is what to run next when something is missing, if not to read the history."""
    from adapter_store.check import check_store
    from adapter_store.layout import check_id

    with next_steps():
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        check_id("adapter", name)
        check_store(store)
        history = f"adapter-store history {name}{tenant_option(settings, owner)}"
        with (
            publishing(settings, store, tenant=owner, adapter=name) as publisher,
            next_steps({Conflict: history, NotFound: not_found or history}),
        ):
            yield Change(settings, publisher, store, owner, name)


@dataclass(frozen=True, slots=True)
class _Part:
    version: str
    weight: int


def _part(text: str) -> _Part:
    version, equals, weight = text.rpartition("=")
    if not equals or not version or not (weight.isascii() and weight.isdigit()):
        raise InvalidSplit(f"{text!r} is not VERSION=PARTS")
    return _Part(version, int(weight[:9]))


def _confirm(name: str) -> None:
    """Raises a usage error unless somebody types the name."""
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody can be asked here: add --yes to delete")
    question = f"Requests for {printable(name)} will find nothing. Type its name to delete it: "
    typer.echo(question, nl=False, err=True)
    typed = sys.stdin.readline().strip()
    if typed != name:
        raise typer.BadParameter(f"{typed!r} is not {name!r}: nothing was deleted")
