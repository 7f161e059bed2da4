"""Checks every kernel of the GPU path, then measures it: `python -m benchmarks.gpu`.

Needs torch, triton, transformers and bitsandbytes; PEFT where it is to be compared. No model, no
store, no network: weights are random. The result file is written after every figure, so a run
that is cut short keeps what it had. A row that fails is a row that says so; where it took the
device with it, the rows after it are measured by a new process. `--device cpu --tiny` runs the same
code without a card, in Triton's interpreter, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import platform
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "gpu.json"
GRACE = 20.0
"""Seconds past `--seconds` after which a row that does not end is ended with the process."""
PACKAGES = ("torch", "triton", "transformers", "bitsandbytes", "peft")


def main() -> int:
    options = _options()
    if options.device == "cpu":
        # Triton decides when it is first imported, which torch does.
        os.environ["TRITON_INTERPRET"] = "1"
    began = time.monotonic()
    faulthandler.dump_traceback_later(options.seconds + GRACE, exit=True)
    from benchmarks.gpu.run import LOST, run

    status = run(options, about=_about(options))
    if status == LOST:
        left = max(0.0, options.seconds - (time.monotonic() - began))
        own = [argument for argument in sys.argv[1:] if argument != "--go-on"]
        again = [*own, "--go-on", "--seconds", f"{left:.0f}"]
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *again])
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights")
    parser.add_argument("--size", default="8b", choices=("8b", "1b"), help="the model's shape")
    parser.add_argument("--seconds", type=float, default=480, help="no row starts after this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the result file")
    parser.add_argument("--go-on", action="store_true", help="keep what the result file has")
    parser.add_argument("--rows", default="", help="names of rows, with commas; all if left out")
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu needs --tiny: a real shape takes days there")
    return options


def _about(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "size": "tiny" if options.tiny else options.size,
        "device": options.device,
        "python": platform.python_version(),
        "versions": dict(_versions(PACKAGES)),
    }


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "absent"


if __name__ == "__main__":
    sys.exit(main())
