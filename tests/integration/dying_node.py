"""`inference-node serve` as a process that kills itself in the middle of a swap.

    python -m tests.integration.dying_node POINT FILE [--in-place] --listen HOST:PORT

From when FILE is there it dies by SIGKILL at the next POINT it comes to: `keeping`, when a chunk of
the new version is half written to the disk cache; `copying`, when half of its pages are copied;
`flipping`, when all are, and its name still means the version before. With `--in-place` its cache
has the bug of that name.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference_node.adapters import pool
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Resident
from inference_node.cli import main as inference_node
from tests.chaos.crash_points import writing_in_place
from tests.chaos.io_points import die

KEEPING, COPYING, FLIPPING = POINTS = ("keeping", "copying", "flipping")

Due = Callable[[], bool]


def die_keeping(due: Due) -> None:
    """What was written of the chunk so far is on the disk, and half of it is lost."""
    flush = os.fsync

    def fsync(file: int) -> None:
        if due():
            os.ftruncate(file, os.fstat(file).st_size // 2)
            flush(file)
            die()
        flush(file)

    os.fsync = fsync  # type: ignore[assignment]


def die_copying(due: Due) -> None:
    copy, write = pool._copy, pool.AdapterPool.write
    copies = [0]

    def counted(source: Any, target: Any) -> None:
        copies[0] -= 1
        if not copies[0] and due():
            die()
        copy(source, target)

    def half(self: pool.AdapterPool, staged: Resident, host: Any) -> None:
        """A factor of a page is one copy, so this is in the middle of them all."""
        copies[0] = sum(map(len, staged.pages))
        write(self, staged, host)

    pool._copy = counted
    pool.AdapterPool.write = half  # type: ignore[method-assign]


def die_flipping(due: Due) -> None:
    activate = SlotTable.activate

    def killed(self: SlotTable, *arguments: Any, **options: Any) -> Any:
        if due():
            die()
        return activate(self, *arguments, **options)

    SlotTable.activate = killed  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("point", choices=POINTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--in-place", action="store_true")
    arguments, serve = parser.parse_known_args()
    if arguments.in_place:
        for bug in writing_in_place():
            bug.start()
    deaths = {KEEPING: die_keeping, COPYING: die_copying, FLIPPING: die_flipping}
    deaths[arguments.point](arguments.file.exists)
    sys.argv = ["inference-node", "serve", *serve]
    inference_node()


if __name__ == "__main__":
    main()
