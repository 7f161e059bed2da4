from __future__ import annotations

import json
from dataclasses import replace

import pytest

from adapter_store.layout import log_key
from adapter_store.reader import Reader
from adapter_store.record import RecordKind, canonical_json
from adapter_store.s3 import S3Store
from tests.adapter_store.cli.shell import Shell
from tests.adapter_store.publishing import append, tombstone

pytestmark = pytest.mark.services


@pytest.fixture
def two_versions(shell: Shell) -> tuple[str, str]:
    """`pirate` has served v1 and serves v2; their digests."""
    done = [
        shell.ok("push", folder, "--name", "pirate", "--version", label, "--json").document("push")
        for folder, label in (("one", "v1"), ("two", "v2"))
    ]
    return done[0]["digest"], done[1]["digest"]


def test_ls_shows_what_every_adapter_serves(shell: Shell, two_versions: tuple[str, str]) -> None:
    shell.ok("push", "one", "--name", "ada")
    listed = shell.ok("ls", "--json").document("ls")
    assert [(a["adapter"], a["version"], a["generation"]) for a in listed["adapters"]] == [
        ("ada", "v1", 1),
        ("pirate", "v2", 2),
    ]
    header, ada, pirate = shell.ok("ls").out.splitlines()
    assert header.split()[:4] == ["ADAPTER", "VERSION", "GENERATION", "DIGEST"]
    assert ada.split()[:4] == ["ada", "v1", "1", two_versions[0][:12]]
    assert pirate.split()[:4] == ["pirate", "v2", "2", two_versions[1][:12]]


def test_an_empty_store_says_what_to_do(empty_shell: Shell) -> None:
    ran = empty_shell.ok("ls")
    assert ran.out == ""
    assert "adapter-store push" in ran.err
    assert "base add" in empty_shell.ok("base").err


def test_one_damaged_log_does_not_hide_the_other_adapters(
    shell: Shell, two_versions: tuple[str, str], s3_store: S3Store
) -> None:
    s3_store.put_new(log_key("default", "broken", 1), b"{}")
    ran = shell.ok("ls")
    assert "pirate" in ran.out
    assert "damaged  broken" in ran.err
    listed = shell.ok("ls", "--json").document("ls")
    assert listed["damaged"] == ["broken"]
    assert [adapter["adapter"] for adapter in listed["adapters"]] == ["pirate"]


def test_show_finds_a_version_by_label_digest_and_the_beginning_of_a_digest(
    shell: Shell, two_versions: tuple[str, str]
) -> None:
    for selector, label in [
        ("", "v2"),
        ("@v1", "v1"),
        (f"@sha256:{two_versions[0]}", "v1"),
        (f"@sha256:{two_versions[0][:12]}", "v1"),
    ]:
        shown = shell.ok("show", f"pirate{selector}", "--json").document("show")
        assert (shown["version"], shown["adapter"]) == (label, "pirate")
    assert f"sha256:{two_versions[1]}" in shell.ok("show", "pirate").out


def test_what_is_not_there_is_exit_code_3_and_names_the_next_command(
    shell: Shell, two_versions: tuple[str, str]
) -> None:
    for command, step in [
        (("show", "nobody"), "adapter-store ls"),
        (("show", "pirate@v9"), "adapter-store history pirate"),
        (("show", "pirate@sha256:00000000"), "adapter-store history pirate"),
        (("history", "nobody"), "adapter-store ls"),
        (("verify", "nobody"), "adapter-store ls"),
        (("rollback", "nobody"), "adapter-store history nobody"),
        (("rollback", "pirate", "--to", "v9"), "adapter-store history pirate"),
    ]:
        ran = shell.run(*command)
        assert (ran.code, ran.out) == (3, ""), command
        assert step in ran.err
        assert len(ran.err.splitlines()) == 2
        ran = shell.run(*command, "--json")
        assert (ran.code, ran.document("error")["error"]["kind"]) == (3, "NotFound")


def test_history_is_newest_first_and_can_be_cut(
    shell: Shell, two_versions: tuple[str, str]
) -> None:
    shell.ok("rollback", "pirate")
    told = shell.ok("history", "pirate", "--json").document("history")
    assert [(r["generation"], r["kind"], r["version"]) for r in told["records"]] == [
        (3, "rollback", "v1"),
        (2, "publish", "v2"),
        (1, "publish", "v1"),
    ]
    lines = shell.ok("history", "pirate", "--limit", "2").out.splitlines()
    assert [line.split()[0] for line in lines] == ["GENERATION", "3", "2"]


def test_what_others_wrote_cannot_steer_the_terminal(shell: Shell, s3_store: S3Store) -> None:
    """A record with control characters is damaged, and what is said of it carries none along."""
    shell.ok("push", "one", "--name", "pirate")
    append(s3_store, actor="eve")
    key = log_key("default", "pirate", 2)
    hostile = json.loads(s3_store.get(key)) | {"actor": "eve\x1b[2J\nroot@", "time": "\x9b1m"}
    damage(s3_store, key, canonical_json(hostile))
    for command in (("history", "pirate"), ("ls",), ("show", "pirate")):
        ran = shell.run(*command)
        assert (ran.code, ran.out) == (0 if command == ("ls",) else 5, "")
        assert "printable" in ran.err
        assert not {"\x1b", "\x9b"} & set(ran.said)


def test_an_adapter_that_was_taken_away_serves_nothing(shell: Shell, s3_store: S3Store) -> None:
    shell.ok("push", "one", "--name", "pirate")
    tombstone(s3_store)
    listed = shell.ok("ls", "--json").document("ls")["adapters"]
    assert (listed[0]["version"], listed[0]["kind"]) == (None, "tombstone")
    assert shell.ok("ls").out.splitlines()[1].split()[:2] == ["pirate", "-"]
    assert shell.run("show", "pirate").code == 3
    assert shell.ok("verify", "--all", "--json").document("verify")["verified"] == []
    assert "nothing to verify" in shell.ok("verify", "--all").out


def test_verify_reads_every_byte_that_is_served(
    shell: Shell, two_versions: tuple[str, str], s3_store: S3Store
) -> None:
    shell.ok("push", "one", "--name", "ada")
    ran = shell.ok("verify", "--all")
    assert [line.split()[:2] for line in ran.out.splitlines()] == [
        ["ok", "ada@v1"],
        ["ok", "pirate@v2"],
    ]
    older = Reader(s3_store).record("default", "pirate", 1).active
    append(s3_store, kind=RecordKind.STAGE, staged=older)
    told = shell.ok("verify", "pirate", "--json").document("verify")["verified"]
    assert [(v["version"], v["records"], v["chunks"]) for v in told] == [("v2", 3, 2), ("v1", 3, 2)]
    told = shell.ok("verify", f"pirate@sha256:{two_versions[0][:8]}", "--json").document("verify")
    assert [v["version"] for v in told["verified"]] == ["v1"]


def damage(store: S3Store, key: str, body: bytes | None) -> None:
    """What nobody may do to a store: change an object, or take it away."""
    store.delete(key)
    if body is not None:
        store.put_new(key, body)


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_verify_finds_a_damaged_chunk_and_still_checks_the_rest(
    shell: Shell, two_versions: tuple[str, str], s3_store: S3Store, how: str
) -> None:
    shell.ok("push", "one", "--name", "ada")
    version = Reader(s3_store).head("default", "ada").active
    assert version is not None
    weights = version.files[1].chunks[0]
    damage(s3_store, weights.key, b"\0" * weights.length if how == "changed" else None)
    ran = shell.run("verify", "--all")
    assert ran.code == 5
    assert ran.out.startswith("ok  pirate@v2")
    assert ran.err.startswith("error: ada: ")
    ran = shell.run("verify", "--all", "--json")
    told = ran.document("verify")
    assert ran.code == 5
    assert [v["adapter"] for v in told["verified"]] == ["pirate"]
    assert [(f["adapter"], f["kind"]) for f in told["failed"]] == [("ada", "IntegrityError")]
    assert shell.run("verify", "ada").code == 5


def test_verify_finds_a_broken_chain(
    shell: Shell, two_versions: tuple[str, str], s3_store: S3Store
) -> None:
    first = Reader(s3_store).record("default", "pirate", 1)
    forged = replace(first, actor="somebody else")
    damage(s3_store, log_key("default", "pirate", 1), forged.encode())
    ran = shell.run("verify", "pirate", "--json")
    assert ran.code == 5
    assert "another parent" in ran.document("verify")["failed"][0]["message"]
    assert shell.run("history", "pirate").code == 5
