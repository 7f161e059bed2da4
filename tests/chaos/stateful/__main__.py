"""Run examples again and print the shortest failing one.

python -m tests.chaos.stateful --seed 7 --examples 125 [--bug NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys

from tests.chaos.stateful.bugs import BUGS
from tests.chaos.stateful.examples import run_examples


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.stateful", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--examples", type=int, required=True)
    parser.add_argument("--bug", choices=sorted(BUGS))
    arguments = parser.parse_args()
    logging.disable()
    with BUGS[arguments.bug]() if arguments.bug else contextlib.nullcontext():
        found = run_examples(arguments.seed, arguments.examples, tell=True)
    print(found.violation or f"no violation in {found.examples} examples: {dict(found.tally)}")
    return 1 if found.violation else 0


if __name__ == "__main__":
    sys.exit(main())
