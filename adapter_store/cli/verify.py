"""`verify`: read everything that is served and check it as a node would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Tenant, complain, out, size, tell
from adapter_store.cli.keys import Trust
from adapter_store.cli.outcome import exit_code, next_steps
from adapter_store.cli.references import full_ref
from adapter_store.cli.session import warn_once
from adapter_store.cli.store import open_configured
from adapter_store.errors import IntegrityError, InvalidAdapter, InvalidName, NotFound, StoreError
from adapter_store.layout import log_prefix

if TYPE_CHECKING:
    from adapter_store.objects import ObjectStore
    from adapter_store.reader import Reader, Resolved


def verify(
    reference: Annotated[
        str | None, typer.Argument(help="name, name@version or name@sha256:<digest>.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every adapter of the tenant.")] = False,
    trust: Trust = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Fetch every chunk and check it: digests, structure, fit to its base, the log's hash chain.

    A name stands for what the adapter serves now, staged and canary versions included. With a
    trust file the signatures are checked too, and whoever is not trusted counts as damage.

    \b
    Examples:
      adapter-store verify pirate
      adapter-store verify pirate@v1
      adapter-store verify --all --json
      adapter-store verify pirate --trust trust.toml
    """
    if everything == (reference is not None):
        raise InvalidName("name one adapter, or give --all", hint="adapter-store verify --all")
    with next_steps():
        verification = _Verification(tenant, as_json=json)
        if reference is not None:
            verification.one(reference)
        else:
            verification.all()
    verification.conclude()


class _Verification:
    """A walk over adapters that goes on past damage, to find all of it."""

    def __init__(self, tenant: str | None, *, as_json: bool) -> None:
        from adapter_store.reader import Reader

        settings, self._store = open_configured()
        self._tenant = tenant or settings.tenant
        verifier = settings.open_verifier(warn_once())
        self._reader = Reader(self._store, verifier=verifier)
        self._trusting = verifier is not None
        self._as_json = as_json
        self._verified: list[dict[str, Any]] = []
        self._failed: list[dict[str, str]] = []
        self._worst = 0

    def one(self, reference: str) -> None:
        """Raises NotFound when there is nothing of that name to check."""
        ref = full_ref(self._store, self._tenant, reference)
        if ref.pinned:
            self._check(ref.adapter, [self._reader.resolve(ref)])
        else:
            self._reader.resolve(ref)
            self._check(ref.adapter)

    def all(self) -> None:
        for adapter in self._reader.adapters(self._tenant):
            # Some stores keep listing a folder that was emptied.
            if self._store.list(log_prefix(self._tenant, adapter), limit=1).keys:
                self._check(adapter)

    def conclude(self) -> None:
        """Say what was found; ends with the code of the worst of it."""
        if self._as_json:
            out({"tenant": self._tenant, "verified": self._verified, "failed": self._failed})
        elif not self._verified and not self._failed:
            tell("there is nothing to verify")
        if self._failed:
            raise typer.Exit(self._worst)

    def _check(self, adapter: str, versions: list[Resolved] | None = None) -> None:
        try:
            chosen = served(self._reader, self._tenant, adapter) if versions is None else versions
            records = sum(1 for _ in self._reader.history(self._tenant, adapter))
            for found in chosen:
                _check_content(self._store, self._reader, found)
                self._pass(found, records)
        except (IntegrityError, InvalidAdapter, NotFound) as error:
            self._fail(adapter, error)

    def _pass(self, found: Resolved, records: int) -> None:
        from adapter_store.signing import key_ids

        version = found.version
        self._verified.append(
            {
                "adapter": found.adapter,
                "version": version.label,
                "generation": found.gen,
                "digest": version.vdig,
                "bytes": version.bytes,
                "chunks": sum(len(file.chunks) for file in version.files),
                "records": records,
                "signed_by": list(key_ids(version)),
                "trusted": self._trusting,
            }
        )
        if not self._as_json:
            tell(
                f"ok  {found.adapter}@{version.label}  generation {found.gen}  "
                f"sha256:{version.vdig[:12]}  {size(version.bytes)}, log of {records}, "
                f"{self._signed_by(found)}"
            )

    def _signed_by(self, found: Resolved) -> str:
        from adapter_store.signing import key_ids

        keys = ", ".join(key_ids(found.version))
        if not keys:
            return "unsigned"
        return f"signed by {keys}" + ("" if self._trusting else " (not checked)")

    def _fail(self, adapter: str, error: StoreError) -> None:
        self._worst = max(self._worst, exit_code(error))
        hint = error.hint or f"publish it again: adapter-store push <folder> --name {adapter}"
        kind = type(error).__name__
        self._failed.append({"adapter": adapter, "kind": kind, "message": str(error), "hint": hint})
        if not self._as_json:
            complain(f"{adapter}: {error}", hint)


def served(reader: Reader, tenant: str, adapter: str) -> list[Resolved]:
    """Every version that nodes may be using under the current record."""
    from adapter_store.reader import Resolved

    head = reader.head(tenant, adapter)
    versions = (head.active, head.staged, *(arm.version for arm in head.split))
    distinct = {version.vdig: version for version in versions if version is not None}
    return [
        Resolved(tenant, adapter, head.gen, head.kind, version) for version in distinct.values()
    ]


def _check_content(store: ObjectStore, reader: Reader, found: Resolved) -> None:
    from adapter_store.bases import load_base
    from adapter_store.validate import check_content

    version = found.version
    files = reader.fetch(found.tenant, version, adapter=found.adapter)
    card = load_base(store, version.base)
    check_content(files, config=version.config, card_modules=card.modules)
