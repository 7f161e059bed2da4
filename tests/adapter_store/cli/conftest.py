"""A shell beside an empty real store, and one where a base is registered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapter_store.s3 import S3Store, open_s3
from adapter_store.settings import Endpoints
from tests.adapter_store.adapter_files import CARD, write_adapter
from tests.adapter_store.cli.shell import Shell
from tests.named_services import new_bucket


@pytest.fixture(scope="session")
def shared_bucket(services: Endpoints) -> Iterator[str]:
    """One bucket for all tests of the tool: making one takes longer than most commands."""
    name = new_bucket()
    store = _opened(replace(services, s3_bucket=name))
    store.ensure_bucket()
    yield name
    _empty(store)
    store._client.delete_bucket(Bucket=name)


@pytest.fixture
def endpoints(services: Endpoints, redis_url: str, shared_bucket: str) -> Endpoints:
    """The shared bucket, emptied, and a Redis database of this test's own."""
    own = replace(services, s3_bucket=shared_bucket, redis_url=redis_url)
    _empty(_opened(own))
    return own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Adapter folders `one` and `two` of different content, and a base card."""
    write_adapter(tmp_path / "one", seed=1)
    write_adapter(tmp_path / "two", seed=2)
    (tmp_path / "card.json").write_bytes(CARD.encode())
    return tmp_path


@pytest.fixture
def bare_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Shell:
    """No setting at all, in a folder where nothing runs."""
    for variable in [name for name in os.environ if name.startswith("LORAPOOL_")]:
        monkeypatch.delenv(variable)
    # So that what --debug, --sign-key and --trust set is taken back.
    for variable in ("LORAPOOL_DEBUG", "LORAPOOL_SIGN_KEY_FILE", "LORAPOOL_TRUST_FILE"):
        monkeypatch.setenv(variable, "")
    monkeypatch.chdir(folder)
    return Shell(monkeypatch, capsys)


@pytest.fixture
def empty_shell(bare_shell: Shell, endpoints: Endpoints) -> Shell:
    """An empty bucket."""
    for variable, value in endpoints.environment().items():
        bare_shell.monkeypatch.setenv(variable, value)
    return bare_shell


@pytest.fixture
def shell(empty_shell: Shell) -> Shell:
    """A bucket with one base registered, whose fitness is taken for granted.

    SeaweedFS answers the losers of the check's race in steps of a second, and most tests are not
    about it.
    """
    empty_shell.ok("base", "add", "card.json")
    empty_shell.monkeypatch.setattr("adapter_store.check.check_store", lambda store: None)
    return empty_shell


def _opened(endpoints: Endpoints) -> S3Store:
    return open_s3(
        endpoint=endpoints.s3_endpoint,
        bucket=endpoints.s3_bucket,
        region=endpoints.s3_region,
        access_key=endpoints.s3_access_key,
        secret_key=endpoints.s3_secret_key,
    )


def _empty(store: S3Store) -> None:
    while keys := store.list("").keys:
        for key in keys:
            store.delete(key)
