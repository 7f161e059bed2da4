"""Requests are counted by the version that served them, within bounds, and passed on."""

from __future__ import annotations

from typing import Any

from adapter_store.arms import ArmCount
from inference_node.ended import Ended, Outcome
from inference_node.request import Served
from inference_node.rpc.accounts import Nobody
from inference_node.rpc.arm_book import KEPT_ADAPTERS, KEPT_VERSIONS, ArmBook

V1, V2 = "a" * 64, "b" * 64
TONE = ("default", "tone")


def ended(
    outcome: Outcome = Outcome.COMPLETED, digest: str = V1, *, adapter: str = "tone", **changes: Any
) -> Ended:
    told: dict[str, Any] = {
        "method": "Generate",
        "request_id": "r1",
        "caller": "",
        "tenant": "default",
        "adapter": adapter,
        "served": Served("default", adapter, "v1", 3, digest),
        "outcome": outcome,
        "reason": "STOP",
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "generated_tokens": 20,
        "seconds": 0.5,
        "first_token": 0.1,
        "timings": None,
    }
    return Ended(**{**told, **changes})


class Heard(Nobody):
    """Another witness."""

    def __init__(self) -> None:
        self.endings: list[Ended] = []

    def ended(self, ended: Ended) -> None:
        self.endings.append(ended)


def test_each_version_has_its_count_and_the_next_witness_hears_all() -> None:
    heard = Heard()
    book = ArmBook(heard)
    for outcome in Outcome:
        book.ended(ended(outcome))
    book.ended(ended(digest=V2))
    book.ended(ended(served=None))
    book.ended(ended(adapter=""))
    assert book.arms() == {
        TONE: {
            V1: ArmCount(completed=1, failed=1, late=1, tokens=20, seconds=0.5),
            V2: ArmCount(completed=1, tokens=20, seconds=0.5),
        }
    }
    assert len(heard.endings) == len(Outcome) + 3


def test_an_adapter_that_one_version_serves_is_not_told_of() -> None:
    book = ArmBook(Nobody())
    for _ in range(3):
        book.ended(ended())
    assert book.arms() == {}


def test_the_book_keeps_what_was_served_last_and_no_more() -> None:
    book = ArmBook(Nobody())
    for number in range(KEPT_ADAPTERS + 10):
        for digest in (V1, V2):
            book.ended(ended(digest=digest, adapter=f"tone-{number}"))
    arms = book.arms()
    assert len(arms) == KEPT_ADAPTERS
    assert ("default", "tone-0") not in arms
    for number in range(KEPT_VERSIONS + 3):
        book.ended(ended(digest=f"{number:064x}"))
    assert len(book.arms()[TONE]) == KEPT_VERSIONS
