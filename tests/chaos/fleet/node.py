"""`inference-node serve` with a bug seeded: `python -m tests.chaos.fleet.node BUG serve ...`.

by-name: a version is looked for by its adapter's name, and the first that was fetched is found.
"""

from __future__ import annotations

import sys

from inference_node.adapters.loader import Loader, Target
from inference_node.adapters.weights import HostAdapter
from inference_node.cli import main


def keep_by_name() -> None:
    """The bug: what was fetched is remembered under its adapter's name."""
    fetched: dict[str, HostAdapter] = {}
    fetch = Loader._fetch

    def remembered(self: Loader, target: Target) -> HostAdapter:
        name = target.entry.adapter
        if name not in fetched:
            fetched[name] = fetch(self, target)
        return fetched[name]

    Loader._fetch = remembered  # type: ignore[method-assign]


BUGS = {"by-name": keep_by_name}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
