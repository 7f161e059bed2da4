"""Recognisable secrets, planted wherever secrets may be given; no output may have any of them."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapter_store.cli import main as adapter_store
from inference_node.cli import effective
from inference_node.cli import main as inference_node
from inference_node.rpc.auth import AuthConfig
from inference_node.telemetry.lines import logging_to
from tests.inference_node.rpc.authority import Authority
from tests.inference_node.rpc.issuer import Issuer
from tests.inference_node.rpc.running_node import CONFIG, running_node
from tests.inference_node.rpc.scripted_engine import ScriptedEngine

CANARY = "canary"
OURS = ("inference_node", "adapter_store")
ENVIRONMENT = {
    "LORAPOOL_S3_ENDPOINT": "http://127.0.0.1:9",
    "LORAPOOL_S3_ACCESS_KEY": f"{CANARY}-access",
    "LORAPOOL_S3_SECRET_KEY": f"{CANARY}-secret",
    "LORAPOOL_REDIS_URL": f"redis://user:{CANARY}-url@127.0.0.1:9/0",
    "LORAPOOL_TLS_KEY_PASSPHRASE": f"{CANARY}-passphrase",
    "LORAPOOL_LISTEN": "127.0.0.1:0",
    "LORAPOOL_DEVICE": "cpu",
    "LORAPOOL_LOG_LEVEL": "DEBUG",
}
Say = Callable[..., str]


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def say(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Say:
    """All that a command leaves behind: both streams and every log record."""

    def say(program: Callable[[], None], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit):
            program()
        captured = capfd.readouterr()
        logged, _ = caplog.text, caplog.clear()
        return captured.out + captured.err + logged

    for ours in OURS:
        caplog.set_level(logging.DEBUG, logger=ours)
    return say


def test_only_our_own_loggers_are_as_talkative_as_they_are_told_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.NOTSET))
    for name in OURS:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    with logging_to(io.StringIO(), level="DEBUG", format="text"):
        assert logging.root.level == logging.WARNING
        assert {logging.getLogger(name).level for name in OURS} == {logging.DEBUG}


def test_settings_are_printed_without_secrets(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'redis_password = "{CANARY}-file"\npool_mb = 32\n')
    for json in ((), ("--json",)):
        told = say(inference_node, "serve", "--print-config", "--config", str(file), *json)
        assert "LORAPOOL_S3_SECRET_KEY" in told
        assert str(file) in told
        assert CANARY not in told


def test_a_printer_that_forgot_would_be_caught(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgot(value: object) -> str:
        reveal = getattr(value, "get_secret_value", lambda: value)
        return str(reveal())

    monkeypatch.setattr(effective, "_told", forgot)
    assert CANARY in say(inference_node, "serve", "--print-config")


MALFORMED = {
    "LORAPOOL_REDIS_URL": f"http://user:{CANARY}@host",
    "LORAPOOL_S3_ENDPOINT": f"http://user:{CANARY}@host",
    "LORAPOOL_TLS_KEY_PASSPHRASE_FILE": "nowhere",
    "LORAPOOL_TLS_CERT_FILE": "nowhere",
    "LORAPOOL_REDIS_PASSWORD_FILE": "nowhere",
    "LORAPOOL_POOL_MB": "lots",
    "LORAPOOL_SIGN_KEY_FILE": "nowhere",
    "LORAPOOL_TRUST_FILE": "nowhere",
    "LORAPOOL_CONFIG": "nowhere",
}


@pytest.mark.parametrize("variable", MALFORMED)
def test_no_error_of_any_command_has_a_secret(
    say: Say, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, MALFORMED[variable])
    commands = (
        (inference_node, "serve", "--print-config"),
        (inference_node, "doctor"),
        (inference_node, "doctor", "--json"),
        (adapter_store, "doctor"),
        (adapter_store, "ls"),
        (adapter_store, "ls", "--json"),
    )
    for program, *arguments in commands:
        assert CANARY not in say(program, *arguments), arguments


def test_a_wrong_passphrase_is_refused_without_it(
    say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = Authority(tmp_path / "tls").issue(passphrase="another")
    monkeypatch.setenv("LORAPOOL_TLS_CERT_FILE", str(files.cert))
    monkeypatch.setenv("LORAPOOL_TLS_KEY_FILE", str(files.key))
    told = say(inference_node, "doctor")
    assert "passphrase" in told
    assert CANARY not in told
    assert files.key.read_text().splitlines()[1] not in told


def test_a_refused_token_is_in_nobodys_output(say: Say, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwks.json")
    config = replace(CONFIG, auth=AuthConfig(tokens=issuer.rules))
    tokens = {
        "expired": issuer.token(sub=f"{CANARY}-subject", iat=1, exp=2),
        "unsigned": issuer.unsigned(sub=f"{CANARY}-subject"),
        "nonsense": f"{CANARY}-token",
        "two words": f"{CANARY} token",
        "oversize": f"{CANARY}-token" * 1000,
        "good": issuer.token(sub="checkout"),
    }
    file = tmp_path / "token"
    with running_node(ScriptedEngine(), config) as address:
        for name, token in tokens.items():
            file.write_text(token)
            for command in (("generate", "hi", "--tenant", "acme"), ("status",)):
                told = say(
                    inference_node, *command, "--address", address, "--token-file", str(file)
                )
                for piece in (CANARY, token, token.rpartition(".")[2] or "none"):
                    assert piece not in told, (name, command)
