"""Generate `inference_node/pb` from the protos; `--check` only says whether it is up to date.

`baseline.binpb` is the contract as it last landed, committed so that `buf breaking` needs no
history. It follows every change that breaks no caller; to break one on purpose, delete it.

The include root `inference_node/pb` is a name for this folder alone: protoc writes and imports
modules by a file's path under its include root, so `inference_pb2.py` lands in, and is imported
from, `inference_node.pb.lorapool.v1` with no rewriting afterwards.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROTOS = Path(__file__).resolve().parent
PACKAGE = "inference_node/pb"
BASELINE = PROTOS / "baseline.binpb"
COMPILER = "1.74.0"
"""The newest grpcio-tools whose code loads on protobuf 6 as well as 7."""


def sources() -> list[str]:
    return sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def generate(out: Path) -> list[Path]:
    """Write the generated modules under `out`; returns their paths relative to it."""
    if version("grpcio-tools") != COMPILER:
        raise SystemExit(f"grpcio-tools {COMPILER} is needed, not {version('grpcio-tools')}")
    # protoc finds mypy-protobuf's plugins beside this interpreter, venv activated or not.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    }
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PACKAGE}={PROTOS}"]
    command += [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    subprocess.run(
        [*command, *(f"{PACKAGE}/{source}" for source in sources())], check=True, env=environment
    )
    return sorted(path.relative_to(out) for path in out.rglob("*_pb2*"))


def image(target: Path) -> bytes:
    """The contract as one file, comments left out."""
    _buf("build", "--exclude-source-info", "-o", str(target))
    return target.read_bytes()


def _buf(*arguments: str) -> None:
    program = Path(sys.executable).parent / "buf"
    if subprocess.run([program, *arguments], check=False, cwd=REPOSITORY).returncode:
        raise SystemExit(f"buf {arguments[0]} refused the protos")


def differences(out: Path, made: list[Path]) -> list[str]:
    committed = {
        path.relative_to(REPOSITORY) for path in (REPOSITORY / PACKAGE).rglob("*_pb2*.py*")
    }
    committed = {path for path in committed if "__pycache__" not in path.parts}
    changed = [
        path
        for path in made
        if path in committed and not filecmp.cmp(out / path, REPOSITORY / path, shallow=False)
    ]
    return sorted(
        [f"changed: {path}" for path in changed]
        + [f"missing: {path}" for path in set(made) - committed]
        + [f"left over: {path}" for path in committed - set(made)]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        if BASELINE.exists():
            _buf("breaking", "--against", str(BASELINE))
        generate(REPOSITORY)
        image(BASELINE)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        found = differences(Path(scratch), generate(Path(scratch)))
        if not BASELINE.exists() or image(Path(scratch) / BASELINE.name) != BASELINE.read_bytes():
            found.append(f"changed: {BASELINE.relative_to(REPOSITORY)}")
    for line in found:
        sys.stderr.write(f"{line}\n")
    if found:
        sys.stderr.write("run `make protos` and commit what it writes\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
