"""One side of a comparison: a version in the store, or a folder that could be pushed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_store.cli.bases import chosen_base
from adapter_store.cli.references import full_ref
from adapter_store.cli.sending import read_folder
from adapter_store.errors import InvalidName, NotFound

if TYPE_CHECKING:
    from adapter_store.objects import ObjectStore
    from adapter_store.validate import AdapterTensors


@dataclass(frozen=True, slots=True)
class Side:
    """Checked content, and what it is called."""

    name: str
    """`name@label`, or the folder as it was given."""
    generation: int | None
    """None for a folder."""
    digest: str
    base: str
    config: Mapping[str, Any]
    """The allow-listed part."""
    content: AdapterTensors


def read_side(store: ObjectStore, tenant: str, text: str, *, base: str | None = None) -> Side:
    """Read and check what `text` names. Raises NotFound, InvalidName, InvalidAdapter, ...

    A folder is checked against `base`, or the only base there is.
    """
    if names_folder(text):
        return _folder(store, Path(text), base)
    try:
        return _version(store, tenant, text)
    except (NotFound, InvalidName) as error:
        if Path(text).is_dir():
            error.hint = f"a folder is named with a slash: ./{text}"
        raise


def names_folder(text: str) -> bool:
    return os.sep in text or text in (os.curdir, os.pardir)


def _version(store: ObjectStore, tenant: str, text: str) -> Side:
    from adapter_store.bases import load_base
    from adapter_store.reader import Reader
    from adapter_store.validate import check_content

    reader = Reader(store)
    found = reader.resolve(full_ref(store, tenant, text))
    version = found.version
    files = reader.fetch(tenant, version, adapter=found.adapter)
    card = load_base(store, version.base)
    content = check_content(files, config=version.config, card_modules=card.modules)
    name = f"{found.adapter}@{version.label}"
    return Side(name, found.gen, version.vdig, version.base, version.config, content)


def _folder(store: ObjectStore, folder: Path, base: str | None) -> Side:
    from adapter_store.draft import local_content
    from adapter_store.validate import check_content

    card = chosen_base(store, base, None)
    local = read_folder(folder, card)
    config = local.spec.allow_listed()
    content = check_content(local.files, config=config, card_modules=card.modules)
    digest = local_content(local, None).vdig
    return Side(str(folder), None, digest, card.fingerprint, config, content)
