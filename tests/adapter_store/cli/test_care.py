"""`gc`, `fsck`, `pin`, `unpin` and `check --full` as a shell runs them."""

from __future__ import annotations

import pytest

from adapter_store import layout
from adapter_store.conformance import Rounds
from adapter_store.findings import Kind
from adapter_store.reader import Reader
from adapter_store.s3 import S3Store
from tests.adapter_store.cli.shell import Shell, validator

pytestmark = pytest.mark.services

EAGER = ("--keep", "1", "--younger-than", "0s")


@pytest.fixture
def published(shell: Shell) -> Shell:
    """`pirate` has served v1 and serves v2."""
    for folder, label in (("one", "v1"), ("two", "v2")):
        shell.ok("push", folder, "--name", "pirate", "--version", label)
    return shell


def chunk_of(store: S3Store, label: str) -> str:
    found = Reader(store).resolve(layout.parse_ref(f"pirate@{label}"))
    return next(f for f in found.version.files if f.name.endswith("safetensors")).chunks[0].key


def test_gc_says_what_would_go_and_then_lets_it_go(published: Shell) -> None:
    assert "0 B of" in published.ok("gc", "--dry-run").out
    plan = published.document("gc-dry-run", "gc", "--dry-run", *EAGER)
    assert [(v["adapter"], v["version"], v["generation"]) for v in plan["versions"]] == [
        ("pirate", "v1", 1)
    ]
    assert (plan["chunks_to_delete"], plan["unnamed"]["chunks"], plan["pins"]) == (1, 0, [])
    told = published.ok("gc", "--dry-run", *EAGER).out
    assert "pirate   v1" in told
    assert "out of retention" in told
    done = published.document("gc", "gc", *EAGER)
    assert (done["chunks_deleted"], done["plans_left"]) == (1, 0)
    assert done["bytes_deleted"] == plan["bytes_to_delete"] > 0
    assert "deleted 0 of 2 chunks" in published.ok("gc", *EAGER).out
    ran = published.run("rollback", "pirate", "--to", "v1")
    assert ran.code == 3
    assert "no longer kept" in ran.err
    published.ok("verify", "pirate")
    published.ok("fsck", "--deep")


def test_a_pinned_version_outlives_gc_until_it_is_unpinned(published: Shell) -> None:
    digest = published.document("show", "show", "pirate@v1")["digest"]
    assert published.document("pin", "pin", "pirate@v1") == {
        "tenant": "default",
        "pinned": True,
        "adapter": "pirate",
        "version": "v1",
        "digest": digest,
    }
    assert "pinned pirate@v1" in published.ok("pin", f"pirate@sha256:{digest[:8]}").out
    assert published.document("show", "show", "pirate@v1")["pinned"] is True
    assert published.document("show", "show", "pirate")["pinned"] is False
    assert "pinned          yes" in published.ok("show", "pirate@v1").out
    plan = published.document("gc-dry-run", "gc", "--dry-run", *EAGER)
    assert (plan["versions"], [pin["version"] for pin in plan["pins"]]) == ([], ["v1"])
    assert "pinned, stays: pirate@v1" in published.ok("gc", "--dry-run", *EAGER).out
    assert published.document("gc", "gc", *EAGER)["chunks_deleted"] == 0
    assert published.document("pin", "unpin", f"pirate@sha256:{digest[:8]}")["pinned"] is False
    ran = published.run("unpin", "pirate@v1")
    assert (ran.code, "gc --dry-run" in ran.err) == (3, True)
    assert published.document("gc", "gc", *EAGER)["chunks_deleted"] == 1
    assert published.run("pin", "pirate@v1").code == 3


def test_what_names_no_version_or_age_is_a_usage_error(published: Shell) -> None:
    for command in (
        ("pin", "pirate"),
        ("unpin", "pirate"),
        ("gc", "--younger-than", "soon"),
        ("gc", "--keep", "0"),
    ):
        assert published.run(*command).code == 2, command
    assert published.run("pin", "pirate@nothing").code == 3


def test_fsck_names_damage_with_exit_code_5_and_leftovers_with_0(
    published: Shell, s3_store: S3Store
) -> None:
    whole = published.document("fsck", "fsck", "--deep")
    assert whole["findings"] == []
    assert whole["summary"]["bytes_read"] > 0
    orphan = layout.blob_key("default", "d" * 64, "e" * 32, 1)
    s3_store.put_new(orphan, b"left")
    ran = published.ok("fsck")
    assert "0 errors" in ran.out
    assert "1 chunks are named by nothing" in ran.err
    key = chunk_of(s3_store, "v2")
    s3_store.delete(key)
    ran = published.run("fsck", "--json")
    assert ran.code == 5
    found = ran.document("fsck")
    assert {(f["severity"], f["kind"], f["key"]) for f in found["findings"]} == {
        ("error", "chunk-missing", key),
        ("info", "orphan", orphan),
    }
    assert (found["summary"]["errors"], found["summary"]["infos"]) == (1, 1)
    ran = published.run("fsck")
    assert ran.code == 5
    assert "chunk-missing" in ran.out
    assert key in ran.out


def test_gc_of_a_damaged_store_deletes_nothing_and_points_to_fsck(
    published: Shell, s3_store: S3Store
) -> None:
    s3_store.put_new(layout.intent_key("default", "a" * 32, 1), b"?")
    ran = published.run("gc", *EAGER)
    assert ran.code == 5
    assert "adapter-store fsck" in ran.err
    assert chunk_of(s3_store, "v1") in s3_store.list(layout.blobs_prefix("default")).keys
    assert "intent-damaged" in published.run("fsck").out


def test_the_full_check_tells_every_promise(shell: Shell) -> None:
    few = Rounds(writes=1, races=2, lost_answers=2, listings=2, reads=2)
    shell.monkeypatch.setattr("adapter_store.conformance.Rounds", lambda: few)
    document = shell.document("check-full", "check", "--full")
    assert [(p["name"], p["cases"]) for p in document["promises"]] == [
        ("write once", 1),
        ("race", 2),
        ("lost answer", 2),
        ("list after put", 2),
        ("read after write", 2),
        ("checksum", 4),
        ("alias", 6),
    ]
    told = shell.ok("check", "--full")
    assert told.out.count("ok  ") == 7
    assert "is fit" in told.out


def test_the_published_schema_knows_every_kind_of_finding() -> None:
    kinds = validator("fsck").schema["properties"]["findings"]["items"]["properties"]["kind"]
    assert kinds["enum"] == [kind.value for kind in Kind]
