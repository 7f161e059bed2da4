"""`diff`: what changed from one version to another, down to each module's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Tenant, out, table, tell
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.sides import Side, names_folder, read_side
from adapter_store.cli.store import open_configured
from adapter_store.errors import InvalidName

if TYPE_CHECKING:
    from adapter_store.weight_change import ModuleChange, WeightChange

DEFAULT_TOP = 10


def diff(
    before: Annotated[
        str,
        typer.Argument(help="name@version, name, or ./folder.", show_default=False),
    ],
    after: Annotated[
        str | None,
        typer.Argument(help="The same; default: what BEFORE's adapter serves now."),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="How many modules to list; --json has all.")
    ] = DEFAULT_TOP,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Show what changed: config, rank, modules, and by how much each module's weights.

    A module's change is the Frobenius norm of the difference of its products scale * B @ A, as a
    share of the norm before: 0 % is the same function, 141 % is unrelated and equally strong.
    A folder is checked as a push would check it.

    \b
    Examples:
      adapter-store diff pirate@v1 pirate@v2
      adapter-store diff pirate@v1
      adapter-store diff pirate ./pirate-next --json
    """
    from adapter_store.layout import check_id
    from adapter_store.weight_change import weight_change

    with next_steps():
        if after is None and names_folder(before):
            raise InvalidName(
                f"what should {before} be compared with?",
                hint=f"adapter-store diff {before} <name>",
            )
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        second = before.partition("@")[0] if after is None else after
        first = None if names_folder(before) else read_side(store, owner, before)
        new = read_side(store, owner, second, base=first.base if first else None)
        old = first or read_side(store, owner, before, base=new.base)
    changes = weight_change(old.content, new.content)
    if json:
        out(_document(owner, old, new, changes))
    else:
        _tell(old, new, changes, top)


def _document(tenant: str, old: Side, new: Side, changes: WeightChange) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "before": _side(old),
        "after": _side(new),
        "same_content": old.digest == new.digest,
        "config": {
            key: {"before": a, "after": b} for key, (a, b) in _config_changes(old, new).items()
        },
        "modules": [_module(one, "changed") for one in changes.common],
        "modules_added": [_module(one, "added") for one in changes.added],
        "modules_removed": [_module(one, "removed") for one in changes.removed],
        "total": {
            "before": changes.total.before,
            "after": changes.total.after,
            "change": changes.total.change,
            "relative": changes.total.relative,
        },
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "generation": side.generation,
        "digest": side.digest,
        "base": side.base,
        "rank": side.content.spec.rank,
        "alpha": side.content.spec.alpha,
        "scale": side.content.spec.scale,
        "dtype": side.content.dtype,
        "modules": len(side.content.modules),
    }


def _module(one: ModuleChange, state: str) -> dict[str, Any]:
    return {
        "module": one.module,
        "state": state if state != "changed" or one.change else "same",
        "before": one.before,
        "after": one.after,
        "change": one.change,
        "relative": one.relative,
    }


def _config_changes(old: Side, new: Side) -> dict[str, tuple[Any, Any]]:
    """What differs, by key: the config, and what stands beside it."""
    keys = dict.fromkeys((*old.config, *new.config))
    pairs = {key: (old.config.get(key), new.config.get(key)) for key in keys}
    pairs["base"] = (old.base, new.base)
    pairs["dtype"] = (old.content.dtype, new.content.dtype)
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def _tell(old: Side, new: Side, changes: WeightChange, top: int) -> None:
    for sign, side in (("-", old), ("+", new)):
        spec = side.content.spec
        where = "" if side.generation is None else f"  generation {side.generation}"
        tell(
            f"{sign} {side.name}{where}  sha256:{side.digest[:12]}  rank {spec.rank}, "
            f"scale {spec.scale:g}, {len(side.content.modules)} modules, {side.content.dtype}"
        )
    if old.digest == new.digest:
        tell("the same content")
        return
    for key, (a, b) in _config_changes(old, new).items():
        tell(f"{key}: {_value(a)} -> {_value(b)}")
    _tell_modules("added", changes.added, top)
    _tell_modules("removed", changes.removed, top)
    tell(f"weights: {_share(changes.total)} of all modules together")
    if changes.common:
        table(
            ("MODULE", "CHANGE", "NORM BEFORE", "NORM AFTER"),
            [
                (one.module, _share(one), f"{one.before:.4g}", f"{one.after:.4g}")
                for one in changes.common[:top]
            ],
        )
    if len(changes.common) > top:
        tell(f"... and {len(changes.common) - top} more that changed less: --top, --json")


def _tell_modules(what: str, modules: tuple[ModuleChange, ...], top: int) -> None:
    if modules:
        names = sorted(one.module for one in modules)
        more = f", ... {len(names) - top} more" if len(names) > top else ""
        tell(f"modules {what}: {len(names)}: {', '.join(names[:top])}{more}")


def _share(one: ModuleChange) -> str:
    return "from nothing" if one.relative is None else f"{100 * one.relative:.3g} %"


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
