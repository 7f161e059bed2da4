"""What is missing is named, with what to do about it, and the exit code says which kind it is."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
import typer
from redis import Redis

from adapter_store.cli.doctor import Finding, Status
from adapter_store.errors import StoreRefused
from adapter_store.s3 import S3Store
from adapter_store.settings import Endpoints
from inference_node.cli.doctor import doctor, examine
from inference_node.rpc.tls import read_identity
from tests.inference_node.rpc.authority import Authority
from tests.inference_node.rpc.issuer import Issuer


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAPOOL_LISTEN", "127.0.0.1:0")
    # Importing torch to look for a device takes seconds.
    monkeypatch.setenv("LORAPOOL_DEVICE", "cpu")


def findings(now: float | None = None) -> dict[str, Finding]:
    clock = time.time if now is None else lambda: now
    return {found.check: found for found in examine(None, clock=clock)}


def failed(found: Finding, code: int, said: str) -> bool:
    return (found.status, found.code) == (Status.FAIL, code) and said in found.message


@pytest.mark.services
def test_a_machine_that_has_everything_is_healthy(
    endpoints: Endpoints,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, issuer = Authority(tmp_path / "tls").issue(), Issuer(tmp_path / "jwks.json")
    files.key.chmod(0o600)
    monkeypatch.setenv("LORAPOOL_JWT_ISSUER", "https://issuer.example")
    monkeypatch.setenv("LORAPOOL_JWT_AUDIENCE", "lorapool")
    monkeypatch.setenv("LORAPOOL_JWKS_FILE", str(issuer.jwks))
    monkeypatch.setenv("LORAPOOL_TLS_CERT_FILE", str(files.cert))
    monkeypatch.setenv("LORAPOOL_TLS_KEY_FILE", str(files.key))
    for name, value in endpoints.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(typer.Exit) as left:
        doctor(None, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert (left.value.exit_code, report["healthy"]) == (0, True)
    status = {check["check"]: check["status"] for check in report["checks"]}
    for check in ("settings", "tls", "tokens", "port", "torch", "compiler", "store", "redis"):
        assert status[check] == "ok", report
    assert "tls key" not in status


@pytest.mark.services
def test_redis_is_asked_as_the_user_that_is_set_beside_its_url(
    endpoints: Endpoints, redis_client: Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rights = {"keys": ["lorapool:*"], "commands": ["+@all", "-@admin"], "passwords": ["+pw"]}
    redis_client.acl_setuser("node-doctor", enabled=True, reset=True, **rights)
    for name, value in endpoints.environment().items():
        monkeypatch.setenv(name, value)
    host = endpoints.redis_url.rpartition("@")[2].removeprefix("redis://")
    monkeypatch.setenv("LORAPOOL_REDIS_URL", f"redis://{host}")
    monkeypatch.setenv("LORAPOOL_REDIS_USERNAME", "node-doctor")
    monkeypatch.setenv("LORAPOOL_REDIS_PASSWORD", "wrong")
    assert failed(findings()["redis"], 6, "no answer")
    monkeypatch.setenv("LORAPOOL_REDIS_PASSWORD", "pw")
    assert findings()["redis"].status is Status.OK
    redis_client.acl_deluser("node-doctor")


@pytest.mark.services
def test_whoever_may_only_read_is_warned_for_a_node_serves_so(
    endpoints: Endpoints, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*anything: object, **more: object) -> None:
        raise StoreRefused("AccessDenied")

    monkeypatch.setattr(S3Store, "put_new", refused)
    rights = {"keys": ["lorapool:*"], "passwords": ["+pw"], "enabled": True}
    redis_client.acl_setuser("node-reader", commands=["+@read", "+@connection"], **rights)
    for name, value in endpoints.environment().items():
        monkeypatch.setenv(name, value)
    host = endpoints.redis_url.rpartition("@")[2].removeprefix("redis://")
    monkeypatch.setenv("LORAPOOL_REDIS_URL", f"redis://node-reader:pw@{host}")
    found = findings()
    for check in ("writes", "redis"):
        assert (found[check].status, found[check].code) == (Status.WARN, 0), found[check]
    assert "SET" in found["redis"].message
    assert all(one.status is not Status.FAIL for one in found.values())
    redis_client.acl_setuser("node-reader", enabled=True, commands=["-xread"])
    assert failed(findings()["redis"], 6, "XREAD"), "the control: no hint would reach it"
    redis_client.acl_deluser("node-reader")


def test_without_a_store_the_code_says_that_nothing_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAPOOL_S3_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("LORAPOOL_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("LORAPOOL_S3_SECRET_KEY", "secret")
    with pytest.raises(typer.Exit) as left:
        doctor(None)
    told = capsys.readouterr()
    assert left.value.exit_code == 6
    assert "fail  store" in told.out
    assert "->" in told.err


def test_a_bad_setting_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPOOL_POOL_MB", "lots")
    found = findings()
    assert list(found) == ["settings"]
    assert failed(found["settings"], 2, "LORAPOOL_POOL_MB")


def test_certificates_are_looked_at_before_callers_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = Authority(tmp_path / "tls").issue()
    files.key.chmod(0o644)
    monkeypatch.setenv("LORAPOOL_TLS_CERT_FILE", str(files.cert))
    monkeypatch.setenv("LORAPOOL_TLS_KEY_FILE", str(files.key))
    assert findings()["tls key"].status is Status.WARN
    end = read_identity(files).chain[0].not_valid_after_utc.timestamp()
    assert failed(findings(end + 1)["tls"], 2, "has expired")
    assert failed(findings(0.0)["tls"], 2, "is not valid yet")
    assert findings(end - 13 * 86_400)["tls"].status is Status.WARN
    assert findings(end - 15 * 86_400)["tls"].status is Status.OK
    files.key.unlink()
    assert failed(findings()["tls"], 2, "cannot be read")


def test_files_that_say_nothing_usable_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jwks, quotas = tmp_path / "jwks.json", tmp_path / "quotas.toml"
    jwks.write_text('{"keys": []}')
    quotas.write_text("nonsense = 1")
    monkeypatch.setenv("LORAPOOL_JWT_ISSUER", "https://issuer.example")
    monkeypatch.setenv("LORAPOOL_JWT_AUDIENCE", "lorapool")
    monkeypatch.setenv("LORAPOOL_JWKS_FILE", str(jwks))
    monkeypatch.setenv("LORAPOOL_QUOTAS_FILE", str(quotas))
    found = findings()
    assert found["tokens"].status is Status.WARN
    assert failed(found["quotas"], 2, "quotas.toml")
    jwks.write_text("{}")
    assert failed(findings()["tokens"], 2, "jwks.json")


@pytest.mark.parametrize("name", ["LISTEN", "ADMIN_LISTEN", "METRICS_LISTEN", "PLAYGROUND_LISTEN"])
def test_a_port_in_use_is_named_whoever_is_to_listen_there(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("LORAPOOL_LISTEN", "127.0.0.1:1")
        monkeypatch.setenv(f"LORAPOOL_{name}", f"127.0.0.1:{taken.getsockname()[1]}")
        in_use = [one for one in examine(None) if "is in use" in one.message]
    assert [(one.check, one.status, one.code) for one in in_use] == [("port", Status.FAIL, 6)]
    assert f"LORAPOOL_{name}" in in_use[0].hint


@pytest.mark.parametrize("name", ["METRICS_LISTEN", "PLAYGROUND_LISTEN"])
def test_an_address_that_a_node_would_refuse_is_refused_here_too(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"LORAPOOL_{name}", "0.0.0.0:9464")
    assert failed(findings()["settings"], 2, f"LORAPOOL_{name}")


def test_an_audit_file_that_cannot_be_written_is_named_and_none_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "audit" not in findings()
    file = tmp_path / "audit.jsonl"
    monkeypatch.setenv("LORAPOOL_AUDIT_FILE", str(file))
    assert findings()["audit"].status is Status.OK
    assert not file.exists()
    file.write_text("{}\n")
    assert findings()["audit"].status is Status.OK
    assert file.read_text() == "{}\n"
    for nowhere in (tmp_path, tmp_path / "no folder" / "audit.jsonl"):
        monkeypatch.setenv("LORAPOOL_AUDIT_FILE", str(nowhere))
        assert failed(findings()["audit"], 2, str(nowhere))


def test_a_base_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAPOOL_BASE_MODEL", str(tmp_path / "nowhere"))
    assert failed(findings()["base model"], 2, "nowhere")
    monkeypatch.setenv("LORAPOOL_BASE_MODEL", str(tmp_path))
    assert failed(findings()["base model"], 2, "config.json")


def test_a_missing_compiler_matters_as_much_as_the_kernels_need_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert findings()["compiler"].status is Status.WARN
    monkeypatch.setenv("LORAPOOL_KERNELS", "native")
    assert failed(findings()["compiler"], 2, "no-such-compiler")
    monkeypatch.setenv("LORAPOOL_KERNELS", "reference")
    assert findings()["compiler"].status is Status.OK
