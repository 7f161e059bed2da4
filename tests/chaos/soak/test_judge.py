"""What the soak calls wrong; whole soaks are rows, in tests/chaos/test_rows.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from inference_node.errors import AdapterNotFound, DeadlineExpired, NodeError, StaleNode, StoreDown
from inference_node.request import Served
from tests.adapter_store.publishing import ADAPTER, TENANT, publish
from tests.chaos.resources import Resources, leaked
from tests.chaos.soak.judge import Asked, Judge
from tests.inference_node.tattoo import BASE, Mark, Verdict

MARK, NEXT = Mark(1, 1), Mark(1, 2)
MARKS = {"d1": MARK, "d2": NEXT}
FIRST = Served("default", MARK.name, "v1", 3, "d1")
ASKED = Asked(MARK.name, MARK.name, (100,), tokens=3, at=0.0)
WARM = Resources(600.0, 30, 20)


@pytest.fixture
def judge() -> Judge:
    return Judge(MARKS)


def test_an_answer_is_right_when_every_token_is_of_the_version_that_it_names(judge: Judge) -> None:
    judge.started(ASKED, FIRST)
    judge.answered(ASKED, FIRST, [MARK.token] * 3)
    assert (judge.answers, judge.wrong, judge.broken) == (1, 0, 0)


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([NEXT.token] * 3, Verdict.WRONG_VERSION),
        ([MARK.token, NEXT.token, NEXT.token], Verdict.MIXED),
        ([BASE] * 3, Verdict.BASE),
        ([BASE + 1] * 3, Verdict.TORN),
        ([], Verdict.EMPTY),
    ],
)
def test_any_other_answer_is_counted_by_its_kind_and_breaks_a_promise(
    judge: Judge, tokens: list[int], found: Verdict
) -> None:
    judge.answered(ASKED, FIRST, tokens)
    assert (judge.verdicts[found], judge.wrong) == (1, 1)
    assert judge.violations


def test_who_leaves_is_judged_by_what_came_until_then(judge: Judge) -> None:
    judge.left(ASKED, FIRST, [MARK.token])
    assert judge.broken == 0
    judge.left(ASKED, FIRST, [MARK.token, BASE])
    assert judge.broken == 1


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        (replace(ASKED, floor=4), FIRST),
        (replace(ASKED, min_generation=4), FIRST),
        (replace(ASKED, vdig="d2"), FIRST),
        (ASKED, replace(FIRST, adapter="tattoo-2")),
        (ASKED, replace(FIRST, digest="unheard of")),
        (replace(ASKED, name="", ref=""), FIRST),
    ],
    ids=["older", "not the newest", "not the pinned", "another's", "never was", "not the base"],
)
def test_a_version_that_was_not_due_is_wrong_before_it_says_a_token(
    judge: Judge, asked: Asked, served: Served
) -> None:
    judge.started(asked, served)
    assert judge.broken == 1


@pytest.mark.parametrize(
    ("error", "asked", "troubled", "broken"),
    [
        (DeadlineExpired("late"), replace(ASKED, timeout=0.1), False, 0),
        (DeadlineExpired("late"), ASKED, True, 1),
        (StoreDown("away"), ASKED, True, 0),
        (StoreDown("away"), ASKED, False, 1),
        (StaleNode("behind"), replace(ASKED, min_generation=2), True, 0),
        (StaleNode("behind"), ASKED, True, 1),
        (AdapterNotFound("none"), ASKED, True, 1),
    ],
)
def test_a_failure_is_wrong_unless_something_was_the_matter(
    judge: Judge, error: NodeError, asked: Asked, troubled: bool, broken: int
) -> None:
    judge.failed(asked, error, store_troubled=troubled)
    assert judge.broken == broken


@pytest.mark.parametrize(
    ("gen", "label", "content", "broken"),
    [(1, "v1", 0, 0), (2, "v2", 1, 0), (2, "v1", 0, 1), (1, "v2", 1, 1), (2, "v1", 1, 1)],
    ids=["first", "second", "gone by then", "too soon", "another's label"],
)
def test_an_answer_by_what_its_generation_never_served_is_wrong_once_the_log_is_read(
    gen: int, label: str, content: int, broken: int
) -> None:
    store = MemoryStore()
    digests = [publish(store, seed).vdig for seed in (1, 2)]
    judge = Judge(dict.fromkeys(digests, MARK))
    asked = replace(ASKED, name=ADAPTER, ref=ADAPTER)
    judge.started(asked, Served(TENANT, ADAPTER, label, gen, digests[content]))
    assert judge.broken == 0
    judge.check_log(Reader(store), [ADAPTER])
    assert judge.broken == broken


@pytest.mark.parametrize(
    ("after", "count"),
    [
        (WARM, 0),
        (Resources(629.0, 30, 20), 0),
        (Resources(631.0, 30, 20), 1),
        (Resources(600.0, 31, 20), 1),
        (Resources(600.0, 30, 21), 1),
        (Resources(500.0, 28, 19), 0),
    ],
)
def test_memory_may_grow_by_a_twentieth_files_and_threads_not_at_all(
    after: Resources, count: int
) -> None:
    assert len(leaked(WARM, after)) == count
