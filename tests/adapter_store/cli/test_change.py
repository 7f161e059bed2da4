from __future__ import annotations

import pytest

from adapter_store import layout
from adapter_store.check import check_store
from adapter_store.reader import Reader
from adapter_store.s3 import S3Store
from tests.adapter_store.cli.shell import Shell

pytestmark = pytest.mark.services


@pytest.fixture
def digests(shell: Shell) -> list[str]:
    """`pirate` has served v1 and serves v2."""
    return [
        shell.ok("push", folder, "--name", "pirate", "--version", label, "--json").document("push")[
            "digest"
        ]
        for folder, label in (("one", "v1"), ("two", "v2"))
    ]


@pytest.mark.parametrize("to", ["before", "label", "digest", "short digest"])
def test_a_rollback_serves_older_content_under_a_higher_generation(
    shell: Shell, digests: list[str], to: str
) -> None:
    options = {
        "before": (),
        "label": ("--to", "v1"),
        "digest": ("--to", f"sha256:{digests[0]}"),
        "short digest": ("--to", f"sha256:{digests[0][:8]}"),
    }[to]
    done = shell.ok("rollback", "pirate", *options, "--json").document("published")
    assert (done["version"], done["generation"], done["digest"]) == ("v1", 3, digests[0])
    assert (done["kind"], done["bytes_sent"]) == ("rollback", 0)
    ran = shell.ok("rollback", "pirate", "--to", "v1")
    assert "is served already" in ran.out


def test_a_rollback_says_what_it_did(shell: Shell, digests: list[str]) -> None:
    ran = shell.ok("rollback", "pirate", "--expect-gen", "2")
    assert ran.out.startswith(
        f"rolled back to pirate@v1  generation 3  sha256:{digests[0][:12]}  0 B sent"
    )
    ran = shell.run("rollback", "pirate", "--expect-gen", "2", "--json")
    assert (ran.code, ran.document("error")["error"]["kind"]) == (4, "Conflict")


def test_settle_says_for_good_whether_a_transaction_landed(
    shell: Shell, digests: list[str], s3_store: S3Store
) -> None:
    txid = Reader(s3_store).head("default", "pirate").txid
    done = shell.ok("settle", "pirate", txid, "--json").document("published")
    assert (done["version"], done["generation"], done["txid"]) == ("v2", 2, txid)
    ran = shell.run("settle", "pirate", "0" * 32)
    assert ran.code == 4
    assert "run: adapter-store push <folder> --name pirate" in ran.err
    assert shell.run("settle", "pirate", "zzz").code == 2


def test_a_commit_nobody_can_settle_is_its_own_exit_code_and_names_the_way_out(
    shell: Shell, digests: list[str]
) -> None:
    from adapter_store.commit import Publisher
    from adapter_store.errors import OutcomeUnknown

    def lost(*args: object, **options: object) -> None:
        raise OutcomeUnknown("sent, no answer", txid="ab" * 16)

    shell.monkeypatch.setattr(Publisher, "publish", lost)
    ran = shell.run("push", "one", "--name", "pirate", "--json")
    error = ran.document("error")["error"]
    assert (ran.code, error["kind"], error["txid"]) == (7, "OutcomeUnknown", "ab" * 16)
    assert error["hint"].endswith(f"adapter-store settle pirate {'ab' * 16}")


def test_a_base_is_registered_once_and_listed(shell: Shell) -> None:
    assert "registered tiny" in shell.ok("base", "add", "card.json").out
    added = shell.ok("base", "add", "card.json", "--json").document("base-add")
    assert shell.ok("base", "ls", "--json").document("base") == {"bases": [added]}
    assert shell.ok("base", "--json").document("base") == {"bases": [added]}
    assert added["fingerprint"] in shell.ok("base").out
    assert shell.run("base", "add", "one/README.md").code == 5
    ran = shell.run("base", "add", "missing.json")
    assert ran.code == 3
    assert "inference-node base-card > card.json" in ran.err


def test_init_creates_the_bucket_and_check_proves_it_fit(
    empty_shell: Shell, s3_store: S3Store
) -> None:
    empty_shell.monkeypatch.setenv("LORAPOOL_S3_BUCKET", f"{s3_store.bucket}-2")
    ran = empty_shell.run("check")
    assert ran.code == 6
    assert "run: adapter-store init" in ran.err
    try:
        told = empty_shell.ok("init", "--json").document("store")
        assert (told["bucket"], told["fit"]) == (f"{s3_store.bucket}-2", True)
        empty_shell.ok("init")
        assert "is fit" in empty_shell.ok("check").out
    finally:
        s3_store._client.delete_bucket(Bucket=f"{s3_store.bucket}-2")
    empty_shell.monkeypatch.setenv("LORAPOOL_S3_BUCKET", s3_store.bucket)
    assert s3_store.list(layout.checks_prefix()).keys == ()
    assert empty_shell.ok("check", "--json").document("store")["fit"]


@pytest.mark.parametrize("command", ["init", "check", "push", "rollback"])
def test_a_store_that_breaks_a_promise_is_refused_before_anything_is_published(
    shell: Shell, digests: list[str], s3_store: S3Store, command: str
) -> None:
    """The seeded bug: a store that forgets If-None-Match."""
    put = S3Store._put

    def overwriting(self: S3Store, key: str, body: bytes, checksum: str) -> None:
        if key.startswith(layout.checks_prefix()):
            s3_store.delete(key)
        put(self, key, body, checksum)

    shell.monkeypatch.setattr("adapter_store.check.check_store", check_store)
    shell.monkeypatch.setattr(S3Store, "_put", overwriting)
    words = {"push": ("push", "one", "--name", "pirate"), "rollback": ("rollback", "pirate")}
    ran = shell.run(*words.get(command, (command,)), "--json")
    assert (ran.code, ran.document("error")["error"]["kind"]) == (6, "StoreUnfit")
    assert Reader(s3_store).head("default", "pirate").gen == 2
