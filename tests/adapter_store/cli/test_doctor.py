from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from adapter_store.cli import doctor as under_test
from adapter_store.errors import StoreRefused
from adapter_store.memory import MemoryStore
from adapter_store.notify import STREAM
from adapter_store.redis_check import RedisAnswer, check_redis
from adapter_store.s3 import S3Store
from adapter_store.settings import Endpoints
from tests.adapter_store.cli.shell import Shell

pytestmark = pytest.mark.services


def checks(shell: Shell, code: int) -> dict[str, dict[str, Any]]:
    """What a doctor with that exit code found, by check."""
    ran = shell.run("doctor", "--json")
    told = ran.document("doctor")
    assert (ran.code, told["exit_code"], told["healthy"]) == (code, code, code == 0)
    found = {one["check"]: one for one in told["checks"]}
    assert all(one["hint"] for one in told["checks"] if one["status"] != "ok")
    assert any(one["status"] == "fail" for one in told["checks"]) is bool(code)
    return found


def test_where_all_is_well_every_line_says_so_and_no_trace_is_left(
    shell: Shell, s3_store: S3Store, redis_client: Redis, tmp_path: Path
) -> None:
    shell.monkeypatch.setenv("LORAPOOL_CACHE_DIR", str(tmp_path / "cache"))
    before = s3_store.list("").keys
    found = checks(shell, 0)
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(
        ("settings", "store", "writes", "clock", "bases", "redis", "cache"), "ok"
    )
    assert s3_store.list("").keys == before
    assert redis_client.exists(STREAM) == 0
    ran = shell.ok("doctor")
    assert f"LORAPOOL_S3_BUCKET = {s3_store.bucket}  (environment)" in ran.out
    assert "LORAPOOL_S3_SECRET_KEY = set, not shown  (environment)" in ran.out
    assert "LORAPOOL_TENANT = default  (default)" in ran.out


def test_the_exit_code_is_of_the_first_failure(shell: Shell, tmp_path: Path) -> None:
    with shell.monkeypatch.context() as patch:
        patch.setenv("LORAPOOL_S3_ENDPOINT", "nonsense")
        assert list(checks(shell, 2)) == ["settings"]
    with shell.monkeypatch.context() as patch:
        patch.setenv("LORAPOOL_S3_BUCKET", "lorapool-test-nowhere")
        found = checks(shell, 6)
        assert "adapter-store init" in found["store"]["hint"]
        assert (found["redis"]["status"], "writes" in found) == ("ok", False)
    with shell.monkeypatch.context() as patch:
        patch.setenv("LORAPOOL_REDIS_URL", "redis://127.0.0.1:1/0")
        assert "without a lock" in checks(shell, 6)["redis"]["hint"]
    with shell.monkeypatch.context() as patch:
        patch.setenv("LORAPOOL_REDIS_URL", "redis://:pw@h:1/0?health_check_interval=x")
        assert "LORAPOOL_REDIS_URL" in checks(shell, 2)["redis"]["message"]
    (tmp_path / "file").write_text("")
    shell.monkeypatch.setenv("LORAPOOL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    shell.monkeypatch.setenv("LORAPOOL_REDIS_URL", "")
    found = checks(shell, 0)
    assert (found["cache"]["status"], found["redis"]["status"]) == ("warn", "warn")


def test_who_may_only_read_is_told_so(shell: Shell) -> None:
    def refused(*anything: object) -> None:
        raise StoreRefused("AccessDenied")

    shell.monkeypatch.setattr("adapter_store.check.check_store", refused)
    found = checks(shell, 6)
    assert "may read and not write" in found["writes"]["message"]
    assert "PutObject" in found["writes"]["hint"]


@pytest.mark.parametrize(
    ("ahead_s", "status"), [(0, "ok"), (60, "warn"), (-60, "warn"), (900, "fail")]
)
def test_a_clock_that_is_off_is_noticed(ahead_s: float, status: str) -> None:
    found = under_test._clock(MemoryStore(), lambda: time.time() + ahead_s)
    assert found.status.value == status


def test_a_store_that_keeps_what_it_was_told_to_delete_is_noticed() -> None:
    class Keeping(MemoryStore):
        def delete(self, key: str) -> None:
            return

    assert under_test._clock(Keeping(), time.time).status.value == "warn"


@pytest.fixture
def user(redis_client: Redis, endpoints: Endpoints) -> Iterator[str]:
    """A user of the Redis that may do on our keys what the product does; its URL's beginning."""
    redis_client.acl_setuser(
        "doctor-test",
        enabled=True,
        passwords=["+pw"],
        keys=["lorapool:*"],
        commands=["+@read", "+@write", "+@scripting", "+@connection"],
        reset=True,
    )
    yield f"redis://doctor-test:pw@{endpoints.redis_url.rpartition('@')[2].rpartition('//')[2]}"
    redis_client.acl_deluser("doctor-test")


def test_a_redis_user_that_may_not_do_what_locks_and_hints_need_is_told_which(
    user: str, redis_client: Redis
) -> None:
    url = user
    assert check_redis(url) == RedisAnswer("", ())
    redis_client.acl_setuser("doctor-test", enabled=True, commands=["-xadd", "-eval", "-xread"])
    assert check_redis(url) == RedisAnswer("", ("EVAL", "XADD", "XREAD"))
    redis_client.acl_setuser("doctor-test", enabled=True, keys=["other:*"], reset_keys=True)
    assert "SET" in check_redis(url).refused
    assert check_redis(url.replace(":pw@", ":wrong@")).error
    assert check_redis("redis://127.0.0.1:1/0").error
