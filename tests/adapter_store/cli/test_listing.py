from __future__ import annotations

import pytest

from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.s3 import S3Store
from tests.adapter_store.cli.shell import Shell
from tests.adapter_store.crowd import fill, name

pytestmark = pytest.mark.services
FEW = 10


def test_ls_shows_every_adapter_once_page_by_page(shell: Shell, s3_store: S3Store) -> None:
    fill(s3_store, range(FEW))
    expected = [name(number) for number in range(FEW)]
    seen: list[str] = []
    following: str | None = None
    for _ in range(4):
        options = ("--after", following) if following else ()
        told = shell.ok("ls", "--limit", 3, *options, "--json").document("ls")
        seen += [listed["adapter"] for listed in told["adapters"]]
        following = told["next"]
    assert following is None
    assert seen == expected
    ran = shell.ok("ls", "--limit", 7)
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == expected[:7]
    token = ran.err.partition("--after '")[2].partition("'")[0]
    rest = shell.ok("ls", "--after", token)
    assert [line.split()[0] for line in rest.out.splitlines()[1:]] == expected[7:]
    assert rest.err == ""


def test_a_table_of_many_pages_has_one_header_and_holds_one_page(
    shell: Shell, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(s3_store, range(FEW))
    made: list[Reader] = []

    class Watched(Reader):
        def __init__(self, store: ObjectStore) -> None:
            super().__init__(store)
            made.append(self)

    monkeypatch.setattr("adapter_store.cli.listing.PAGE", 4)
    monkeypatch.setattr("adapter_store.reader.Reader", Watched)
    lines = shell.ok("ls").out.splitlines()
    assert [line.split()[0] for line in lines] == ["ADAPTER", *map(name, range(FEW))]
    assert [len(reader._known) for reader in made] == [4, 4, 2]
