from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapter_store.cli.progress import Silence, Uploads
from adapter_store.errors import StoreRefused
from adapter_store.memory import MemoryStore
from adapter_store.objects import ObjectStore
from adapter_store.s3 import S3Store
from adapter_store.upload import Uploader, cut
from tests.adapter_store.adapter_files import CARD, config, write_adapter
from tests.adapter_store.cli.shell import Shell

pytestmark = pytest.mark.services
CONFIG_BYTES = len(json.dumps(config(), indent=2).encode())


def test_a_push_names_version_generation_and_digest_on_stdout_alone(shell: Shell) -> None:
    ran = shell.ok("push", "one", "--name", "pirate", "--version", "v1")
    digest = shell.ok("show", "pirate", "--json").document("show")["digest"]
    assert ran.out == f"published pirate@v1  generation 1  sha256:{digest[:12]}  {sent(shell)}\n"
    assert "sent    adapter_model.safetensors" in ran.err
    assert "not published: README.md" in ran.err


def sent(shell: Shell) -> str:
    done = shell.ok("push", "one", "--name", "twin", "--json").document("push")
    assert done["bytes_sent"] == 0
    return f"{done['bytes_reused'] / 1024:.1f} KiB sent, 0 B reused"


def test_pushing_the_same_content_twice_says_so_and_succeeds(shell: Shell) -> None:
    first = shell.ok("push", "one", "--name", "pirate", "--json").document("push")
    again = shell.ok("push", "one", "--name", "pirate")
    assert "is served already, nothing to do" in again.out
    assert "exists  adapter_config.json" in again.err
    assert "exists  adapter_model.safetensors" in again.err
    twice = shell.ok("push", "one", "--name", "pirate", "--json").document("push")
    assert twice["unchanged"]
    assert (twice["digest"], twice["generation"]) == (first["digest"], 1)
    assert [file["bytes_sent"] for file in twice["files"]] == [0, 0]
    assert len(shell.ok("history", "pirate", "--json").document("history")["records"]) == 1


def test_a_chunk_the_store_has_is_shown_as_existing_and_not_sent(shell: Shell) -> None:
    shell.ok("push", "one", "--name", "pirate")
    ran = shell.ok("push", "two", "--name", "parrot")
    assert "exists  adapter_config.json  1.1 KiB, 0 B sent" in ran.err
    assert "sent    adapter_model.safetensors" in ran.err
    done = shell.ok("push", "two", "--name", "third", "--json").document("push")
    assert (done["bytes_sent"], done["unchanged"]) == (0, False)


def test_a_big_file_is_shown_chunk_by_chunk(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapter_store.layout.CHUNK_BYTES", 1000)
    ran = shell.ok("push", "one", "--name", "pirate")
    steps = [line.split() for line in ran.err.splitlines() if " of " in line]
    assert sorted((step[0], *step[-2:]) for step in steps) == [
        ("adapter_config.json", "1.1", "KiB"),
        ("adapter_model.safetensors", "2.3", "KiB"),
        ("adapter_model.safetensors", "2.3", "KiB"),
    ]
    done = shell.ok("push", "two", "--name", "pirate", "--json").document("push")
    config, weights = done["files"]
    # The first chunk holds nothing but the header, which is the same in both.
    assert (config["bytes_sent"], weights["bytes_sent"]) == (0, weights["size"] - 1000)


def test_equal_chunks_are_sent_once_and_counted_in_every_place() -> None:
    store, told = MemoryStore(), []

    class Told(Silence):
        def moved(self, name: str, *, placed: int, sent: int) -> None:
            told.append((name, placed, sent))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapter_store.layout.CHUNK_BYTES", 10)
        content = {"other": bytes(10), "weights": bytes(20) + b"end"}
        files = cut(content)
    uploads = Uploads(files, Told())
    uploader = Uploader(
        store,
        tenant="default",
        txid="0" * 32,
        attempt=1,
        condemned=frozenset(),
        read=lambda chunk: bytes(chunk.length) if chunk.length == 10 else b"end",
        before_write=lambda: None,
        sleep=lambda seconds: None,
        progress=uploads,
    )
    assert uploader.place(files).bytes_sent == 13
    assert [file["bytes_sent"] for file in uploads.documents()] == [10, 3]
    assert ("other", 10, 10) in told
    assert max(placed for name, placed, _ in told if name == "weights") == 23


def test_a_dry_run_tells_what_would_be_sent_and_writes_nothing(
    shell: Shell, s3_store: S3Store
) -> None:
    before = every_key(s3_store)
    ran = shell.ok("push", "one", "--name", "pirate", "--dry-run", "--json")
    plan = ran.document("dry-run")
    assert (plan["current_generation"], plan["unchanged"], plan["rank"]) == (0, False, 4)
    assert plan["bytes_to_send"] == plan["bytes"] > CONFIG_BYTES
    assert every_key(s3_store) == before
    done = shell.ok("push", "one", "--name", "pirate", "--json").document("push")
    assert (plan["digest"], plan["bytes"]) == (done["digest"], done["bytes_sent"])
    assert (
        "a push would change nothing" in shell.ok("push", "one", "--name=pirate", "--dry-run").out
    )
    plan = shell.ok("push", "two", "--name", "pirate", "--dry-run", "--json").document("dry-run")
    assert plan["bytes"] - plan["bytes_to_send"] == CONFIG_BYTES
    assert (
        "of 3.4 KiB; nothing was written"
        in shell.ok("push", "two", "--name", "pirate", "--dry-run").out
    )


def test_content_an_older_label_names_is_published_again_and_says_so(shell: Shell) -> None:
    for folder, label in (("one", "v1"), ("two", "v2")):
        shell.ok("push", folder, "--name", "pirate", "--version", label)
    done = shell.document("push", "push", "one", "--name", "pirate", "--version", "v1")
    assert (done["generation"], done["bytes_sent"], done["unchanged"]) == (3, 0, False)
    assert done["same_content_as"] == []
    ran = shell.ok("push", "two", "--name", "pirate", "--version", "again")
    assert "this is the content of pirate@v2, under a label of its own" in ran.err
    ran = shell.ok("push", "two", "--name", "pirate")
    assert "is served already, nothing to do" in ran.out


def test_a_dry_run_needs_no_right_to_write_and_fails_as_a_push_would(
    shell: Shell, s3_store: S3Store
) -> None:
    shell.ok("push", "one", "--name", "pirate", "--version", "v1")

    def refused(self: S3Store, key: str, *more: object) -> None:
        raise StoreRefused(f"{key}: only to be read")

    before = every_key(s3_store)
    with shell.monkeypatch.context() as patch:
        for verb in ("put_new", "delete"):
            patch.setattr(S3Store, verb, refused)
        plan = shell.document("dry-run", "push", "two", "--name", "pirate", "--dry-run")
        assert (plan["version"], plan["generation"], plan["current_generation"]) == ("v2", 2, 1)
        assert [bool(file["bytes_to_send"]) for file in plan["files"]] == [False, True]
        shell.ok("push", "two", "--name", "pirate", "--dry-run")
        for terms in (("--version", "v1"), ("--expect-gen", "7")):
            assert shell.run("push", "two", "--name", "pirate", "--dry-run", *terms).code == 4
        assert shell.run("push", "two", "--name", "pirate").code == 6, "the control"
    assert every_key(s3_store) == before


def test_a_generation_that_moved_on_is_a_conflict(shell: Shell) -> None:
    shell.ok("push", "one", "--name", "pirate", "--expect-gen", "0")
    ran = shell.run("push", "two", "--name", "pirate", "--expect-gen", "0")
    assert ran.code == 4
    assert ran.err.splitlines()[-2:] == [
        "error: pirate is at generation 1, not 0",
        "hint: look at what was published, then publish again; run: adapter-store history pirate",
    ]
    ran = shell.run("push", "two", "--name", "pirate", "--expect-gen", "0", "--json")
    assert ran.document("error")["error"]["kind"] == "Conflict"
    assert ran.code == 4
    shell.ok("push", "two", "--name", "pirate", "--expect-gen", "1", "--no-rebase")


def test_a_label_never_changes_its_meaning(shell: Shell) -> None:
    shell.ok("push", "one", "--name", "pirate", "--version", "v1")
    ran = shell.run("push", "two", "--name", "pirate", "--version", "v1", "--tenant", "default")
    assert ran.code == 4
    assert "another label" in ran.err


def test_tenants_do_not_see_each_other(shell: Shell) -> None:
    done = shell.ok("push", "one", "--name", "pirate", "--tenant", "acme", "--json")
    assert done.document("push")["tenant"] == "acme"
    assert shell.ok("ls", "--json").document("ls")["adapters"] == []
    assert shell.run("show", "pirate").code == 3
    ran = shell.run("push", "two", "--name", "pirate", "--tenant", "acme", "--expect-gen", "9")
    assert "run: adapter-store history pirate --tenant acme" in ran.err
    shell.monkeypatch.setenv("LORAPOOL_TENANT", "acme")
    shell.ok("show", "pirate")


INVALID: dict[str, dict[str, Any]] = {
    "a config that is no JSON": {"config_body": b"{"},
    "weights cut short": {"weights": b"\0" * 7},
    "a pickle": {"weights": b"\x80\x04\x95" + b"\0" * 4 + b"x"},
    "an unknown module": {"config_body": json.dumps(config(target_modules=["nowhere"])).encode()},
}


@pytest.mark.parametrize("fault", INVALID)
def test_what_is_no_servable_adapter_is_refused_and_nothing_is_published(
    shell: Shell, tmp_path: Path, fault: str
) -> None:
    write_adapter(tmp_path / "bad", **INVALID[fault])
    ran = shell.run("push", "bad", "--name", "pirate")
    assert (ran.code, ran.out) == (5, "")
    assert "Traceback" not in ran.err
    ran = shell.run("push", "bad", "--name", "pirate", "--json")
    assert ran.code == 5
    error = ran.document("error")["error"]
    assert error["kind"] in ("InvalidAdapter", "Incompatible")
    assert error["hint"]
    assert shell.ok("ls", "--json").document("ls")["adapters"] == []


def test_a_folder_that_is_not_there_or_not_readable_is_an_invalid_adapter(
    shell: Shell, tmp_path: Path
) -> None:
    ran = shell.run("push", "no where", "--name", "pirate")
    assert ran.code == 5
    assert "run: adapter-store push 'no where' --name pirate --dry-run" in ran.err
    (tmp_path / "odd").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "odd" / name).mkdir()
    ran = shell.run("push", "odd", "--name", "pirate")
    assert ran.code == 5
    assert "error: odd/adapter_config.json is not a regular file" in ran.err
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "odd" / name).rmdir()
        (tmp_path / "odd" / name).touch(mode=0o000)
    if os.geteuid():
        ran = shell.run("push", "odd", "--name", "pirate")
        assert ran.code == 5
        assert "error: odd/adapter_config.json cannot be read: Permission denied" in ran.err


def test_without_a_base_the_next_command_is_named(empty_shell: Shell) -> None:
    ran = empty_shell.run("push", "one", "--name", "pirate")
    assert ran.code == 3
    assert "inference-node base-card > card.json && adapter-store base add card.json" in ran.err


def test_of_several_bases_one_must_be_named(shell: Shell, tmp_path: Path) -> None:
    other = replace(CARD, fingerprint="ab" * 32, name="other")
    (tmp_path / "other.json").write_bytes(other.encode())
    shell.ok("push", "one", "--name", "stranger", "--base-card", "other.json")
    ran = shell.run("push", "one", "--name", "pirate")
    assert ran.code == 2
    assert "--base <fingerprint>" in ran.err
    shell.ok("push", "one", "--name", "pirate", "--base", CARD.fingerprint)
    assert shell.run("push", "one", "--name", "pirate", "--base", "cd" * 32).code == 3
    assert shell.run("push", "one", "--name", "pirate", "--base", "short").code == 2
    both = ("--base", CARD.fingerprint, "--base-card", "other.json")
    assert shell.run("push", "one", "--name", "pirate", *both).code == 2
    assert shell.run("push", "one", "--name", "pirate", "--base-card", "none.json").code == 3
    assert shell.run("push", "one", "--name", "pirate", "--base-card", "one/README.md").code == 5


def test_a_base_card_is_registered_only_with_an_adapter_that_fits(
    empty_shell: Shell, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "bad", weights=b"nothing")
    card = ("--base-card", "card.json")
    assert empty_shell.run("push", "bad", "--name", "pirate", *card).code == 5
    empty_shell.ok("push", "one", "--name", "pirate", *card, "--dry-run")
    assert empty_shell.ok("base", "--json").document("base") == {"bases": []}
    empty_shell.ok("push", "one", "--name", "pirate", *card)
    assert len(empty_shell.ok("base", "--json").document("base")["bases"]) == 1


@pytest.mark.parametrize("url", ["", "redis://:s3cr3t-pw@127.0.0.1:1/0"])
def test_without_redis_a_push_warns_once_and_goes_on(shell: Shell, url: str) -> None:
    shell.monkeypatch.setenv("LORAPOOL_REDIS_URL", url)
    ran = shell.ok("push", "one", "--name", "pirate")
    assert ran.err.count("warning:") == 1
    assert "publishing without the lock" in ran.err
    assert "s3cr3t-pw" not in ran.said
    ran = shell.ok("push", "two", "--name", "pirate", "--json")
    assert ran.document("push")["generation"] == 2
    assert "warning:" in ran.err


def every_key(store: ObjectStore) -> list[str]:
    return [key for key in store.list("").keys if not key.startswith("v1/check/")]


def test_who_waits_for_another_publisher_is_told_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from adapter_store.cli import session
    from adapter_store.coordination import Lease

    said: list[str] = []
    told = threading.Event()

    class Slow:
        reason = "another held it"

        def acquire(self, tenant: str, adapter: str, *, floor: int) -> Lease | None:
            assert told.wait(10)
            return None

    def say(line: str) -> None:
        said.append(line)
        told.set()

    monkeypatch.setattr(session, "SILENT_WAIT_S", 0.01)
    monkeypatch.setattr(session, "say", say)
    lock = session.TalkativeLock(lambda heard: Slow())
    assert lock.acquire("default", "pirate", floor=0) is None
    assert said == ["waiting for Redis to answer ..."]
