"""Prove the store protocol on a real MinIO: `python -m tests.minio`.

MINIO_BIN, or `minio` on PATH, is started on a free loopback port over a temporary folder with
credentials drawn for this run, and stopped and removed afterwards. Without a program the service
`minio` of compose.yaml is built and started, on the port that the file gives it, in a project of
its own that is removed afterwards. With neither this says what to do and exits with 2.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from adapter_store.processes import launch, process_id, stop_all
from tests.named_services import S3_ENDPOINT, S3_KEY, S3_SECRET
from tests.store_suites import MISUSED, ROOT, run_suites

READY_S = 60.0
COMPOSE_PORT = 9000
_PROJECT = "lorapool-test-minio"
_HEALTH = "/minio/health/cluster"


class NoMinio(Exception):
    """Nothing to run, or it did not come up; the message says what to do."""


def find_minio(environ: Mapping[str, str]) -> Path | None:
    """The program to run, None when there is none. Raises NoMinio for a MINIO_BIN that is none."""
    named = environ.get("MINIO_BIN")
    found = shutil.which(named or "minio", path=environ.get("PATH", os.defpath))
    if named and found is None:
        raise NoMinio(f"MINIO_BIN is {named!r}, and that is not a program")
    return Path(found).resolve() if found else None


@contextlib.contextmanager
def program(minio: Path, *, ready_s: float = READY_S) -> Iterator[dict[str, str]]:
    """A running MinIO, as variables that name it for tests. Raises NoMinio."""
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    with tempfile.TemporaryDirectory(prefix="lorapool-minio-") as folder:
        data, log = Path(folder, "data"), Path(folder, "log")
        data.mkdir()
        endpoint = f"http://127.0.0.1:{_free_port()}"
        address = endpoint.removeprefix("http://")
        process = launch(
            (str(minio), "server", str(data), "--address", address),
            env={
                "PATH": os.defpath,
                "HOME": folder,
                "MINIO_ROOT_USER": key,
                "MINIO_ROOT_PASSWORD": secret,
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
            },
            folder=data,
            log=log,
            die_with_parent=True,
        )
        try:
            _wait_healthy(endpoint, process, log, ready_s)
            yield {S3_ENDPOINT: endpoint, S3_KEY: key, S3_SECRET: secret}
        finally:
            stop_all([process_id(process.pid)])
            process.wait()


@contextlib.contextmanager
def compose_service(environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The compose file's MinIO with an empty volume, as variables. Raises NoMinio."""
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    env = {**environ, "MINIO_ROOT_USER": key, "MINIO_ROOT_PASSWORD": secret}
    compose = ("docker", "compose", "--project-name", _PROJECT)
    try:
        up = (*compose, "up", "--build", "--detach", "--wait", "minio")
        if subprocess.run(up, cwd=ROOT, env=env, check=False).returncode:
            raise NoMinio(f"the compose service did not start; is port {COMPOSE_PORT} in use?")
        yield {
            S3_ENDPOINT: f"http://127.0.0.1:{COMPOSE_PORT}",
            S3_KEY: key,
            S3_SECRET: secret,
        }
    finally:
        subprocess.run((*compose, "down", "--volumes"), cwd=ROOT, env=env, check=False)


def open_minio(
    environ: Mapping[str, str],
) -> contextlib.AbstractContextManager[dict[str, str]]:
    """Whichever there is. Raises NoMinio."""
    minio = find_minio(environ)
    if minio is not None:
        return program(minio)
    if _has_docker(environ):
        return compose_service(environ)
    raise NoMinio(
        "there is no minio to test: no MINIO_BIN, none on PATH, no docker that answers\n"
        "hint: `go install github.com/minio/minio@latest` builds one, then set "
        "MINIO_BIN=$(go env GOPATH)/bin/minio; any other store: `make test-store`"
    )


def main(environ: Mapping[str, str] = os.environ) -> int:
    try:
        with open_minio(environ) as named:
            return run_suites({**environ, **named}, sys.argv[1:])
    except NoMinio as error:
        print(f"error: {error}", file=sys.stderr)
        return MISUSED


def _wait_healthy(
    endpoint: str, process: subprocess.Popen[bytes], log: Path, within_s: float
) -> None:
    deadline = time.monotonic() + within_s
    while not _is_healthy(endpoint):
        if process.poll() is not None:
            raise NoMinio(f"minio ended at start: {_end_of(log)}")
        if time.monotonic() > deadline:
            raise NoMinio(f"minio is not healthy after {within_s:g} s: {_end_of(log)}")
        time.sleep(0.05)


def _is_healthy(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint + _HEALTH, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-2000:] or "it said nothing"


def _has_docker(environ: Mapping[str, str]) -> bool:
    if shutil.which("docker", path=environ.get("PATH", os.defpath)) is None:
        return False
    asked = (("docker", "compose", "version"), ("docker", "info"))
    return not any(
        subprocess.run(each, env=dict(environ), capture_output=True, check=False).returncode
        for each in asked
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
