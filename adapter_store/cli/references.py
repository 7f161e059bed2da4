"""Digests as people copy them: from eight hex digits on, as long as they mean one version."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from adapter_store.errors import InvalidName, NotFound

if TYPE_CHECKING:
    from adapter_store.layout import AdapterRef
    from adapter_store.objects import ObjectStore

_SHORT = re.compile(r"sha256:([0-9a-f]{8,63})")


def full_ref(store: ObjectStore, tenant: str, text: str) -> AdapterRef:
    """`name`, `name@version`, `name@sha256:<digest>`. Raises InvalidName, NotFound."""
    from adapter_store.layout import parse_ref

    name, at, selector = text.partition("@")
    parse_ref(name, tenant=tenant)
    return parse_ref(
        f"{name}{at}{full_selector(store, tenant, name, selector)}" if at else name, tenant=tenant
    )


def full_selector(store: ObjectStore, tenant: str, adapter: str, selector: str) -> str:
    """`selector` itself, or the one digest among the adapter's versions that it begins."""
    short = _SHORT.fullmatch(selector)
    if short is None:
        return selector
    from adapter_store.reader import Reader

    head = Reader(store).head(tenant, adapter)
    known = {entry.vdig for entry in head.versions} | {v.vdig for v in head.contents()}
    found = sorted(vdig for vdig in known if vdig.startswith(short[1]))
    if not found:
        raise NotFound(
            f"no version of {adapter} has a digest that begins with {short[1]}",
            hint=f"adapter-store history {adapter}",
        )
    if len(found) > 1:
        raise InvalidName(
            f"{len(found)} versions of {adapter} have digests that begin with {short[1]}",
            hint=f"give more digits: adapter-store history {adapter} --json",
        )
    return f"sha256:{found[0]}"
