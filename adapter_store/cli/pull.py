"""`pull`: a version as a folder that PEFT loads and `push` takes."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Tenant, out, size, tell
from adapter_store.cli.keys import Trust
from adapter_store.cli.look import Reference
from adapter_store.cli.outcome import LocalFault, next_steps
from adapter_store.cli.references import full_ref
from adapter_store.cli.session import warn_once
from adapter_store.cli.store import open_configured

if TYPE_CHECKING:
    from adapter_store.reader import Resolved


def pull(
    reference: Reference,
    folder: Annotated[
        Path, typer.Argument(help="Where to; must not exist yet.", show_default=False)
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Replace an adapter folder that is there already.")
    ] = False,
    trust: Trust = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Download one version as a folder that PEFT loads, every byte verified.

    The folder appears whole or not at all. Pushing it again changes nothing.

    \b
    Examples:
      adapter-store pull pirate ./pirate
      adapter-store pull pirate@v1 ./pirate-v1 --json
      adapter-store pull pirate@sha256:3f5a9c0d11e2 ./pirate --force
    """
    from adapter_store.bases import load_base
    from adapter_store.layout import check_id
    from adapter_store.reader import Reader
    from adapter_store.validate import check_content

    _check_place(folder, force=force)
    with next_steps():
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        reader = Reader(store, verifier=settings.open_verifier(warn_once()))
        found = reader.resolve(full_ref(store, owner, reference))
        files = reader.fetch(owner, found.version, adapter=found.adapter)
        card = load_base(store, found.version.base)
        check_content(files, config=found.version.config, card_modules=card.modules)
    write_folder(folder, files)
    if json:
        out(_document(found, folder))
    else:
        version = found.version
        tell(
            f"pulled {found.adapter}@{version.label}  generation {found.gen}  "
            f"sha256:{version.vdig[:12]}  {size(version.bytes)} into {folder}"
        )


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` hold exactly `files`, in one step once they are on disk. Raises LocalFault."""
    name = f".{folder.name}.{secrets.token_hex(8)}"
    fresh, old = folder.with_name(f"{name}.new"), folder.with_name(f"{name}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        for file, body in files.items():
            with open(fresh / file, "xb") as opened:
                opened.write(body)
                opened.flush()
                os.fsync(opened.fileno())
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise LocalFault(
            f"{folder} cannot be written: {error.strerror}",
            hint="nothing of it was changed; name a folder you may write, with space left",
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_place(folder: Path, *, force: bool) -> None:
    """Nothing that is there is lost unasked, and never more than an adapter folder."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        return
    if not force:
        raise typer.BadParameter(f"{folder} is there already: name another, or add --force")
    plain = folder.is_dir() and not folder.is_symlink()
    if not plain or not _is_adapter_folder(folder):
        raise typer.BadParameter(
            f"{folder} is no adapter folder, and only such a one is replaced: name another"
        )


def _is_adapter_folder(folder: Path) -> bool:
    """What save_pretrained or a pull may have left: plain files, the config among them."""
    from adapter_store.lora_config import CONFIG_FILE

    entries = list(folder.iterdir())
    plain = all(entry.is_file() for entry in entries)
    return plain and any(entry.name == CONFIG_FILE for entry in entries)


def _document(found: Resolved, folder: Path) -> dict[str, Any]:
    version = found.version
    return {
        "tenant": found.tenant,
        "adapter": found.adapter,
        "version": version.label,
        "generation": found.gen,
        "digest": version.vdig,
        "folder": str(folder),
        "bytes": version.bytes,
        "files": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in version.files],
    }
