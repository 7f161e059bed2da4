"""What publishers and collectors leave for each other reads back exactly, or not at all."""

from __future__ import annotations

import pytest

from adapter_store.errors import IntegrityError
from adapter_store.intent import Intent, Plan, decode_intent, decode_plan

INTENT = Intent("tone", 3, ("a" * 64, "b" * 64))


def test_an_intent_and_a_plan_read_back_as_they_were_written() -> None:
    assert decode_intent(INTENT.encode()) == INTENT
    assert decode_intent(Intent("tone", 1, ()).encode()) == Intent("tone", 1, ())
    plan = Plan(("v1/t/acme/blob/x",))
    assert decode_plan(plan.encode()) == plan
    assert decode_plan(Plan(()).encode()) == Plan(())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 5000,
        b" " + INTENT.encode(),
        INTENT.encode().replace(b'"slot":3', b'"slot":"3"'),
        INTENT.encode().replace(b'"slot":3', b'"slot":3.0'),
        INTENT.encode().replace(b'"slot":3', b'"slot":true'),
        INTENT.encode().replace(b'"slot":3', b'"slot":1e999'),
        INTENT.encode().replace(b'"slot":3', b'"slot":0'),
        INTENT.encode().replace(b'"slot":3', b'"slot":9223372036854775808'),
        INTENT.encode().replace(b'"slot":3', b'"slot":3,"x":1'),
        INTENT.encode().replace(b"tone", b"../tone"),
        INTENT.encode().replace(b"a" * 64, b"a" * 63),
        INTENT.encode().replace(b'["' + b"a" * 64 + b'","' + b"b" * 64 + b'"]', b'"text"'),
        INTENT.encode().replace(b'"' + b"a" * 64 + b'"', b"7"),
    ],
    ids=range(16),
)
def test_an_intent_of_another_form_is_refused_with_a_typed_error(body: bytes) -> None:
    assert body != INTENT.encode()
    with pytest.raises(IntegrityError):
        decode_intent(body)


@pytest.mark.parametrize(
    "body",
    [b"{}", b"{", b'{"keys":"text"}', b'{"keys":[1]}', b'{"keys":[],"x":1}', b'{"keys": []}'],
)
def test_a_plan_of_another_form_is_refused_with_a_typed_error(body: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_plan(body)
