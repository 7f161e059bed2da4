"""`inference-node serve` with bugs seeded: `python -m tests.chaos.fleet.node BUG,BUG serve ...`.

Each bug befalls one adapter, the other adapters of a node are well:

by-name: a version is looked for by its adapter's name, and the first that was fetched is found.
no-least: a request's min_generation is dropped, so whatever the node knows of is new enough.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from inference_node.adapters.loader import Loader, Target
from inference_node.adapters.weights import HostAdapter
from inference_node.cli import main
from inference_node.request import Request
from inference_node.rpc import convert
from tests.chaos.fleet.tattoos import name

BY_NAME, NO_LEAST = "by-name", "no-least"
BEFALLEN = {BY_NAME: 0, NO_LEAST: 1}
"""Which adapter."""


def keep_by_name(befallen: str) -> None:
    """What was fetched is remembered under its adapter's name."""
    fetched: dict[str, HostAdapter] = {}
    fetch = Loader._fetch

    def remembered(self: Loader, target: Target) -> HostAdapter:
        asked = target.entry.adapter
        if asked != befallen:
            return fetch(self, target)
        if asked not in fetched:
            fetched[asked] = fetch(self, target)
        return fetched[asked]

    Loader._fetch = remembered  # type: ignore[method-assign]


def drop_min_generation(befallen: str) -> None:
    """Nobody past the door hears of it."""
    to_request = convert.to_request

    def without(*arguments: Any, **named: Any) -> Request:
        request = to_request(*arguments, **named)
        return replace(request, min_generation=0) if request.adapter == befallen else request

    convert.to_request = without


BUGS = {BY_NAME: keep_by_name, NO_LEAST: drop_min_generation}

if __name__ == "__main__":
    for bug in sys.argv.pop(1).split(","):
        BUGS[bug](name(BEFALLEN[bug]))
    main()
