"""The suites that prove a store, against the one that the environment names.

`python -m tests.store_suites` runs, with real requests and real races, the object-store contract,
the conformance check, racing publishers and collectors, and one adapter from a publisher's folder
to a node's answer. named_services.py lists the variables that name the store.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.named_services import S3_ENDPOINT, S3_KEY, S3_SECRET, NotNamed, named_s3

ROOT = Path(__file__).resolve().parents[1]
SUITES = (
    "tests/adapter_store/test_s3.py",
    "tests/adapter_store/test_check.py",
    "tests/adapter_store/test_races.py",
    "tests/adapter_store/test_gc.py",
    "tests/adapter_store/test_fsck.py",
    "tests/adapter_store/test_scale.py",
    "tests/adapter_store/cli/test_processes.py",
    "tests/integration/test_publish_then_generate.py",
)
MISUSED = 2


def run_suites(environ: Mapping[str, str], options: Sequence[str] = ()) -> int:
    """pytest's exit status. `environ` names a store."""
    print(f"proving the store at {environ[S3_ENDPOINT]}", flush=True)
    command = (sys.executable, "-m", "pytest", *SUITES, *options)
    return subprocess.run(command, cwd=ROOT, env=dict(environ), check=False).returncode


def main() -> int:
    try:
        named = named_s3(os.environ)
    except NotNamed as error:
        print(f"error: {error}", file=sys.stderr)
        return MISUSED
    if named is None:
        print(
            f"error: no store is named\nhint: set {S3_ENDPOINT}, {S3_KEY} and {S3_SECRET}",
            file=sys.stderr,
        )
        return MISUSED
    return run_suites(os.environ, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
