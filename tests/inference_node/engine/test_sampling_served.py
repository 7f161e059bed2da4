"""Sampling through a whole node: batches, preemption, stop strings, scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapter_store.memory import MemoryStore
from inference_node.config import EngineConfig
from inference_node.engine.prefix import PrefixNames
from inference_node.request import (
    Delta,
    Echo,
    Failed,
    FinishReason,
    Output,
    Request,
    Sampling,
    Stopping,
    TokenScore,
)
from tests.inference_node.conftest import StartTiny
from tests.inference_node.engine.oracle import Oracle
from tests.inference_node.harness import Answer, Node, start_node

WARM = Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.2, seed=7)
PROMPT = list(range(300, 340))


def crowd(node: Node, count: int, *, tokens: int) -> list[Answer]:
    rules = [
        Sampling(temperature=0.5 + 0.1 * n, seed=n, top_k=3 * n, frequency_penalty=0.1 * n)
        for n in range(count)
    ]
    return [
        node.ask(prompt=[400 + n] * (3 + n), sampling=rule, tokens=tokens)
        for n, rule in enumerate(rules)
    ]


def seeded(node: Node, tokens: int = 24) -> Answer:
    return node.ask(prompt=PROMPT, sampling=WARM, tokens=tokens)


def test_a_seed_gives_the_same_answer_alone_in_a_batch_of_16_and_in_any_order(
    start_tiny: StartTiny,
) -> None:
    node = start_tiny()
    alone = seeded(node).tokens
    assert len(set(alone)) > 8
    for before in (0, 7, 15):
        first = crowd(node, before, tokens=40)
        asked = seeded(node)
        rest = crowd(node, 15 - before, tokens=40)
        assert asked.tokens == alone
        for other in (*first, *rest):
            assert other.completed
    node.settle()


@pytest.mark.model
def test_the_real_base_answers_a_seed_alike_alone_and_in_a_batch_of_16(default_base: Path) -> None:
    config = EngineConfig(base_model=str(default_base), linears="dense", dtype="float32")
    node = start_node(config, MemoryStore())
    try:
        alone = seeded(node, tokens=6).tokens
        others = crowd(node, 15, tokens=6)
        assert seeded(node, tokens=6).tokens == alone
        for other in others:
            assert other.completed
    finally:
        node.close()


def preempted(node: Node, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[str]]:
    """The seeded answer beside others that take its blocks, and who was preempted."""
    victims: list[str] = []
    scheduler = node.engine._scheduler
    free = scheduler._free

    def counted(sequence: object) -> None:
        request = sequence.request  # type: ignore[attr-defined]
        if sequence.produced and sequence.produced < request.stopping.max_new_tokens:  # type: ignore[attr-defined]
            victims.append(request.request_id)
        free(sequence)  # type: ignore[arg-type]

    monkeypatch.setattr(scheduler, "_free", counted)
    others = [node.ask(prompt=[500 + n] * 40, tokens=60) for n in range(3)]
    asked = seeded(node)
    found = asked.tokens
    for other in others:
        assert other.completed
    return found, [victim for victim in victims if victim == asked.request_id]


def test_a_seed_gives_the_same_answer_after_preemption(
    start_tiny: StartTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = seeded(start_tiny()).tokens
    found, victims = preempted(start_tiny(kv_tokens=208), monkeypatch)
    assert victims
    assert found == alone


def test_a_stop_string_across_token_borders_ends_the_answer_and_is_never_streamed(
    start_tiny: StartTiny,
) -> None:
    node = start_tiny()
    stopping = Stopping(max_new_tokens=40, ignore_eos=True)
    whole = node.ask(prompt=PROMPT, stopping=stopping)
    assert whole.completed
    pieces = [e.text for e in whole.events if isinstance(e, Delta)]
    at = next(n for n in range(3, len(pieces)) if len(pieces[n]) > 1 and len(pieces[n + 1]) > 1)
    stop = pieces[at][-1] + pieces[at + 1][0]
    expected = whole.text[: whole.text.index(stop)]
    ended = node.ask(prompt=PROMPT, stopping=replace(stopping, stop=(stop,)))
    assert ended.completed.finish_reason is FinishReason.STOP_SEQUENCE
    assert ended.completed.stop_sequence == stop
    assert ended.text == expected
    assert all(expected.startswith(seen) for seen in streamed(ended))


def streamed(answer: Answer) -> list[str]:
    texts = [e.text for e in answer.events if isinstance(e, Delta)]
    return ["".join(texts[:n]) for n in range(len(texts) + 1)]


def test_nothing_ends_an_answer_before_its_shortest_length(start_tiny: StartTiny) -> None:
    node = start_tiny()
    free = node.ask(prompt=PROMPT, tokens=12)
    ending, text = free.tokens[0], free.text
    early = Stopping(max_new_tokens=12, stop_token_ids=(ending,), stop=(text[:2],))
    assert len(node.ask(prompt=PROMPT, stopping=early).tokens) == 1
    held = node.ask(prompt=PROMPT, stopping=replace(early, min_new_tokens=6)).tokens
    assert len(held) > 6
    assert ending not in held[:6]


def test_a_stop_string_that_only_begins_too_early_still_ends_the_answer(
    start_tiny: StartTiny,
) -> None:
    node = start_tiny()
    stopping = Stopping(max_new_tokens=12, ignore_eos=True)
    whole = node.ask(prompt=PROMPT, stopping=stopping)
    assert whole.completed
    # The whole answer but its end, completed only by the last tokens.
    stop = whole.text[:-1]
    ended = node.ask(prompt=PROMPT, stopping=replace(stopping, stop=(stop,), min_new_tokens=3))
    assert (ended.completed.stop_sequence, ended.text) == (stop, "")


def scores_of(answer: Answer) -> list[TokenScore]:
    assert answer.completed
    return [score for e in answer.events if isinstance(e, Delta) for score in e.scores]


ASKED = Output(logprobs=True, top_logprobs=4, echo=True)


def ask_scores(node: Node, sampling: Sampling | None = None) -> Answer:
    answer = Answer("scores")
    request = Request(
        request_id="scores",
        tenant="default",
        adapter="",
        prompt=tuple(PROMPT),
        sampling=sampling or Sampling(),
        stopping=Stopping(max_new_tokens=9, ignore_eos=True),
        output=ASKED,
    )
    node.engine.submit(request, answer.on_event)
    return answer.wait()


@pytest.mark.parametrize("step_tokens", [512, 64, 16])
def test_scores_are_the_models_own_for_prompt_and_answer(
    start_tiny: StartTiny, tiny_base: Path, step_tokens: int
) -> None:
    node = start_tiny(step_tokens=step_tokens, max_rows=16)
    sampled = Sampling(temperature=1.3, seed=3, presence_penalty=1.0, logit_bias={9: 20.0})
    answer = ask_scores(node, sampled)
    tokens = PROMPT + answer.tokens
    model = Oracle(tiny_base, {})._model
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    (echo,) = (e for e in answer.events if isinstance(e, Echo))
    assert list(echo.token_ids) == PROMPT
    found = [*echo.scores, *scores_of(answer)]
    assert [score.token_id for score in found] == tokens
    assert (found[0].logprob, found[0].rank, found[0].top) == (None, 0, ())
    for place, score in enumerate(found[1:]):
        row = expected[place]
        best = row.topk(4)
        assert score.logprob == pytest.approx(float(row[score.token_id]), abs=1e-3)
        assert [c.token_id for c in score.top] == best.indices.tolist()
        assert [c.logprob for c in score.top] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert (score.rank == 1) == (score.token_id == score.top[0].token_id)
    assert any(score.rank > 1 for score in found[1:])


def echoed(answer: Answer) -> tuple[TokenScore, ...]:
    (echo,) = (e for e in answer.events if isinstance(e, Echo))
    return echo.scores


def test_a_prompt_that_is_in_the_cache_already_is_scored_all_the_same(
    start_tiny: StartTiny,
) -> None:
    node = start_tiny()
    fresh = echoed(ask_scores(node))
    assert len(fresh) == len(PROMPT)
    again = echoed(ask_scores(node))
    assert [score.token_id for score in again] == PROMPT
    assert [score.logprob for score in again[1:]] == pytest.approx(
        [score.logprob for score in fresh[1:]], abs=1e-4
    )


def test_control_scores_of_a_prompt_taken_from_the_cache_would_be_missing(
    start_tiny: StartTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_tiny()
    ask_scores(node)
    names = PrefixNames.of
    monkeypatch.setattr(
        PrefixNames, "reusable", lambda self, s: names(self, s, (len(s.tokens) - 1) // 16)
    )
    assert isinstance(ask_scores(node).events[-1], Failed)


def test_the_echo_comes_before_the_answer_and_only_to_those_who_ask(start_tiny: StartTiny) -> None:
    node = start_tiny()
    kinds = [type(e).__name__ for e in ask_scores(node).events]
    assert kinds[:3] == ["Started", "Echo", "Delta"]
    plain = node.ask(prompt=PROMPT)
    assert plain.completed
    assert not any(isinstance(e, Echo) for e in plain.events)
    assert scores_of(plain) == []
