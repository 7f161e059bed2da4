"""`inference-node serve` with a bug: python -m tests.chaos.soak.node BUG --listen HOST:PORT."""

from __future__ import annotations

import sys

from inference_node.cli import main as inference_node
from tests.chaos.soak.bugs import CONTROLS


def main() -> None:
    with CONTROLS[sys.argv[1]]():
        sys.argv = ["inference-node", "serve", *sys.argv[2:]]
        inference_node()


if __name__ == "__main__":
    main()
