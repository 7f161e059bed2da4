"""One target, guided by coverage: `python -m tests.chaos.fuzz.child TARGET FOLDER [flags]`.

The flags are libFuzzer's.
FOLDER gets the corpus, and `finding` when something was found: what it is, and the input in hex.
With BUG in the environment the target's seeded bug is patched in.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from unittest import mock

import atheris

with atheris.instrument_imports(include=["adapter_store", "inference_node.rpc.convert"]):
    from tests.chaos.fuzz.targets import target


def main() -> None:
    name, folder, *flags = sys.argv[1:]
    chosen, corpus = target(name), Path(folder) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    bugged = bool(os.environ.get("BUG"))
    for number, seed in enumerate(chosen.good if bugged else (*chosen.good, *chosen.bad)):
        (corpus / f"seed-{number:03}").write_bytes(seed)
    for place, instead in (chosen.bug if bugged else {}).items():
        mock.patch(place, instead).start()

    def one(data: bytes) -> None:
        try:
            chosen.examine(data)
        except Exception as error:
            text = f"{type(error).__name__}: {error}\n{data.hex()}\n"
            (Path(folder) / "finding").write_text(text, errors="backslashreplace")
            raise

    def bend(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 3 == 0:
            return bytes(atheris.Mutate(data, max_size))
        return chosen.bend(data, random.Random(seed))[:max_size]

    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=bend)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
