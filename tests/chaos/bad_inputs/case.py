"""One bad input: how it is offered to the product, and the error that must come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.record import Record
from adapter_store.validate import read_adapter_dir
from tests.adapter_store.publishing import publisher
from tests.chaos.bad_inputs.material import CARD, good_folder

TENANT = "acme"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a case may use; `adapter` and `folder` are its own."""

    store: ObjectStore
    adapter: str
    folder: Path
    readers: Mapping[str, Reader] = field(default_factory=dict)


Prepare = Callable[[Scene], Scene]
Offer = Callable[[Scene], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadInput:
    """Every offer must raise exactly `error`, with `says` in its message."""

    group: str
    what: str
    error: type[Exception]
    says: str
    offers: tuple[Offer, ...]
    prepare: Prepare = lambda scene: scene
    """Runs before anything is measured or counted."""
    spoil: Callable[[Path], object] | None = None
    """Makes a good adapter folder this bad one."""
    forge: Callable[[Record], Mapping[str, bytes]] | None = None
    """What an attacker would put into the bucket, given the adapter's good first record."""


def bad_folder(
    group: str, what: str, error: type[Exception], says: str, spoil: Callable[[Path], Any]
) -> BadInput:
    """A folder, offered to the publisher."""

    def prepare(scene: Scene) -> Scene:
        spoil(good_folder(scene.folder))
        return scene

    def publish(scene: Scene) -> object:
        local = read_adapter_dir(scene.folder, card=CARD)
        return publisher(scene.store).publish(TENANT, scene.adapter, local)

    return BadInput(
        group=group,
        what=what,
        error=error,
        says=says,
        offers=(publish,),
        prepare=prepare,
        spoil=spoil,
    )
