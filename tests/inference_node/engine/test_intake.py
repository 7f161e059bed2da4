"""What is accepted reaches the engine before the door has closed behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from inference_node.engine.intake import Intake
from inference_node.errors import Draining, InvalidRequest
from inference_node.request import Request

PATIENCE = 20.0
REQUEST = Request(request_id="r", tenant="t", adapter="", prompt=(1, 2))


def an_intake(kind: type[Intake] = Intake) -> Intake:
    return kind(max_context=8, max_queue=4)


def close_while_accepting(intake: Intake) -> list[str]:
    """What happens first when the door is closed while a request is in it."""
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def accept() -> None:
        with intake.accept(REQUEST):
            inside.set()
            assert go_on.wait(PATIENCE)
            order.append("posted")

    def close() -> None:
        intake.close()
        order.append("closed")

    accepting, closing = threading.Thread(target=accept), threading.Thread(target=close)
    accepting.start()
    assert inside.wait(PATIENCE)
    closing.start()
    closing.join(0.2)
    go_on.set()
    accepting.join(PATIENCE)
    closing.join(PATIENCE)
    return order


def test_what_is_accepted_is_posted_before_the_door_has_closed() -> None:
    assert close_while_accepting(an_intake()) == ["posted", "closed"]


class Ajar(Intake):
    """Seeded bug: a request is counted under the lock and posted after it."""

    @contextmanager
    def accept(self, request: Request) -> Iterator[int]:
        with super().accept(request) as order:
            pass
        yield order


def test_control_posting_after_the_count_is_seen() -> None:
    assert close_while_accepting(an_intake(Ajar)) == ["closed", "posted"]


def test_nothing_is_accepted_once_it_is_closed() -> None:
    intake = an_intake()
    intake.close()
    with pytest.raises(Draining), intake.accept(REQUEST):
        pass
    with pytest.raises(Draining), intake.opened():
        pass
    assert intake.in_progress == 0


def test_a_request_that_could_not_be_posted_is_not_in_progress() -> None:
    intake = an_intake()
    with pytest.raises(ZeroDivisionError), intake.accept(REQUEST):
        raise ZeroDivisionError
    assert intake.in_progress == 0
    assert intake.wait_empty(0.0)


@pytest.mark.parametrize("prompt", [(), tuple(range(8))], ids=["empty", "as long as the context"])
def test_a_prompt_that_leaves_no_room_for_a_token_is_refused(prompt: tuple[int, ...]) -> None:
    intake = an_intake()
    request = Request(request_id="r", tenant="t", adapter="", prompt=prompt)
    with pytest.raises(InvalidRequest), intake.accept(request):
        pass
    assert intake.in_progress == 0
