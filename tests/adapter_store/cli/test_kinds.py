"""`activate`, `split` and `delete`, and how what they leave behind is shown."""

from __future__ import annotations

import os
import pty

import pytest

from adapter_store.reader import Reader
from adapter_store.record import RecordKind
from adapter_store.s3 import S3Store
from tests.adapter_store.adapter_files import CARD
from tests.adapter_store.cli.shell import Shell
from tests.adapter_store.publishing import adapter, publisher

pytestmark = pytest.mark.services


@pytest.fixture
def digests(shell: Shell) -> list[str]:
    """`pirate` has served v1 and serves v2."""
    return [
        shell.document("push", "push", folder, "--name", "pirate", "--version", label)["digest"]
        for folder, label in (("one", "v1"), ("two", "v2"))
    ]


@pytest.fixture
def staged(digests: list[str], s3_store: S3Store) -> str:
    """The digest of `next`, staged beside v2."""
    assert adapter(3).base == CARD.fingerprint
    return publisher(s3_store).stage("default", "pirate", adapter(3), label="next").vdig


def test_an_activation_serves_what_is_staged_and_twice_is_once(shell: Shell, staged: str) -> None:
    ran = shell.ok("activate", "pirate", "--expect-gen", "3")
    assert ran.out.startswith(
        f"activated pirate@next  generation 4  sha256:{staged[:12]}  0 B sent"
    )
    done = shell.document("published", "activate", "pirate")
    assert (done["unchanged"], done["kind"], done["version"]) == (True, "activate", "next")
    assert (done["staged"], done["split"]) == (None, [])
    assert "is served already" in shell.ok("activate", "pirate").out


@pytest.mark.parametrize("version", ["label", "digest", "short digest"])
def test_any_version_of_the_log_can_be_activated(
    shell: Shell, digests: list[str], version: str
) -> None:
    text = {
        "label": "v1",
        "digest": f"sha256:{digests[0]}",
        "short digest": f"sha256:{digests[0][:8]}",
    }[version]
    done = shell.document("published", "activate", "pirate", "--version", text)
    assert (done["version"], done["digest"], done["generation"]) == ("v1", digests[0], 3)


def test_activating_nothing_names_the_command_that_stages(shell: Shell, digests: list[str]) -> None:
    ran = shell.run("activate", "pirate")
    assert (ran.code, ran.out) == (3, "")
    assert "nothing of pirate is staged" in ran.err
    assert "run: adapter-store stage <folder> --name pirate" in ran.err
    ran = shell.run("activate", "pirate", "--version", "v9")
    assert (ran.code, "adapter-store history pirate" in ran.err) == (3, True)


def test_a_split_says_who_gets_what_and_is_shown_everywhere(
    shell: Shell, digests: list[str], staged: str
) -> None:
    ran = shell.ok("split", "pirate", "v1=95", f"sha256:{digests[1][:8]}=5")
    assert ran.out.startswith("split pirate  v1=95 v2=5  generation 4  0 B sent")
    done = shell.document("published", "split", "pirate", "v1=95", "v2=5")
    arms = [
        {"version": "v1", "digest": digests[0], "weight": 95},
        {"version": "v2", "digest": digests[1], "weight": 5},
    ]
    beside = {"version": "next", "digest": staged}
    assert (done["unchanged"], done["version"], done["split"]) == (True, "v2", arms)
    assert "is split like that already" in shell.ok("split", "pirate", "v1=95", "v2=5").out

    (listed,) = shell.document("ls", "ls")["adapters"]
    shown = shell.document("show", "show", "pirate")
    first, second, *_ = shell.document("history", "history", "pirate")["records"]
    assert [d["split"] for d in (listed, shown, first, second)] == [arms, arms, arms, []]
    assert [d["staged"] for d in (listed, shown, first, second)] == [beside] * 4
    assert shell.ok("ls").out.splitlines()[1].endswith("staged next, split v1=95 v2=5")
    told = shell.ok("show", "pirate").out
    assert f"staged          next  sha256:{staged}\nsplit           v1=95 v2=5\n" in told
    rows = [line.split()[:3] for line in shell.ok("history", "pirate").out.splitlines()[1:3]]
    assert rows == [["4", "split", "v1=95"], ["3", "stage", "next"]]


@pytest.mark.parametrize(
    "parts",
    [
        ["v1=1"],
        ["v1", "v2=1"],
        ["v1=x", "v2=1"],
        ["v1=-1", "v2=1"],
        ["v1=0", "v2=1"],
        ["v1=٣", "v2=1"],
        ["=1", "v2=1"],
        ["v1=1", "v1=2"],
        ["v1=99999999999999999999", "v2=1"],
        [f"v{n}=1" for n in range(9)],
    ],
)
def test_parts_that_make_no_split_are_usage_errors(
    shell: Shell, digests: list[str], s3_store: S3Store, parts: list[str]
) -> None:
    ran = shell.run("split", "pirate", "--", *parts)
    assert (ran.code, ran.out) == (2, "")
    assert "v1=95 v2=5" in ran.err
    assert Reader(s3_store).head("default", "pirate").gen == 2


def test_a_rollback_takes_a_split_back_and_an_activation_promotes_an_arm(
    shell: Shell, digests: list[str]
) -> None:
    shell.ok("split", "pirate", "v1=95", "v2=5")
    done = shell.document("published", "rollback", "pirate")
    assert (done["version"], done["split"], done["generation"]) == ("v2", [], 4)
    shell.ok("split", "pirate", "v1=95", "v2=5")
    done = shell.document("published", "activate", "pirate", "--version", "v1")
    assert (done["version"], done["split"], done["generation"]) == ("v1", [], 6)


def test_a_push_that_ends_a_staging_or_a_split_says_so(shell: Shell, staged: str) -> None:
    ran = shell.ok("push", "one", "--name", "pirate")
    assert "warning: next is no longer staged" in ran.err
    shell.ok("split", "pirate", "v1=95", "v2=5")
    ran = shell.ok("push", "two", "--name", "pirate")
    assert "warning: the split over v1, v2 has ended" in ran.err


def test_a_deletion_is_shown_as_one_and_a_push_or_rollback_revives(
    shell: Shell, digests: list[str]
) -> None:
    ran = shell.ok("delete", "pirate", "--yes", "--expect-gen", "2")
    assert ran.out == "deleted pirate  generation 3\n"
    done = shell.document("published", "delete", "pirate", "--yes")
    assert (done["unchanged"], done["version"], done["digest"]) == (True, None, None)
    assert "is deleted already" in shell.ok("delete", "pirate", "--yes").out
    assert shell.ok("ls").out.splitlines()[1].endswith("  deleted")
    ran = shell.run("show", "pirate")
    assert (ran.code, ran.out) == (3, "")
    assert "pirate was deleted" in ran.err
    assert "run: adapter-store history pirate" in ran.err
    assert shell.ok("history", "pirate").out.splitlines()[1].split()[:4] == [
        *("3", "tombstone", "-", "-")
    ]
    assert shell.document("published", "rollback", "pirate")["version"] == "v2"
    shell.ok("delete", "pirate", "--yes")
    assert shell.document("push", "push", "one", "--name", "pirate")["generation"] == 6


def test_where_nobody_can_be_asked_a_deletion_needs_yes(
    shell: Shell, digests: list[str], s3_store: S3Store
) -> None:
    ran = shell.run("delete", "pirate", "--json")
    error = ran.document("error")["error"]
    assert (ran.code, error["kind"], "--yes" in error["message"]) == (2, "Usage", True)
    assert Reader(s3_store).head("default", "pirate").gen == 2


@pytest.mark.parametrize("typed", ["pirate", "pirat"])
def test_on_a_terminal_a_deletion_wants_the_name_typed(
    shell: Shell, digests: list[str], s3_store: S3Store, typed: str
) -> None:
    ours, theirs = pty.openpty()
    with shell.start("delete", "pirate", "--json", stdin=theirs) as child:
        os.close(theirs)
        os.write(ours, f"{typed}\n".encode())
        out, err = child.communicate(timeout=60)
    os.close(ours)
    assert "Type its name" in err
    assert "Type its name" not in out
    assert child.returncode == (0 if typed == "pirate" else 2)
    head = Reader(s3_store).head("default", "pirate")
    assert (head.kind is RecordKind.TOMBSTONE) == (typed == "pirate")


@pytest.mark.parametrize(
    "change",
    [("activate",), ("split", "v1=1", "v2=1"), ("delete", "--yes"), ("rollback", "--to", "v1")],
    ids=lambda words: words[0],
)
def test_a_caller_who_expected_another_generation_is_refused(
    shell: Shell, digests: list[str], staged: str, change: tuple[str, ...]
) -> None:
    command, *rest = change
    ran = shell.run(command, "pirate", *rest, "--expect-gen", "2", "--json")
    error = ran.document("error")["error"]
    assert (ran.code, error["kind"]) == (4, "Conflict")
    assert "adapter-store history pirate" in error["hint"]


@pytest.mark.parametrize("kind", ["stage", "split", "tombstone"])
def test_every_kind_of_change_can_be_settled(
    shell: Shell, digests: list[str], staged: str, s3_store: S3Store, kind: str
) -> None:
    if kind == "split":
        shell.ok("split", "pirate", "v1=1", "v2=1")
    elif kind == "tombstone":
        shell.ok("delete", "pirate", "--yes")
    head = Reader(s3_store).head("default", "pirate")
    done = shell.document("published", "settle", "pirate", head.txid)
    assert (done["kind"], done["generation"], done["txid"]) == (kind, head.gen, head.txid)
    assert shell.ok("settle", "pirate", head.txid).out.startswith(
        {"stage": "staged pirate@next", "split": "split pirate  v1=1", "tombstone": "deleted"}[kind]
    )


def test_staging_sends_and_serves_nothing_new(shell: Shell, digests: list[str]) -> None:
    ran = shell.ok("stage", "one", "--name", "pirate", "--version", "again", "--dry-run")
    assert "nothing was written" in ran.out
    done = shell.document("push", "stage", "one", "--name", "pirate", "--version", "again")
    assert (done["kind"], done["version"], done["digest"]) == ("stage", "again", digests[0])
    assert (done["generation"], done["bytes_sent"], done["same_content_as"]) == (3, 0, ["v1"])
    assert done["staged"] == {"version": "again", "digest": digests[0]}
    ran = shell.ok("stage", "one", "--name", "pirate")
    assert ran.out.startswith("unchanged pirate@again")
    assert "is staged already" in ran.out
    ran = shell.ok("stage", "one", "--name", "pirate", "--dry-run")
    assert "is staged already: a stage would change nothing" in ran.out
    assert shell.document("show", "show", "pirate")["version"] == "v2"
    assert shell.document("show", "show", "pirate@again")["digest"] == digests[0]
    assert shell.run("stage", "one", "--name", "pirate", "--expect-gen", "1").code == 4


def test_a_push_that_landed_is_resumed_without_pushing_again(
    shell: Shell, digests: list[str], s3_store: S3Store
) -> None:
    txid = Reader(s3_store).head("default", "pirate").txid
    for folder in ((), ("two",), ("missing",)):
        resumed = ("push", *folder, "--name", "pirate", "--resume", txid)
        done = shell.document("push", *resumed)
        assert (done["generation"], done["txid"], done["files"]) == (2, txid, [])
    ran = shell.ok("push", "one", "--name", "pirate", "--resume", txid)
    assert "one holds other content than what landed" in ran.err
    assert "holds other content" not in shell.ok(*resumed[:1], "two", *resumed[2:]).err
    assert Reader(s3_store).head("default", "pirate").gen == 2


def test_a_push_that_never_will_land_is_pushed_anew_when_the_folder_is_given(
    shell: Shell, digests: list[str]
) -> None:
    ran = shell.run("push", "--name", "pirate", "--resume", "0" * 32)
    assert (ran.code, ran.out) == (4, "")
    assert "never will" in ran.err
    assert "run: adapter-store push <folder> --name pirate" in ran.err
    ran = shell.ok("push", "one", "--name", "pirate", "--resume", "0" * 32)
    assert "never will; pushing anew" in ran.err
    assert ran.out.startswith("published pirate@v3  generation 3")


def test_a_push_nobody_can_settle_yet_stays_unknown_and_is_not_repeated(
    shell: Shell, digests: list[str], s3_store: S3Store
) -> None:
    txid = "ab" * 16
    shell.monkeypatch.setenv("LORAPOOL_S3_ENDPOINT", "http://127.0.0.1:1")
    for folder in ((), ("one",)):
        ran = shell.run("push", *folder, "--name", "pirate", "--resume", txid, "--json")
        error = ran.document("error")["error"]
        assert (ran.code, error["kind"], error["txid"]) == (7, "OutcomeUnknown", txid)
        assert f"adapter-store settle pirate {txid}" in error["hint"]
    assert Reader(s3_store).head("default", "pirate").gen == 2


def test_what_cannot_be_resumed_is_a_usage_error(shell: Shell, staged: str) -> None:
    assert shell.run("push", "--name", "pirate").code == 2
    assert shell.run("push", "one", "--name", "pirate", "--resume", "zz").code == 2
    resume = ("--name", "pirate", "--resume", "0" * 32)
    assert shell.run("push", "one", *resume, "--dry-run").code == 2


def test_a_transaction_that_was_no_push_is_not_resumed_as_one(
    shell: Shell, staged: str, s3_store: S3Store
) -> None:
    txid = Reader(s3_store).head("default", "pirate").txid
    ran = shell.run("push", "one", "--name", "pirate", "--resume", txid)
    assert (ran.code, ran.out) == (2, "")
    assert f"was no push but a stage: adapter-store settle pirate {txid}" in ran.err


def test_rebasing_is_the_default_and_can_be_spelled_out(shell: Shell, digests: list[str]) -> None:
    for flag in ("--rebase", "--no-rebase"):
        assert flag in shell.ok("push", "--help").out
        shell.ok("push", "two", "--name", "pirate", flag)
