"""Every command there is: its JSON against its published schema, and no secret in what it says.

The list of commands is the program's own, so a new one without a case here or without a line in
docs/cli-json/README.md fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapter_store.settings import Endpoints
from tests.adapter_store.cli.shell import SCHEMAS, Ran, Shell, every_command, validator

pytestmark = pytest.mark.services
CANARY = "c4nary-9d2e"

# In the order in which one needs what the other leaves. {txid} is that of the first push.
CASES: dict[str, str] = {
    "init": "",
    "check": "",
    "completion": "bash",
    "base add": "card.json",
    "base": "",
    "base ls": "",
    "push --dry-run": "one --name pirate",
    "push": "one --name pirate --version v1",
    "stage --dry-run": "two --name pirate",
    "stage": "two --name pirate --version v2",
    "activate": "pirate",
    "split": "pirate v1=90 v2=10",
    "rollback": "pirate --to v1",
    "canary": "pirate v2 --for 0 --min-answers 0 --no-promote",
    "settle": "pirate {txid}",
    "ls": "",
    "show": "pirate",
    "history": "pirate",
    "diff": "pirate@v1 pirate@v2",
    "pull": "pirate@v1 pulled --force",
    "watch": "pirate --last 3 --count 3",
    "nodes": "pirate",
    "verify": "--all",
    "pin": "pirate@v1",
    "unpin": "pirate@v1",
    "fsck": "",
    "gc --dry-run": "",
    "gc": "--keep 1 --younger-than 1m",
    "keygen": "--out key.pem",
    "reclaim": "pirate --empty --sign-key key.pem --trust trust.toml",
    "delete": "pirate --yes",
    "doctor": "",
}
# What such a command needs so that it fails, where a missing argument is not enough.
FAILING: Mapping[str, str] = {
    "base ls": "--nothing",
    "completion": "cmd",
}


@dataclass
class Walk:
    """A walk through every command in one store."""

    shell: Shell
    folder: Path
    txid: str = "0" * 32

    def arguments(self, command: str) -> list[str]:
        return [*command.split(), *CASES[command].format(txid=self.txid).split()]

    def step(self, command: str, *more: str) -> Ran:
        ran = self.shell.run(*self.arguments(command), *more)
        if ran.code == 0 and command == "push" and "--json" in more:
            self.txid = json.loads(ran.out)["txid"]
        return ran

    def prepare(self, command: str) -> None:
        """Take away what a first run of `command` left and a second one must not find."""
        if command == "keygen":
            (self.folder / "key.pem").unlink(missing_ok=True)
        if command == "reclaim":
            (self.folder / "key.pem").unlink()
            (self.folder / "trust.toml").write_text(self.shell.ok(*self.arguments("keygen")).out)


@pytest.fixture
def walk(empty_shell: Shell, folder: Path) -> Walk:
    empty_shell.monkeypatch.setenv("LORAPOOL_CACHE_DIR", str(folder / "cache"))
    return Walk(empty_shell, folder)


def published_schemas() -> dict[str, str]:
    """The schema of each command as docs/cli-json/README.md tells it."""
    found = {}
    for line in (SCHEMAS / "README.md").read_text().splitlines():
        row = re.fullmatch(r"\| (`.*`) \| `([a-z-]+)\.schema\.json`.*\|", line)
        if row is not None:
            found.update(dict.fromkeys(re.findall(r"`([^`]+)`", row[1]), row[2]))
    return found


def forgotten(commands: list[tuple[str, ...]]) -> set[str]:
    """Commands that have no case here or no published schema."""
    names = {" ".join(words) for words in commands}
    return (names - set(CASES)) | (names - set(published_schemas()))


def test_every_command_has_a_case_and_a_published_schema() -> None:
    assert forgotten(every_command()) == set()
    assert forgotten([*every_command(), ("new",)]) == {"new"}, "the control"
    assert set(CASES) <= set(published_schemas())
    schemas = {path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.json")}
    assert schemas - set(published_schemas().values()) == {"error"}


def test_what_every_command_prints_with_json_is_as_published(walk: Walk) -> None:
    for command in CASES:
        walk.prepare(command)
        ran = walk.step(command, "--json")
        assert ran.code == 0, (command, ran.said)
        lines = ran.out.splitlines()
        assert len(lines) == (3 if command == "watch" else 1), command
        for line in lines:
            validator(published_schemas()[command]).validate(json.loads(line))


def test_what_every_command_prints_when_it_fails_is_as_published(walk: Walk) -> None:
    for command in CASES:
        bad = FAILING.get(command, "--no-such-option")
        ran = walk.shell.run(*command.split(), bad, "--json")
        error = ran.document("error")["error"]
        assert (ran.code, error["exit_code"], error["kind"]) == (2, 2, "Usage"), command
        assert error["hint"].endswith("--help")
        people = walk.shell.run(*command.split(), bad)
        assert (people.code, people.out) == (2, ""), command
        assert "hint: adapter-store" in people.err


def test_no_command_prints_a_secret_whether_it_succeeds_or_fails(
    walk: Walk, endpoints: Endpoints
) -> None:
    fits = {"LORAPOOL_REDIS_URL": f"redis://:{CANARY}@127.0.0.1:1/0"}
    broken: list[dict[str, str]] = [
        {"LORAPOOL_S3_SECRET_KEY": CANARY},
        {"LORAPOOL_S3_ENDPOINT": f"http://user:{CANARY}@127.0.0.1:1"},
        {"LORAPOOL_REDIS_URL": f"redis://:{CANARY}@[::1"},
    ]
    said, failed = "", set()
    for env in (fits, *broken):
        with walk.shell.monkeypatch.context() as patch:
            # The check of the store waits for the losers of its race; once is enough.
            if env is not fits:
                patch.setattr("adapter_store.check.check_store", lambda store: None)
            for name, value in env.items():
                patch.setenv(name, value)
            for command in CASES:
                walk.prepare(command)
                ran = walk.shell.run("--debug", *walk.arguments(command), "--json")
                said += ran.said
                if ran.code:
                    failed.add(command)
                if command == "push" and not ran.code:
                    walk.txid = json.loads(ran.out)["txid"]
    assert {"push", "ls", "doctor", "watch", "delete"} <= failed
    assert CANARY not in said
    assert endpoints.s3_secret_key not in said
    password = endpoints.redis_url.rpartition("@")[0].rpartition(":")[2]
    assert not password or password not in said
    assert "PRIVATE KEY" not in said
