"""Run one seed again, step by step: `python -m tests.chaos.simulation --seed 7 [--bug NAME]`."""

from __future__ import annotations

import argparse
import contextlib
import sys

from tests.chaos.simulation.bugs import BUGS
from tests.chaos.simulation.nodes import without_tensors
from tests.chaos.simulation.run import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--bug", choices=sorted(BUGS))
    arguments = parser.parse_args()
    bug = BUGS[arguments.bug]() if arguments.bug else contextlib.nullcontext()
    with without_tensors(), bug:
        outcome = simulate(arguments.seed, trace=print)
    print(outcome.violation or "no violation")
    return 1 if outcome.violation else 0


if __name__ == "__main__":
    sys.exit(main())
