"""Names in full, beginnings of names, and nothing that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_node.errors import BadConfiguration
from inference_node.rpc.identities import known_as, read_identities
from inference_node.rpc.scopes import EVERYTHING, NoScope, Role, Scope, parse_scope


def test_a_scope_covers_names_in_full_and_beginnings() -> None:
    scope = Scope(("acme",), ("pirate", "support-*"))
    assert all(scope.covers("acme", name) for name in ("pirate", "support-", "support-eu", ""))
    assert not any(scope.covers("acme", name) for name in ("pirates", "pirat", "support", "x"))
    assert not any(scope.covers(tenant, "pirate") for tenant in ("other", "acme2", "acm", ""))


def test_an_empty_scope_covers_nothing_and_everything_covers_all() -> None:
    assert not Scope().covers("acme")
    assert not Scope(("acme",)).covers("acme", "pirate")
    assert not Scope((), ("*",)).covers("acme", "pirate")
    assert EVERYTHING.covers("acme", "pirate")
    assert EVERYTHING.roles == frozenset(Role)


def test_home_is_the_first_tenant_named_in_full() -> None:
    assert Scope(("eu-*", "acme", "b")).home == "acme"
    assert Scope(("eu-*",)).home == ""


@pytest.mark.parametrize("pattern", ["", "a*b", "**", "*a", "A", "a/b", "a?", "ä", "a" * 65])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(NoScope):
        parse_scope({"tenants": [pattern]})


@pytest.mark.parametrize("priority", [True, 1.5, "3", None, 11, -11])
def test_what_is_no_priority_is_refused(priority: object) -> None:
    with pytest.raises(NoScope, match="max_priority"):
        parse_scope({"max_priority": priority})
    assert parse_scope({"max_priority": -3}).max_priority == -3
    assert parse_scope({}).max_priority == 10


IDENTITIES = """
[[identity]]
san = "dns:checkout.internal"
tenants = ["acme"]
adapters = ["support-*"]
roles = ["generate"]

[[identity]]
san = "uri:spiffe://example/ops"
tenants = ["*"]
roles = ["operate", "catalog"]
"""


def test_an_identities_file_says_what_each_certificate_may(tmp_path: Path) -> None:
    path = tmp_path / "identities.toml"
    path.write_text(IDENTITIES)
    found = read_identities(path)
    assert found["dns:checkout.internal"].covers("acme", "support-eu")
    assert found["uri:spiffe://example/ops"].roles == {Role.OPERATE, Role.CATALOG}
    assert known_as(["dns:x", "uri:spiffe://example/ops"], found) == "uri:spiffe://example/ops"
    assert known_as(["dns:spiffe://example/ops", "uri:checkout.internal"], found) is None


@pytest.mark.parametrize(
    "text",
    [
        "[[identity]",
        "[other]",
        "identity = 1",
        "identity = [1]",
        '[[identity]]\ntenants = ["acme"]',
        '[[identity]]\nsan = "checkout.internal"',
        '[[identity]]\nsan = "dns:*.internal"',
        '[[identity]]\nsan = "dns:a"\nrole = ["generate"]',
        '[[identity]]\nsan = "dns:a"\nroles = ["root"]',
        '[[identity]]\nsan = "dns:a"\n[[identity]]\nsan = "dns:a"',
    ],
)
def test_what_an_identities_file_cannot_say_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "identities.toml"
    path.write_text(text)
    with pytest.raises(BadConfiguration, match=r"identities\.toml"):
        read_identities(path)
