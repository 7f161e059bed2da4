"""Which settings are in force and where each comes from; never what a secret is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from adapter_store.cli.doctor import Setting
from adapter_store.errors import StoreUnavailable
from adapter_store.settings import STACK_FILE, STATE_DIR, StoreSettings, load_settings
from inference_node.cli.settings import PREFIX, Configuration


def effective(configuration: Configuration) -> Iterator[Setting]:
    """Every setting of the node and of its store. Raises InvalidSetting for one of the store's."""
    yield from _shown(configuration.node, configuration.sources)
    try:
        store = load_settings(given=configuration.store)
    except StoreUnavailable:
        known = dict(configuration.store)
        store = StoreSettings.model_validate(known)
    stack = dict.fromkeys(store.model_fields_set, str(STATE_DIR / STACK_FILE))
    yield from _shown(store, stack | dict(configuration.sources))


def _shown(settings: BaseSettings, sources: Mapping[str, str]) -> Iterator[Setting]:
    for name in sorted(type(settings).model_fields):
        yield Setting(
            f"{PREFIX}{name.upper()}", _told(getattr(settings, name)), sources.get(name, "default")
        )


def _told(value: object) -> str:
    if isinstance(value, SecretStr):
        return "set, not shown"
    return "not set" if value is None or value == "" else str(value)
