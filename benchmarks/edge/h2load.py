"""The same calls by h2load, nghttp2's, which knows nothing of gRPC: a POST with a framed body.

It counts HTTP statuses, and gRPC says what went wrong after a 200; so the bytes of the answers are
counted too: an error has none.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from benchmarks.edge.load import CONNECTIONS, UNARY, Served, Target, asked

_FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s), .*?req/s")
_REQUESTS = re.compile(r"requests: \d+ total, .* (\d+) succeeded, (\d+) failed, (\d+) errored")
_BYTES = re.compile(r"traffic: .*, [^(]*\((\d+)\) data")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
LEAST_BYTES = 60
"""Of a whole answer, digest included."""


class LoadFailed(Exception):
    """It did not get the answers it asked for; the text is what it said."""


def program() -> str | None:
    return shutil.which("h2load")


def version(tool: str) -> str:
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    return said.strip().rpartition("/")[2]


def unary(target: Target, *, at_once: int, seconds: int) -> Served:
    """As load.unary. Raises LoadFailed when an answer is missing or is an error."""
    tool = program()
    assert tool is not None
    message = asked(1).SerializeToString()
    headers = {"content-type": "application/grpc", "te": "trailers", **dict(target.metadata)}
    with tempfile.NamedTemporaryFile(suffix=".grpc") as body:
        Path(body.name).write_bytes(struct.pack(">BI", 0, len(message)) + message)
        command = [tool, f"--duration={seconds}", f"--clients={CONNECTIONS}"]
        command += [f"--max-concurrent-streams={at_once // CONNECTIONS}", f"--data={body.name}"]
        command += [f"--header={name}: {value}" for name, value in headers.items()]
        command.append(f"http://127.0.0.1:{target.port}{UNARY}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return _read(done.stdout)


def _read(said: str) -> Served:
    requests, data = _REQUESTS.search(said), _BYTES.search(said)
    finished = _FINISHED.search(said)
    if requests is None or data is None or finished is None:
        raise LoadFailed(said)
    succeeded, failed, errored = map(int, requests.groups())
    if failed or errored or int(data[1]) < LEAST_BYTES * succeeded:
        raise LoadFailed(said)
    return Served(succeeded, float(finished[1]) * _UNITS[finished[2]], ())
