"""A request ends for the reason that holds, and its numbers are those of its tokens."""

from __future__ import annotations

import pytest

from inference_node.adapters.versions import Entry, VersionKey
from inference_node.engine.sequence import Phase
from inference_node.request import FinishReason, Served, Stopping, Usage
from tests.inference_node.engine.sequences import make_sequence

EOS = frozenset({2})
ROOM = 100


def ended(
    answer: list[int], stopping: Stopping, *, room: int = ROOM, prompt: int = 4
) -> FinishReason | None:
    sequence = make_sequence(prompt, stopping=stopping)
    sequence.eos, sequence.room = EOS, room
    sequence.tokens.extend(answer)
    return sequence.ended_by(answer[-1])


def test_a_request_starts_with_its_prompt_to_read_and_nothing_produced() -> None:
    sequence = make_sequence([7, 8, 9])
    assert sequence.phase is Phase.RESOLVING
    assert (sequence.pending, sequence.produced) == (3, 0)
    sequence.cached = 3
    sequence.tokens.append(5)
    assert (sequence.pending, sequence.produced) == (1, 1)
    assert sequence.usage == Usage(3, 1)


def test_the_prompt_of_the_request_is_not_changed_by_its_answer() -> None:
    sequence = make_sequence([7, 8])
    sequence.tokens.append(5)
    assert sequence.request.prompt == (7, 8)


@pytest.mark.parametrize(
    ("answer", "stopping", "reason"),
    [
        ([5], Stopping(max_new_tokens=3), None),
        ([5, 5], Stopping(max_new_tokens=3), None),
        ([5, 5, 5], Stopping(max_new_tokens=3), FinishReason.LENGTH),
        ([5, 2], Stopping(max_new_tokens=3), FinishReason.STOP),
        ([5, 2], Stopping(max_new_tokens=3, ignore_eos=True), None),
        ([5, 5, 2], Stopping(max_new_tokens=3), FinishReason.STOP),
        ([5, 5, 2], Stopping(max_new_tokens=3, ignore_eos=True), FinishReason.LENGTH),
        ([5, 9], Stopping(stop_token_ids=(9,)), FinishReason.STOP_SEQUENCE),
        ([2], Stopping(stop_token_ids=(2,)), FinishReason.STOP_SEQUENCE),
        ([2], Stopping(stop_token_ids=(2,), ignore_eos=True), FinishReason.STOP_SEQUENCE),
        ([2], Stopping(min_new_tokens=1), None),
        ([5, 2], Stopping(min_new_tokens=1), FinishReason.STOP),
        ([9], Stopping(min_new_tokens=2, stop_token_ids=(9,)), None),
        ([5, 9], Stopping(min_new_tokens=2, stop_token_ids=(9,)), None),
        ([5, 5, 9], Stopping(min_new_tokens=2, stop_token_ids=(9,)), FinishReason.STOP_SEQUENCE),
        ([5, 5], Stopping(min_new_tokens=5, max_new_tokens=2), FinishReason.LENGTH),
    ],
)
def test_an_answer_ends_for_the_reason_that_holds(
    answer: list[int], stopping: Stopping, reason: FinishReason | None
) -> None:
    assert ended(answer, stopping) is reason


def test_an_answer_ends_where_the_context_does() -> None:
    assert ended([5] * 5, Stopping(), room=10, prompt=4) is None
    assert ended([5] * 6, Stopping(), room=10, prompt=4) is FinishReason.LENGTH


def test_a_token_that_is_on_its_way_counts_for_all_but_what_is_produced() -> None:
    sequence = make_sequence(4, stopping=Stopping(max_new_tokens=3))
    sequence.cached, sequence.unread = 4, 1
    assert (sequence.pending, sequence.produced, sequence.ends) == (1, 0, False)
    left = sequence.remaining
    sequence.tokens.append(5)
    sequence.unread = 0
    assert (sequence.pending, sequence.produced, sequence.remaining) == (1, 1, left)
    sequence.cached, sequence.unread = 5, 2
    assert sequence.ends, "the third token, whatever it is"
    sequence.unread, sequence.room = 1, 6
    assert sequence.ends, "the context is full"


def test_a_prompt_that_holds_the_end_of_text_token_does_not_end_the_answer() -> None:
    sequence = make_sequence([2, 2, 2])
    sequence.eos = EOS
    sequence.tokens.append(5)
    assert sequence.ended_by(5) is None


def test_what_served_a_request_is_the_version_it_was_pinned_to() -> None:
    sequence = make_sequence()
    assert sequence.served == Served("t", "", "", 0, "")
    sequence.entry = Entry("t", "anna", "v3", 3, VersionKey("t", "d16e57"))
    assert sequence.served == Served("t", "anna", "v3", 3, "d16e57")


def test_times_of_what_never_happened_are_zero_not_negative() -> None:
    sequence = make_sequence()
    sequence.accepted_at = 50.0
    times = sequence.timings
    assert (times.queue, times.adapter_load, times.ttft, times.decode) == (0.0, 0.0, 0.0, 0.0)
    sequence.ready_at, sequence.first_step_at = 51.0, 52.0
    sequence.first_token_at, sequence.last_token_at = 53.5, 60.0
    times = sequence.timings
    assert (times.queue, times.adapter_load, times.ttft, times.decode) == (2.0, 1.0, 3.5, 6.5)


def test_two_requests_of_equal_content_are_two_requests() -> None:
    assert make_sequence() != make_sequence()
