"""Keys, signatures and trust as a publisher meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapter_store.layout import log_key
from adapter_store.provenance import load_signer
from adapter_store.s3 import S3Store, open_s3
from adapter_store.settings import Endpoints
from adapter_store.trust import parse_trust
from tests.adapter_store.cli.shell import Shell

KEY, TRUST = ("--sign-key", "alice.pem"), ("--trust", "trust.toml")


@pytest.fixture
def store(endpoints: Endpoints) -> S3Store:
    return open_s3(
        endpoint=endpoints.s3_endpoint,
        bucket=endpoints.s3_bucket,
        region=endpoints.s3_region,
        access_key=endpoints.s3_access_key,
        secret_key=endpoints.s3_secret_key,
    )


@pytest.fixture
def signed(shell: Shell, folder: Path) -> Shell:
    """Alice has a key, the trust file names it, and `pirate` is published with it."""
    (folder / "trust.toml").write_text(shell.ok("keygen", "--out", "alice.pem").out)
    shell.ok("push", "one", "--name", "pirate", *KEY)
    return forgetful(shell)


def forgetful(shell: Shell) -> Shell:
    """Each command of a real shell is a process of its own."""
    for variable in ("LORAPOOL_SIGN_KEY_FILE", "LORAPOOL_TRUST_FILE"):
        shell.monkeypatch.setenv(variable, "")
    return shell


def test_keygen_prints_an_entry_to_paste_and_never_overwrites(
    bare_shell: Shell, folder: Path
) -> None:
    ran = bare_shell.ok("keygen", "--out", "alice.pem")
    key = folder / "alice.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert list(parse_trust(ran.out, origin="stdout")) == [load_signer(key).key_id]
    before = key.read_bytes()
    again = bare_shell.run("keygen", "--out", "alice.pem")
    assert (again.code, key.read_bytes()) == (2, before)
    document = bare_shell.document("keygen", "keygen", "--out", "bob.pem", "--tenant", "acme")
    assert 'tenants = ["acme"]' in document["trust_entry"]
    assert "PRIVATE" not in ran.said + json.dumps(document)


def test_verify_says_who_signed_and_whether_that_was_checked(signed: Shell) -> None:
    key_id = load_signer(Path("alice.pem")).key_id
    assert f"signed by {key_id} (not checked)" in signed.ok("verify", "pirate").out
    assert f"signed by {key_id}\n" in signed.ok("verify", "pirate", *TRUST).out
    forgetful(signed)
    for trust in ((), TRUST):
        (whole,) = signed.document("verify", "verify", "--all", *trust)["verified"]
        assert (whole["signed_by"], whole["trusted"]) == ([key_id], bool(trust))
    forgetful(signed)
    (record,) = signed.document("history", "history", "pirate")["records"]
    assert record["signed_by"] == [key_id]
    assert signed.document("show", "show", "pirate")["signed_by"] == [key_id]
    assert key_id in signed.ok("history", "pirate").out
    assert key_id in signed.ok("show", "pirate").out


def test_a_key_in_the_environment_signs_every_change(signed: Shell) -> None:
    signed.monkeypatch.setenv("LORAPOOL_SIGN_KEY_FILE", "alice.pem")
    signed.monkeypatch.setenv("LORAPOOL_TRUST_FILE", "trust.toml")
    signed.ok("push", "two", "--name", "pirate")
    signed.ok("rollback", "pirate", "--to", "v1")
    assert signed.document("verify", "verify", "pirate")["verified"][0]["trusted"]
    assert len(signed.document("history", "history", "pirate")["records"]) == 3


def test_an_attack_is_seen_refused_and_taken_back(signed: Shell, store: S3Store) -> None:
    signed.ok("push", "two", "--name", "pirate", "--version", "evil")
    store.put_new(log_key("default", "pirate", 3), b"garbage")
    found = signed.run("verify", "pirate", "--json", *TRUST)
    assert found.code == 5
    assert found.document("verify")["failed"][0]["kind"] == "Untrusted"
    pulled = signed.ok("pull", "pirate", "copy", *TRUST)
    assert "pirate@v1" in pulled.out
    refused = signed.run("push", "two", "--name", "pirate", *KEY)
    assert refused.code == 5
    assert "adapter-store reclaim pirate" in refused.err
    done = signed.document("reclaim", "reclaim", "pirate", *KEY)
    assert (done["reclaimed"], done["generation"], done["version"]) == (True, 4, "v1")
    assert not signed.document("reclaim", "reclaim", "pirate")["reclaimed"]
    signed.ok("push", "two", "--name", "pirate", "--version", "mine")
    (whole,) = signed.document("verify", "verify", "pirate")["verified"]
    assert (whole["version"], whole["generation"], whole["records"]) == ("mine", 5, 3)


def test_an_adapter_of_strangers_becomes_a_deleted_one_of_ours(signed: Shell) -> None:
    signed.ok("push", "two", "--name", "squatted")
    done = signed.document("reclaim", "reclaim", "squatted", *KEY, *TRUST)
    assert (done["generation"], done["version"]) == (2, None)
    signed.ok("push", "one", "--name", "squatted")
    assert signed.document("verify", "verify", "squatted")["verified"][0]["generation"] == 3
    assert signed.run("reclaim", "unknown").code == 3


def test_what_is_served_can_be_taken_back_empty(signed: Shell) -> None:
    signed.ok("push", "two", "--name", "pirate")
    done = signed.document("reclaim", "reclaim", "pirate", "--empty", *KEY, *TRUST)
    assert done["version"] is None
    assert signed.run("show", "pirate").code == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [(None, "cannot be read"), ("", "names no key"), ("[[key]]\nname = 'x'", "key 1: public")],
)
def test_a_trust_file_that_is_wrong_is_named_by_file_and_field(
    signed: Shell, folder: Path, text: str | None, named: str
) -> None:
    if text is not None:
        (folder / "other.toml").write_text(text)
    ran = signed.run("verify", "pirate", "--json", "--trust", "other.toml")
    error = ran.document("error")["error"]
    assert (ran.code, error["kind"]) == (2, "InvalidSetting")
    assert "other.toml" in error["message"]
    assert named in error["message"]


def test_a_signing_key_that_is_none_stops_before_anything_is_sent(
    shell: Shell, folder: Path, store: S3Store
) -> None:
    (folder / "bad.pem").write_text("canary-secret-key")
    before = store.list("v1/t/").keys
    ran = shell.run("push", "one", "--name", "pirate", "--sign-key", "bad.pem")
    assert ran.code == 2
    assert "bad.pem" in ran.err
    assert "canary" not in ran.said
    assert store.list("v1/t/").keys == before
