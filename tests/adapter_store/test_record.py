from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_store.errors import IntegrityError
from adapter_store.record import (
    MAX_ARMS,
    MAX_RECORD_BYTES,
    MAX_WEIGHT,
    BaseCard,
    Chunk,
    FileEntry,
    IndexEntry,
    Record,
    RecordKind,
    SplitArm,
    VersionRef,
    canonical_json,
    decode_base_card,
    decode_record,
    version_digest,
)

digests = st.integers(0, 2**256 - 1).map("{:064x}".format)
sizes = st.integers(0, 2**40)
ids = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,9}[a-z0-9]", fullmatch=True)
file_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,9}\.json", fullmatch=True)
notes = st.text(max_size=20).filter(str.isprintable)
txids = st.integers(0, 2**128 - 1).map("{:032x}".format)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
scalars = st.one_of(st.integers(-(2**53), 2**53), st.booleans(), names, st.none(), st.floats(-9, 9))
configs = st.dictionaries(names, st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=4)
chunks = st.builds(Chunk, names, sizes, sizes, digests)
files = st.builds(FileEntry, file_names, sizes, digests, st.lists(chunks, max_size=3).map(tuple))


@st.composite
def versions(draw: st.DrawFn) -> VersionRef:
    base, config = draw(digests), draw(configs)
    entries = tuple(draw(st.lists(files, max_size=3, unique_by=lambda file: file.name)))
    vdig = version_digest(
        base=base, config=config, files=[(f.name, f.size, f.sha256) for f in entries]
    )
    return VersionRef(draw(ids), vdig, base, config, entries)


@st.composite
def records(draw: st.DrawFn) -> Record:
    gen = draw(st.integers(1, 2**63 - 1))
    weights = st.integers(1, MAX_WEIGHT)
    arms = st.lists(
        st.builds(SplitArm, weights, versions()),
        min_size=2,
        max_size=3,
        unique_by=lambda arm: arm.version.vdig,
    )
    index = st.builds(IndexEntry, ids, digests, st.integers(1, gen))
    return Record(
        tenant=draw(ids),
        adapter=draw(ids),
        gen=gen,
        kind=draw(st.sampled_from([k for k in RecordKind if k is not RecordKind.TOMBSTONE])),
        active=draw(st.none() | versions()),
        staged=draw(st.none() | versions()),
        split=tuple(draw(st.just([]) | arms)),
        versions=tuple(draw(st.lists(index, max_size=3))),
        parent=draw(digests),
        fence=draw(sizes),
        txid=draw(txids),
        attempt=draw(st.integers(0, 9)),
        actor=draw(notes),
        time=draw(notes),
        signatures=tuple(draw(st.lists(configs, max_size=2))),
    )


def example(**changes: Any) -> Record:
    config = {"r": 8, "alpha": 16.0}
    entry = FileEntry("adapter_model.safetensors", 7, "a" * 64, (Chunk("k", 0, 7, "a" * 64),))
    vdig = version_digest(base="b" * 64, config=config, files=[(entry.name, 7, entry.sha256)])
    record = Record(
        tenant="acme",
        adapter="tone",
        gen=3,
        kind=RecordKind.PUBLISH,
        active=VersionRef("v3", vdig, "b" * 64, config, (entry,)),
        versions=(IndexEntry("v2", "c" * 64, 2), IndexEntry("v3", vdig, 3)),
        parent="d" * 64,
        fence=5,
        txid="e" * 32,
        attempt=0,
        actor="someone",
        time="2026-01-01T00:00:00Z",
    )
    return replace(record, **changes)


def altered(record: Record, **changes: Any) -> bytes:
    return canonical_json({**json.loads(record.encode()), **changes})


@given(records())
def test_every_record_reads_back_as_it_was_written(record: Record) -> None:
    body = record.encode()
    assert decode_record(body) == record
    assert decode_record(body).encode() == body


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_noise_is_refused_with_a_typed_error(body: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_record(body)
    with pytest.raises(IntegrityError):
        decode_base_card(body)


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner)))
def test_json_that_is_no_record_is_refused_with_a_typed_error(value: Any) -> None:
    with pytest.raises(IntegrityError):
        decode_record(json.dumps(value).encode())


@given(records(), st.data())
def test_a_flipped_bit_never_passes_as_the_same_record(record: Record, data: st.DataObject) -> None:
    body = bytearray(record.encode())
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(IntegrityError):
        assert decode_record(bytes(body)).digest() != record.digest()


def test_a_record_spelled_another_way_is_refused() -> None:
    spaced = json.dumps(json.loads(example().encode())).encode()
    with pytest.raises(IntegrityError, match="canonical"):
        decode_record(spaced)


def test_content_that_does_not_match_its_digest_is_refused() -> None:
    value = json.loads(example().encode())
    value["active"]["config"]["alpha"] = 32.0
    with pytest.raises(IntegrityError, match="digest"):
        decode_record(canonical_json(value))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"kind": "overwrite"},
        {"extra": 1},
        {"active": {"label": "v"}},
        {"active": []},
        {"split": [{"weight": 1, "version": None}]},
        {"versions": [{"label": "v"}]},
        {"versions": 7},
        {"gen": "3"},
        {"gen": True},
        {"gen": 3.0},
        {"fence": -1},
        {"tenant": None},
        {"signatures": ["x"]},
        {"versions": [{"label": 1, "vdig": "a", "gen": 1}]},
    ],
)
def test_a_record_with_a_field_it_may_not_have_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        decode_record(altered(example(), **changes))


@given(st.sampled_from(["name", "size", "sha256", "chunks"]), scalars)
def test_a_file_entry_with_a_leaf_of_another_type_is_refused(field: str, leaf: Any) -> None:
    value = json.loads(example().encode())
    entry = value["active"]["files"][0]
    if type(entry[field]) is type(leaf):
        return
    entry[field] = leaf
    value["active"]["files"].append({**entry, "name": "z", field: leaf})
    with pytest.raises(IntegrityError):
        decode_record(canonical_json(value))


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "../other"},
        {"adapter": "tone\n"},
        {"adapter": "\ud800"},
        {"txid": "1"},
        {"parent": ""},
        {"parent": "D" * 64},
        {"gen": 0},
        {"gen": 2**63},
        {"actor": "\x1b[2J"},
        {"actor": "x" * 257},
        {"time": "\n"},
        {"versions": [{"label": "v 2", "vdig": "c" * 64, "gen": 2}]},
        {"versions": [{"label": "v2", "vdig": "c", "gen": 2}]},
        {"versions": [{"label": "v2", "vdig": "c" * 64, "gen": 4}]},
    ],
)
def test_a_record_never_brings_a_name_that_is_unfit_for_a_key_a_header_or_a_terminal(
    changes: dict[str, Any],
) -> None:
    value = {**json.loads(example().encode()), **changes}
    with pytest.raises(IntegrityError):
        decode_record(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize("name", ["../../x", "a/b", ".bashrc", "a\0", "", "a..b", "\u202ecod.exe"])
def test_a_file_of_a_version_never_has_a_name_that_leads_elsewhere(name: str) -> None:
    active = example().active
    assert active is not None
    files = (replace(active.files[0], name=name),)
    vdig = version_digest(
        base=active.base, config=active.config, files=[(f.name, f.size, f.sha256) for f in files]
    )
    hostile = example(active=replace(active, vdig=vdig, files=files))
    with pytest.raises(IntegrityError, match="plain file name"):
        hostile.encode()
    good = json.loads(example().encode())
    good["active"] |= {"vdig": vdig, "files": [{**good["active"]["files"][0], "name": name}]}
    with pytest.raises(IntegrityError, match="plain file name"):
        decode_record(canonical_json(good))


def test_two_files_of_a_version_never_share_a_name() -> None:
    active = example().active
    assert active is not None
    with pytest.raises(IntegrityError, match="twice"):
        example(active=replace(active, files=active.files * 2)).encode()


@pytest.mark.parametrize("text", ["NaN", "1e999", '"\\ud800"', "9" * 5000, "[" * 400 + "]" * 400])
def test_a_config_that_json_reads_and_cannot_write_is_refused_with_a_typed_error(text: str) -> None:
    body = example().encode().replace(b'"r":8', b'"r":' + text.encode())
    assert body != example().encode()
    with pytest.raises(IntegrityError):
        decode_record(body)


def arms(*weights: int) -> tuple[SplitArm, ...]:
    """Arms of different content."""
    version = example().active
    assert version is not None
    made = []
    for number, weight in enumerate(weights):
        base = f"{number:064x}"
        files = [(file.name, file.size, file.sha256) for file in version.files]
        vdig = version_digest(base=base, config=version.config, files=files)
        made.append(SplitArm(weight, replace(version, base=base, vdig=vdig)))
    return tuple(made)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": arms(1)}, "different"),
        ({"split": arms(*range(1, MAX_ARMS + 2))}, "different"),
        ({"split": arms(1, 0)}, "weight"),
        ({"split": arms(1, MAX_WEIGHT + 1)}, "weight"),
        ({"split": arms(1) * 2}, "different"),
        ({"kind": RecordKind.TOMBSTONE}, "tombstone"),
        ({"kind": RecordKind.TOMBSTONE, "active": None, "split": arms(1, 2)}, "tombstone"),
    ],
)
def test_a_split_or_tombstone_that_is_none_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        decode_record(example(**changes).encode())
    assert decode_record(example(split=arms(*range(1, MAX_ARMS + 1))).encode()).split
    assert decode_record(example(kind=RecordKind.TOMBSTONE, active=None).encode())


def test_a_record_names_all_it_needs() -> None:
    one, two, three = (arm.version for arm in arms(1, 2, 3))
    record = example(active=one, staged=two, split=(SplitArm(1, one), SplitArm(2, three)))
    assert record.contents() == [one, two, one, three]
    assert example(active=None).contents() == []


def test_a_record_from_a_newer_program_says_so() -> None:
    with pytest.raises(IntegrityError) as refused:
        decode_record(altered(example(), format=2))
    assert "upgrade" in refused.value.hint


def test_a_record_too_large_is_neither_written_nor_read() -> None:
    with pytest.raises(IntegrityError):
        example(actor="x" * MAX_RECORD_BYTES).encode()
    with pytest.raises(IntegrityError):
        decode_record(b" " * (MAX_RECORD_BYTES + 1))


def test_the_newest_entry_of_a_label_is_found() -> None:
    gens = {1: "v", 2: "w", 3: "v"}
    record = example(versions=tuple(IndexEntry(gens[gen], "a" * 64, gen) for gen in gens))
    found = record.indexed("v")
    assert found is not None
    assert found.gen == 3
    assert record.indexed("absent") is None


def test_equal_content_has_one_digest_whatever_the_order_of_its_files() -> None:
    files = [("a", 1, "f" * 64), ("b", 2, "e" * 64)]
    one = version_digest(base="b", config={"r": 8, "alpha": 16}, files=files)
    two = version_digest(base="b", config={"alpha": 16, "r": 8}, files=files[::-1])
    assert one == two
    assert one != version_digest(base="c", config={"r": 8, "alpha": 16}, files=files)
    assert one != version_digest(base="b", config={"r": 8, "alpha": 32}, files=files)
    assert one != version_digest(base="b", config={"r": 8, "alpha": 16}, files=files[:1])


def test_not_a_number_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"alpha": float("nan")})


def test_a_base_card_reads_back_as_it_was_written() -> None:
    card = BaseCard(
        fingerprint="a" * 64,
        name="tiny",
        architecture="LlamaForCausalLM",
        modules={"layers.0.q": (64, 32)},
    )
    assert decode_base_card(card.encode()) == card


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"fingerprint": "../x"},
        {"max_rank": 0},
        {"name": "\x1b[2J"},
        {"modules": {"a/b": [1, 1]}},
        {"modules": {"a": [0, 1]}},
        {"modules": {"a": [1.5, 1]}},
        {"modules": {"a": ["1", 1]}},
        {"modules": {"a": [1, 1, 1]}},
        {"modules": {"a": [10**400, 1]}},
        {"modules": []},
    ],
)
def test_a_base_card_with_a_field_it_may_not_have_is_refused(changes: dict[str, Any]) -> None:
    card = BaseCard(fingerprint="a" * 64, name="t", architecture="T", modules={"a": (1, 1)})
    with pytest.raises(IntegrityError):
        decode_base_card(canonical_json({**json.loads(card.encode()), **changes}))


def test_an_endless_size_in_a_base_card_is_refused_with_a_typed_error() -> None:
    card = BaseCard(fingerprint="a" * 64, name="t", architecture="T", modules={"a": (1, 1)})
    with pytest.raises(IntegrityError):
        decode_base_card(card.encode().replace(b"[1,1]", b"[1e999,1]"))
