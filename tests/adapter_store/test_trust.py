"""Who is believed: the trust file, its scopes and its refusals."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from adapter_store import signing
from adapter_store.errors import InvalidSetting, Untrusted
from adapter_store.memory import MemoryStore
from adapter_store.provenance import (
    MAX_SIGNATURES,
    TrustFile,
    check_record,
    generate_key,
    load_signer,
    trust_entry,
)
from adapter_store.reader import Reader
from adapter_store.record import Record
from adapter_store.signing import pre_auth
from adapter_store.trust import TrustedKey, parse_trust
from tests.adapter_store.publishing import ADAPTER, TENANT
from tests.adapter_store.signed import sign_and_publish, signer, trusted

PUBLIC = base64.b64encode(signer().public).decode()
WHOLE = f"""
[[key]]
public = "{PUBLIC}"
tenants = ["default"]
adapters = ["*"]
"""


@pytest.fixture
def record() -> Record:
    store = MemoryStore()
    sign_and_publish(store, 1)
    return Reader(store).head(TENANT, ADAPTER)


def refusal(record: Record, *keys: TrustedKey) -> str:
    with pytest.raises(Untrusted) as caught:
        check_record(record, {key.id: key for key in keys})
    return str(caught.value)


def test_the_pre_authentication_encoding_is_that_of_dsse() -> None:
    # The example of the DSSE specification, protocol.md.
    assert pre_auth("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_record_signed_by_a_key_in_scope_is_trusted(record: Record) -> None:
    check_record(record, {signer().key_id: trusted()})


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (trusted("bob"), "does not know"),
        (trusted(tenants=("acme",)), "may not speak for tenant"),
        (trusted(adapters=("pirate2", "pir?te-*")), "may not speak for adapter"),
        (trusted(revoked=True), "was revoked"),
        (trusted(from_generation=2), "from generation 2"),
        (trusted(until_generation=0), "up to generation 0"),
        (replace(trusted(), public=signer("bob").public), "wrong signature"),
    ],
)
def test_a_key_out_of_scope_is_refused_with_the_reason(
    record: Record, key: TrustedKey, reason: str
) -> None:
    assert reason in refusal(record, key)
    # The control: the same record and a key without the limit.
    check_record(record, {signer().key_id: trusted()})


@pytest.mark.parametrize(
    ("field", "date", "good"),
    [
        ("valid_from", "2020-01-01T00:00:00Z", True),
        ("valid_from", "2120-01-01T00:00:00Z", False),
        ("valid_until", "2020-01-01T00:00:00Z", False),
        ("valid_until", "2120-01-01T00:00:00Z", True),
    ],
)
def test_dates_are_judged_by_the_time_that_was_signed(
    record: Record, field: str, date: str, good: bool
) -> None:
    keys = parse_trust(f"{WHOLE}{field} = {date}", origin="test")
    if good:
        check_record(record, keys)
    else:
        assert "valid from" in refusal(record, *keys.values()) or "expired" in refusal(
            record, *keys.values()
        )


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "other"},
        {"adapter": "other"},
        {"gen": 2, "parent": "1" * 64},
        {"parent": "0" * 64},
        {"fence": 99},
        {"actor": "mallory"},
        {"time": "2026-01-01T00:00:00+00:00"},
        {"txid": "0" * 32},
        {"attempt": 2},
        {"versions": ()},
    ],
)
def test_a_signature_is_good_for_one_record_alone(
    record: Record, change: dict[str, object]
) -> None:
    assert "wrong signature" in refusal(replace(record, **change), trusted())  # type: ignore[arg-type]


def test_a_version_signature_is_good_for_one_label_and_adapter_alone(record: Record) -> None:
    assert record.active is not None
    for change in ({"label": "other"}, {"base": "0" * 64, "vdig": "1" * 64}):
        moved = replace(record, active=replace(record.active, **change))
        resealed = signer().sign(moved, vouched=())
        assert "version" in refusal(resealed, trusted())
    for change in ({"adapter": "other"}, {"tenant": "other"}):
        assert "version" in refusal(signer().sign(replace(record, **change), vouched=()), trusted())
    check_record(signer().sign(record, vouched=()), {signer().key_id: trusted()})


def test_unsigned_and_oversigned_records_are_refused(record: Record) -> None:
    assert "is not signed" in refusal(replace(record, signatures=()), trusted())
    many = (*({"key": f"{n:032x}", "sig": ""} for n in range(MAX_SIGNATURES)), *record.signatures)
    assert "more than" in refusal(replace(record, signatures=many), trusted())


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"key": 1, "sig": 2},
        {"key": ["x"]},
        {"sig": "AAAA"},
        {"key": signer().key_id, "sig": "é"},
    ],
)
def test_a_malformed_signature_is_a_refusal_and_not_a_crash(
    record: Record, entry: dict[str, object]
) -> None:
    refusal(replace(record, signatures=(entry,)), trusted())
    assert record.active is not None
    odd = replace(record.active, signatures=({**entry, "gen": "1", "time": 5},))
    refusal(signer().sign(replace(record, active=odd), vouched=()), trusted())


def test_during_a_rotation_one_good_signature_of_two_is_enough(record: Record) -> None:
    both = (*signer("bob").sign(record, vouched=()).signatures, *record.signatures)
    check_record(replace(record, signatures=both), {signer().key_id: trusted()})


def test_has_signed_means_this_very_key_and_everything_in_the_record(record: Record) -> None:
    assert signer().has_signed(record)
    assert not signer("bob").has_signed(record)
    assert not signer().has_signed(replace(record, actor="mallory"))
    assert not signer("bob").has_signed(signer("bob").sign(record, vouched=()))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("key = [", "not TOML"),
        ("", "names no key"),
        ("[other]\nx = 1", "'other'"),
        ("key = 1", "names no key"),
        ("key = [1]", "key 1"),
        (WHOLE + "unknown = 1", "key 1: unknown"),
        (WHOLE.replace(PUBLIC, "AAAA"), "key 1: public"),
        (WHOLE.replace(PUBLIC, "***"), "key 1: public"),
        (WHOLE.replace('public = "', 'id = "0"\npublic = "'), "key 1: id"),
        (WHOLE.replace('["default"]', "[]"), "key 1: tenants"),
        (WHOLE.replace('["default"]', '"default"'), "key 1: tenants"),
        (WHOLE.replace('["*"]', '["Pirate!"]'), "key 1: adapters"),
        (WHOLE.replace('["*"]', "[1]"), "key 1: adapters"),
        (WHOLE + "revoked = 1", "key 1: revoked"),
        (WHOLE + "revoked = 'no'", "key 1: revoked"),
        (WHOLE + "until_generation = 0", "key 1: until_generation"),
        (WHOLE + "from_generation = true", "key 1: from_generation"),
        (WHOLE + "valid_until = '2027-01-01'", "key 1: valid_until"),
        (WHOLE + "valid_until = 2027-01-01T00:00:00", "key 1: valid_until"),
        (WHOLE + WHOLE, "key 2: id"),
        (WHOLE + WHOLE.replace("tenants", "tenant"), "key 2"),
    ],
)
def test_a_malformed_trust_file_is_refused_by_key_and_field(text: str, named: str) -> None:
    with pytest.raises(InvalidSetting, match="somewhere") as caught:
        parse_trust(text, origin="somewhere")
    assert named in str(caught.value)


def test_a_generated_key_is_private_and_its_entry_makes_a_trust_file(
    tmp_path: Path, record: Record
) -> None:
    path = tmp_path / "key.pem"
    made = generate_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = load_signer(path)
    assert loaded.key_id == made.key_id
    keys = parse_trust(trust_entry(made, name='al"ice', tenant=TENANT), origin="test")
    check_record(loaded.sign(record, vouched={record.active.vdig} if record.active else ()), keys)
    before = path.read_bytes()
    with pytest.raises(InvalidSetting, match="exists"):
        generate_key(path)
    assert path.read_bytes() == before
    with pytest.raises(InvalidSetting, match="cannot be made"):
        generate_key(tmp_path / "nowhere" / "key.pem")


def test_what_is_no_private_key_is_refused_without_quoting_it(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(InvalidSetting, match="cannot be read"):
        load_signer(path)
    for text in ("canary-secret", "-----BEGIN PRIVATE KEY-----\ncanary-secret\n"):
        path.write_text(text)
        with pytest.raises(InvalidSetting) as caught:
            load_signer(path)
        assert "canary" not in str(caught.value)


def test_a_changed_trust_file_is_read_again_and_a_broken_one_is_ignored_once(
    tmp_path: Path, record: Record
) -> None:
    path, warnings = tmp_path / "trust.toml", list[str]()
    path.write_text(WHOLE)
    trust = TrustFile(path, warn=warnings.append)
    first = trust.epoch
    trust.check(record)
    assert trust.epoch == first
    path.write_text(f"{WHOLE}revoked = true")
    assert trust.epoch > first
    with pytest.raises(Untrusted, match="revoked"):
        trust.check(record)
    second = trust.epoch
    path.write_text("broken =")
    assert [trust.epoch, trust.epoch] == [second, second]
    os.remove(path)
    assert [trust.epoch, trust.epoch] == [second, second]
    assert len(warnings) == 2
    with pytest.raises(Untrusted, match="revoked"):
        trust.check(record)
    with pytest.raises(InvalidSetting, match="cannot be read"):
        TrustFile(path, warn=warnings.append)


def test_one_room_alone_imports_cryptography() -> None:
    package = Path(signing.__file__).parent
    rooms = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) cryptography", path.read_text(), re.MULTILINE)
    ]
    assert rooms == ["provenance.py"]
