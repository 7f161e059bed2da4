"""The tattoo soak, row T11, and how far it is: `python -m tests.chaos.soak [--answers 36000]`.

Every few seconds a line on stderr says how far it is; the row goes to benchmarks/results/edge.json
as `python -m tests.chaos` writes it, or to --out. Exits with 1 when a promise was broken or a
control was missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.chaos.registry import entry
from tests.chaos.results import books_of, kept, measured, write
from tests.chaos.tattoo_soak import ANSWERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--answers", type=int, default=36_000, help="6,000 is the short form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", action="store_true", help="print the row, and only that, on stdout"
    )
    parser.add_argument("--out", type=Path, help="write it there instead")
    arguments = parser.parse_args()
    row = entry("T11")
    lines = sys.stderr if arguments.json else sys.stdout

    def say(line: str) -> None:
        print(line, file=lines, flush=True)

    found = measured(row, arguments.answers / ANSWERS, arguments.seed, say=say)
    for out, rows in books_of([row], [found], arguments.out).items():
        write(out, [*rows, *kept(out, [row])])
    if arguments.json:
        print(json.dumps(found, indent=2))
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
