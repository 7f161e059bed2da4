"""Events cross from the engine's thread in order and in constant space."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from inference_node.request import Completed, Delta, Event, Request, Started
from inference_node.rpc.mailbox import Bell, Mailbox
from tests.inference_node.rpc.scripted_engine import completed, served

REQUEST = Request(request_id="r", tenant="default", adapter="ada", prompt=(1,))


async def read_all(mailbox: Mailbox) -> list[Event]:
    events: list[Event] = []
    while not events or not isinstance(events[-1], Completed):
        events += await asyncio.wait_for(mailbox.news(), 5)
    return events


def post_everything(mailbox: Mailbox, tokens: int) -> None:
    mailbox.post(Started(served(REQUEST)))
    for index in range(tokens):
        mailbox.post(Delta(f"{index} ", (index,)))
    mailbox.post(completed(REQUEST, tokens))


async def three_events_wait(kind: type[Mailbox]) -> None:
    ended = asyncio.Event()
    mailbox = kind(Bell(), on_last=ended.set)
    thread = threading.Thread(target=post_everything, args=(mailbox, 5000))
    thread.start()
    thread.join()
    events = await read_all(mailbox)
    assert [type(event) for event in events] == [Started, Delta, Completed]
    assert events[1] == Delta("".join(f"{i} " for i in range(5000)), tuple(range(5000)))
    await asyncio.wait_for(ended.wait(), 5)


async def test_what_nobody_has_read_is_one_delta_however_much_it_is() -> None:
    await three_events_wait(Mailbox)


async def test_a_mailbox_that_kept_every_delta_apart_would_be_caught() -> None:
    class Unjoined(Mailbox):
        def post(self, event: Event) -> None:
            super().post(event)
            self.posted = [*getattr(self, "posted", ()), event]

        def _take(self) -> list[Event]:
            super()._take()
            taken, self.posted = self.posted, []
            return taken

    with pytest.raises(AssertionError, match="Delta"):
        await three_events_wait(Unjoined)


async def test_text_read_while_it_is_written_arrives_whole_and_in_order() -> None:
    mailbox = Mailbox(Bell(), on_last=lambda: None)
    thread = threading.Thread(target=post_everything, args=(mailbox, 20_000))
    thread.start()
    events = await read_all(mailbox)
    thread.join()
    tokens = [i for event in events if isinstance(event, Delta) for i in event.token_ids]
    assert tokens == list(range(20_000))


async def test_nothing_follows_the_last_event() -> None:
    mailbox = Mailbox(Bell(), on_last=lambda: None)
    mailbox.post(completed(REQUEST, 0))
    mailbox.post(Delta("late", (1,)))
    assert await mailbox.news() == [completed(REQUEST, 0)]
    assert await mailbox.news() == [completed(REQUEST, 0)]


def test_posting_after_the_loop_has_closed_does_not_disturb_the_engine() -> None:
    async def make() -> Mailbox:
        return Mailbox(Bell(), on_last=lambda: None)

    mailbox = asyncio.run(make())
    mailbox.post(completed(REQUEST, 0))
    assert mailbox.ended


async def interruptions(mailboxes: int, monkeypatch: pytest.MonkeyPatch, *, shared: bool) -> int:
    """How often one step of the engine interrupts the loop, with a word for each of so many."""
    one, ended = Bell(), [asyncio.Event() for _ in range(mailboxes)]
    crowd = [Mailbox(one if shared else Bell(), on_last=event.set) for event in ended]
    loop = asyncio.get_running_loop()
    real, calls = loop.call_soon_threadsafe, []

    def counted(callback: Callable[[], None]) -> object:
        calls.append(callback)
        return real(callback)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    for mailbox in crowd:
        mailbox.post(completed(REQUEST, 0))
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in ended)), 5)
    return len(calls)


async def test_a_step_with_news_for_many_calls_interrupts_the_loop_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await interruptions(50, monkeypatch, shared=True) == 1
    assert await interruptions(50, monkeypatch, shared=False) == 50, "the control"
