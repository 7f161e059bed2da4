"""What was answered is counted right whenever somebody asks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable

import pytest

from inference_node.errors import Cancelled
from inference_node.request import Delta, Event, Failed, OnEvent, Request, Started
from inference_node.rpc import tally as module
from inference_node.rpc.tally import COUNTED, AdapterName, Tally, Totals
from tests.inference_node.rpc.scripted_engine import completed, served
from tests.inference_node.rpc.shaken import shaken

ANSWERS, TOKENS = 6, 3


def asked(adapter: str) -> Request:
    return Request(request_id="r", tenant="acme", adapter=adapter, prompt=(1,))


def answer(tally: Tally, adapter: str, tokens: int) -> None:
    request = asked(adapter)
    emit = tally.counting(request, lambda event: None)
    emit(Started(served(request)))
    for token in range(tokens):
        emit(Delta("a", (token,)))
    emit(completed(request, tokens))


def test_every_token_counts_from_the_moment_that_it_is_handed_out() -> None:
    tally, request = Tally(), asked("ada@v2")
    counted: list[int] = []

    def on_event(event: Event) -> None:
        counted.append(tally.totals.generated_tokens)

    emit: OnEvent = tally.counting(request, on_event)
    for event in (Started(served(request)), Delta("ab", (1, 2)), Delta("c", (3,))):
        emit(event)
    assert counted == [0, 2, 3]
    assert tally.totals == Totals(3, 0, 0)
    assert list(tally.hottest(5)) == [(AdapterName("acme", "ada"), 3)]
    emit(completed(request, 3))
    assert tally.totals == Totals(3, 1, 0)
    assert list(tally.hottest(5)) == [(AdapterName("acme", "ada"), 3)]


def test_answers_that_fail_count_with_the_tokens_they_had() -> None:
    tally, request = Tally(), asked("")
    emit = tally.counting(request, lambda event: None)
    emit(Delta("a", (1,)))
    emit(Failed(Cancelled("gone"), None))
    tally.counting(request, lambda event: None)(Failed(Cancelled("gone"), None))
    assert tally.totals == Totals(1, 0, 2)
    assert not tally._answers


def test_the_hottest_adapters_are_told_apart_and_of_too_many_the_coldest_are_forgotten() -> None:
    tally = Tally()
    for number in range(2 * COUNTED + 10):
        answer(tally, f"a{number}", 2 if number == 7 else 1)
    assert next(tally.hottest(1)) == (AdapterName("acme", "a7"), 2)
    assert len(tally._of) <= 2 * COUNTED
    assert tally.totals == Totals(2 * COUNTED + 11, 2 * COUNTED + 10, 0)


def no_reading_goes_back(seeds: Iterable[int], kind: type[Tally] = Tally) -> None:
    """Answers end while somebody reads, and every thread loses its turn anywhere."""
    for seed in seeds:
        tally = kind()
        seen = [0]
        with shaken((module.__file__, __file__), seed):
            thread = threading.Thread(
                target=lambda tally=tally: [answer(tally, "ada", TOKENS) for _ in range(ANSWERS)]
            )
            thread.start()
            while thread.is_alive():
                seen.append(tally.totals.generated_tokens)
        thread.join()
        assert seen == sorted(seen)
        assert seen[-1] <= tally.totals.generated_tokens == ANSWERS * TOKENS


def test_a_count_that_is_read_while_answers_end_never_goes_back() -> None:
    no_reading_goes_back(range(20))


def test_control_answers_that_end_without_the_lock_are_caught() -> None:
    class Unlocked(Tally):
        def __init__(self) -> None:
            super().__init__()
            self._lock = contextlib.nullcontext()  # type: ignore[assignment]

    with pytest.raises((AssertionError, RuntimeError)):
        no_reading_goes_back(range(200), Unlocked)
