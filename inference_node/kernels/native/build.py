"""Compiles the C kernels once for a processor, a compiler and a source, and keeps the result.

The name of the kept library is a digest of everything that decides its contents, so a folder
shared between machines or versions of this package never hands out another's code.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_HERE = Path(__file__).resolve().parent
_SOURCES = (
    "kernels.c",
    "typed.h",
    "ahead.h",
    "nf4.h",
    "dense.h",
    "attention.h",
    "rows.h",
    "greedy.h",
    "layer.h",
    "model.h",
)
_FLAGS = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-shared",
    "-fPIC",
)
_SECONDS = 120


class NoCompiler(Exception):
    """The kernels cannot be compiled here; the message says what is missing."""


def build(folder: Path) -> Path:
    """The compiled library in `folder`, made now if it is not there. Raises NoCompiler."""
    compiler = find_compiler()
    library = folder / f"kernels-{_identity(compiler)}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            _compile(compiler, made)
            # One rename: a second process finds all of the library or none of it.
            made.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"the C kernels could not be compiled: {error}") from error
    return library


def find_compiler() -> str:
    """The program that compiles C here. Raises NoCompiler."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    raise NoCompiler(f"no C compiler: {' or '.join(names)} is not on PATH")


def _compile(compiler: str, target: Path) -> None:
    command = [
        compiler,
        *_FLAGS,
        str(_HERE / "kernels.c"),
        "-o",
        str(target),
        *_torch_openmp(),
        "-lm",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        first = next(iter(done.stderr.splitlines()), "no message")
        raise NoCompiler(f"{compiler} does not compile the C kernels: {first}")


def _torch_openmp() -> list[str]:
    """torch's own OpenMP runtime, to link against: two of them would fight over the cores."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(bundled[0])] if bundled else []


def _identity(compiler: str) -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((_HERE / name).read_bytes())
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, timeout=_SECONDS, check=False
    )
    for part in (version.stdout, "\0".join(_FLAGS).encode(), _processor(), torch.__version__):
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()[:24]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return platform.machine() + next((line for line in lines if line.startswith("flags")), "")
