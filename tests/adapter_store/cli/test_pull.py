from __future__ import annotations

from pathlib import Path

import pytest

from adapter_store.cli import pull as under_test
from adapter_store.cli.outcome import LocalFault
from adapter_store.cli.pull import write_folder
from adapter_store.reader import Reader
from adapter_store.s3 import S3Store
from tests.adapter_store.cli.shell import Shell

pytestmark = pytest.mark.services


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_pulled_is_what_was_pushed_and_pushing_it_again_does_nothing(
    shell: Shell, folder: Path
) -> None:
    pushed = shell.document("push", "push", "one", "--name", "pirate", "--version", "v1")
    shell.ok("push", "two", "--name", "pirate")
    ran = shell.ok("pull", "pirate@v1", "deep/er")
    assert ran.out.startswith("pulled pirate@v1  generation 1  sha256:")
    original = contents(folder / "one")
    del original["README.md"]
    assert contents(folder / "deep" / "er") == original
    told = shell.document("pull", "pull", "pirate", "now")
    shell.ok("rollback", "pirate", "--to", "v1")
    again = shell.document("push", "push", "deep/er", "--name", "pirate")
    assert (again["unchanged"], again["digest"]) == (True, pushed["digest"])
    assert told["digest"] != pushed["digest"]


def test_nothing_that_is_there_is_lost(shell: Shell, folder: Path) -> None:
    shell.ok("push", "one", "--name", "pirate")
    before = contents(folder / "two")
    ran = shell.run("pull", "pirate", "two")
    assert (ran.code, ran.out) == (2, "")
    assert "add --force" in ran.err
    assert contents(folder / "two") == before
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years of work")
    (folder / "link").symlink_to(folder / "two")
    for place in ("mine", "link", "card.json", "."):
        ran = shell.run("pull", "pirate", place, "--force", "--json")
        assert (ran.code, ran.document("error")["error"]["exit_code"]) == (2, 2), place
    assert contents(folder / "mine") == {"thesis.txt": b"years of work"}
    assert contents(folder / "two") == before
    shell.ok("pull", "pirate", "two", "--force")
    assert set(contents(folder / "two")) == {"adapter_config.json", "adapter_model.safetensors"}
    (folder / "empty").mkdir()
    shell.ok("pull", "pirate", "empty")
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_damaged_content_is_not_written(shell: Shell, folder: Path, s3_store: S3Store) -> None:
    shell.ok("push", "one", "--name", "pirate")
    active = Reader(s3_store).head("default", "pirate").active
    assert active is not None
    chunk = active.files[1].chunks[0]
    s3_store.delete(chunk.key)
    s3_store.put_new(chunk.key, b"\0" * chunk.length)
    assert shell.run("pull", "pirate", "there").code == 5
    assert not (folder / "there").exists()


@pytest.mark.parametrize("at", ["new", "last step"])
def test_a_folder_that_cannot_be_written_is_left_as_it_was(
    bare_shell: Shell, folder: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder / "one")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if at == "new":
            patch.setattr(under_test.os, "fsync", full)
        else:
            patch.setattr(Path, "rename", failing)
        with pytest.raises(LocalFault, match="No space left"):
            write_folder(folder / "one", {"adapter_config.json": b"{}"})
    assert contents(folder / "one") == before
    assert not list(folder.glob(".one*"))


def test_a_folder_beside_which_nothing_may_be_written_is_an_error_with_a_next_step(
    shell: Shell,
) -> None:
    shell.ok("push", "one", "--name", "pirate")
    ran = shell.run("pull", "pirate", "card.json/inside", "--json")
    assert (ran.code, ran.document("error")["error"]["kind"]) == (1, "LocalFault")
