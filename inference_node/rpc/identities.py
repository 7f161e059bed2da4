"""Callers known by their certificate: which name in it may do what.

The file is TOML, one table for each name; `san` is `dns:` or `uri:` and a subject alternative name
in full. A certificate with several known names counts as the first of them.

    [[identity]]
    san = "dns:checkout.internal"
    tenants = ["acme"]
    adapters = ["support-*"]
    roles = ["generate"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from inference_node.errors import BadConfiguration
from inference_node.rpc.reloaded import read_file
from inference_node.rpc.scopes import NoScope, Scope, parse_scope

Identities = Mapping[str, Scope]
"""By subject alternative name."""


def read_identities(path: Path) -> Identities:
    """Raises BadConfiguration naming the table and the field. No table is fine: nobody is known."""
    try:
        value = tomllib.loads(read_file(path, what="identities file").decode())
    except ValueError as error:
        raise BadConfiguration(f"identities file {path} is not TOML: {error}") from None
    tables = value.pop("identity", [])
    if value or not isinstance(tables, list):
        raise BadConfiguration(f"identities file {path} holds more than [[identity]] tables")
    found: dict[str, Scope] = {}
    for number, table in enumerate(tables, 1):
        where = f"identities file {path}: identity {number}"
        if not isinstance(table, dict):
            raise BadConfiguration(f"{where} is no table")
        san = table.pop("san", None)
        if not isinstance(san, str) or san.partition(":")[0] not in {"dns", "uri"}:
            raise BadConfiguration(f"{where}: san is no text that begins with dns: or uri:")
        if "*" in san or san in found:
            raise BadConfiguration(f"{where}: san {san!r} is a pattern, or there twice")
        try:
            found[san] = parse_scope(table)
        except NoScope as error:
            raise BadConfiguration(f"{where} {error}") from None
    return found


def known_as(names: Iterable[str], identities: Identities) -> str | None:
    """The first of a certificate's names that is known."""
    return next((name for name in names if name in identities), None)
