from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_store import layout, names
from adapter_store.errors import InvalidName
from adapter_store.layout import AdapterRef, parse_ref

DIGEST = "0123456789abcdef" * 4
TXID = "0123456789abcdef" * 2
ids = st.from_regex(names._ID, fullmatch=True).filter(lambda text: ".." not in text)
gens = st.integers(1, layout.MAX_GENERATION)


@given(ids, ids, gens)
def test_a_log_key_gives_its_generation_back(tenant: str, adapter: str, gen: int) -> None:
    key = layout.log_key(tenant, adapter, gen)
    assert layout.parse_log_key(key) == gen
    assert key.startswith(layout.log_prefix(tenant, adapter))


@given(st.lists(gens, min_size=2, unique=True))
def test_log_keys_in_ascending_order_are_generations_newest_first(numbers: list[int]) -> None:
    keys = sorted(layout.log_key("acme", "tone", gen) for gen in numbers)
    assert [layout.parse_log_key(key) for key in keys] == sorted(numbers, reverse=True)


@given(st.tuples(ids, ids), st.tuples(ids, ids), gens)
def test_no_two_adapters_share_a_log(one: tuple[str, str], two: tuple[str, str], gen: int) -> None:
    inside = layout.log_key(*one, gen).startswith(layout.log_prefix(*two))
    assert inside == (one == two)


@given(st.text(max_size=80))
def test_whatever_passes_as_an_id_is_safe_in_a_key(text: str) -> None:
    try:
        layout.check_id("adapter", text)
    except InvalidName:
        return
    assert 1 <= len(text) <= 64
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert ".." not in text
    assert text[0].isalnum()
    assert text[-1].isalnum()


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "-a", "a-", ".a", "a.", "a..b", "A", "a/b", "/a", "a//b", "../a"),
        *(
            "a\x00",
            "a b",
            "a\n",
            "a\n\n",
            "\u00e9",
            "\uff41",
            "\u0661",
            "a" * 65,
            "a%2fb",
            "a\\b",
            "a:b",
        ),
    ],
)
def test_a_name_outside_the_grammar_is_refused_by_every_builder(name: str) -> None:
    for build in (
        lambda: layout.log_key(name, "tone", 1),
        lambda: layout.log_key("acme", name, 1),
        lambda: layout.blob_key(name, DIGEST, TXID, 0),
        lambda: layout.intent_key(name, TXID, 0),
        lambda: layout.plan_key(name, TXID),
        lambda: parse_ref("tone", tenant=name),
    ):
        with pytest.raises(InvalidName):
            build()


@pytest.mark.parametrize("digest", ["", "ab", DIGEST.upper(), DIGEST + "0", DIGEST[:-1] + "g"])
def test_only_lower_case_hex_of_the_right_length_is_a_digest(digest: str) -> None:
    for build in (
        lambda: layout.blob_key("acme", digest, TXID, 0),
        lambda: layout.base_card_key(digest),
        lambda: parse_ref(f"tone@sha256:{digest}"),
        lambda: layout.blob_key("acme", DIGEST, digest, 0),
        lambda: layout.check_key(digest),
    ):
        with pytest.raises(InvalidName):
            build()


@pytest.mark.parametrize("gen", [0, -1, layout.MAX_GENERATION + 1])
def test_a_generation_out_of_range_has_no_key(gen: int) -> None:
    with pytest.raises(InvalidName):
        layout.log_key("acme", "tone", gen)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "7ffffffffffffffe-2",
        "7ffffffffffffffe-",
        "7FFFFFFFFFFFFFFE-1",
        "x-1",
        "1",
        "7ffffffffffffffe-01",
        "7fffffffffffffff-0",
    ],
)
def test_a_log_key_whose_halves_disagree_is_refused(key: str) -> None:
    with pytest.raises(InvalidName):
        layout.parse_log_key(f"v1/t/acme/a/tone/log/{key}")


def test_an_error_quotes_a_name_in_ascii_and_only_the_start_of_a_long_one() -> None:
    for name in ("x" * 1_000_000, "\u202e\x1b[2J\U0001f600"):
        with pytest.raises(InvalidName) as caught:
            layout.check_id("adapter", name)
        message = str(caught.value)
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 200


def test_every_key_lies_under_its_prefix() -> None:
    for key, prefix in (
        (layout.blob_key("acme", DIGEST, TXID, 3), layout.blob_prefix("acme", DIGEST)),
        (layout.intent_key("acme", TXID, 3), layout.intents_prefix("acme")),
        (layout.plan_key("acme", TXID), layout.plans_prefix("acme")),
        (layout.base_card_key(DIGEST), layout.base_cards_prefix()),
        (layout.check_key(TXID), layout.checks_prefix()),
        (layout.adapters_prefix("acme"), layout.tenant_prefix("acme")),
        (layout.tenant_prefix("acme"), layout.tenants_prefix()),
    ):
        assert key.startswith(prefix)
        assert len(key) > len(prefix)


@given(ids, ids, st.one_of(st.just(("", "")), st.tuples(ids, st.just("")), st.just(("", DIGEST))))
def test_a_reference_reads_back_as_it_prints(
    tenant: str, adapter: str, selector: tuple[str, str]
) -> None:
    ref = AdapterRef(tenant, adapter, label=selector[0], vdig=selector[1])
    assert parse_ref(str(ref), tenant=tenant) == ref
    assert ref.pinned == bool(selector[0] or selector[1])


@pytest.mark.parametrize("text", ["", "@", "tone@", "@v1", "tone@v1@v2", "tone@sha256:", "tone@V1"])
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_ref(text)
