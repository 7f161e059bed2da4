from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from adapter_store.coordination import NoAnnouncer, NoLock
from adapter_store.errors import InvalidSetting, StoreUnavailable
from adapter_store.locks import RedisLock
from adapter_store.notify import HintStream, RedisAnnouncer
from adapter_store.processes import ProcessId, process_id
from adapter_store.settings import (
    S3_SERVICE,
    Endpoints,
    StackFile,
    load_settings,
    read_stack,
)

ENDPOINTS = Endpoints(
    s3_endpoint="http://127.0.0.1:9000",
    s3_access_key="the-key",
    s3_secret_key="the-secret",
    redis_url="redis://:the-password@127.0.0.1:6379/0",
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LORAPOOL_")]:
        monkeypatch.delenv(name)


def put(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"LORAPOOL_{name}", value)


def test_the_environment_says_where_the_store_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in ENDPOINTS.environment().items():
        monkeypatch.setenv(name, value)
    put(monkeypatch, CACHE_DIR=str(tmp_path), TENANT="acme")
    settings = load_settings(state_dir=tmp_path)
    assert settings.s3_endpoint == ENDPOINTS.s3_endpoint
    assert settings.s3_bucket == "adapters"
    assert settings.s3_region == "us-east-1"
    assert settings.s3_secret_key is not None
    assert settings.s3_secret_key.get_secret_value() == "the-secret"
    assert (settings.cache_dir, settings.tenant) == (tmp_path, "acme")
    assert settings.open_store().bucket == "adapters"
    assert isinstance(settings.open_lock(), RedisLock)
    assert isinstance(settings.open_announcer(), RedisAnnouncer)
    assert isinstance(settings.open_hints(), HintStream)


def test_without_redis_everything_still_opens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(monkeypatch, S3_ENDPOINT="http://127.0.0.1:9000", REDIS_URL="")
    settings = load_settings(state_dir=tmp_path)
    assert isinstance(settings.open_lock(), NoLock)
    assert isinstance(settings.open_announcer(), NoAnnouncer)
    assert settings.open_hints() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3_ENDPOINT", "127.0.0.1:9000"),
        ("S3_ENDPOINT", "ftp://host"),
        ("S3_ENDPOINT", "http://host:port"),
        ("S3_BUCKET", "No"),
        ("S3_BUCKET", "a/b"),
        ("REDIS_URL", "the-secret@nowhere"),
        ("REDIS_URL", "http://:the-secret@host"),
        ("TENANT", "../other"),
    ],
)
def test_a_malformed_value_refuses_to_start_and_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    put(monkeypatch, S3_REGION="eu-west-1", **{name: value})
    with pytest.raises(InvalidSetting, match=f"LORAPOOL_{name}") as refused:
        load_settings(state_dir=tmp_path)
    assert "the-secret" not in str(refused.value)


def test_with_nothing_set_the_stack_running_here_is_used(tmp_path: Path) -> None:
    StackFile(ENDPOINTS, {S3_SERVICE: process_id(os.getpid())}).write(tmp_path)
    settings = load_settings(state_dir=tmp_path)
    assert settings.s3_endpoint == ENDPOINTS.s3_endpoint
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == ENDPOINTS.redis_url


def test_a_variable_set_beside_the_stack_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    StackFile(ENDPOINTS, {S3_SERVICE: process_id(os.getpid())}).write(tmp_path)
    put(monkeypatch, TENANT="acme", REDIS_URL="redis://elsewhere:1/0")
    settings = load_settings(state_dir=tmp_path)
    assert settings.tenant == "acme"
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://elsewhere:1/0"


def test_a_configured_store_is_never_mixed_with_the_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    StackFile(ENDPOINTS, {S3_SERVICE: process_id(os.getpid())}).write(tmp_path)
    put(monkeypatch, S3_BUCKET="production")
    settings = load_settings(state_dir=tmp_path)
    assert settings.s3_endpoint is None
    assert settings.s3_access_key is None
    assert settings.redis_url is None


@pytest.mark.parametrize("content", [None, "", "{}", "[]", "not json", '{"endpoints": {}}'])
def test_with_no_store_at_all_the_error_says_what_to_do(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "stack.json").write_text(content)
    with pytest.raises(StoreUnavailable) as raised:
        load_settings(state_dir=tmp_path)
    assert "make up" in raised.value.hint
    assert "LORAPOOL_S3_ENDPOINT" in raised.value.hint


def test_a_stack_that_has_died_is_not_used(tmp_path: Path) -> None:
    recycled = ProcessId(os.getpid(), "1")
    StackFile(ENDPOINTS, {S3_SERVICE: recycled}).write(tmp_path)
    with pytest.raises(StoreUnavailable):
        load_settings(state_dir=tmp_path)


def test_the_stack_file_is_for_its_owner_alone_and_reads_back(tmp_path: Path) -> None:
    stack = StackFile(ENDPOINTS, {S3_SERVICE: process_id(os.getpid())})
    (tmp_path / "stack.json").write_text("older, and readable by all")
    stack.write(tmp_path)
    assert stat.S_IMODE((tmp_path / "stack.json").stat().st_mode) == 0o600
    assert read_stack(tmp_path) == stack


def test_no_secret_shows_when_settings_or_endpoints_are_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in ENDPOINTS.environment().items():
        monkeypatch.setenv(name, value)
    shown = f"{load_settings(state_dir=tmp_path)!r} {ENDPOINTS!r} {StackFile(ENDPOINTS, {})!r}"
    assert "127.0.0.1" in shown
    for secret in ("the-key", "the-secret", "the-password"):
        assert secret not in shown


def test_reading_settings_loads_neither_boto3_nor_redis() -> None:
    code = "import sys, adapter_store.settings as s; print({'boto3', 'redis'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert answer.stdout == b"set()\n"
