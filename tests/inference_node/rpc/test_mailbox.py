"""Events cross from the engine's thread in order, in constant space, and none is slept through."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable

import pytest

from inference_node.request import Completed, Delta, Event, Failed, Request, Started
from inference_node.rpc import mailbox as mailboxes
from inference_node.rpc.mailbox import APART, Bell, Mailbox, joined
from tests.inference_node.rpc.scripted_engine import completed, served
from tests.inference_node.rpc.shaken import shaken

REQUEST = Request(request_id="r", tenant="default", adapter="ada", prompt=(1,))
SEEDS = range(20)
WORDS = 60


async def news(mailbox: Mailbox) -> Event:
    while (event := mailbox.take()) is None:
        await mailbox.arrival()
    return event


async def read_all(mailbox: Mailbox) -> list[Event]:
    events: list[Event] = []
    while not events or not isinstance(events[-1], Completed):
        events.append(await asyncio.wait_for(news(mailbox), 5))
    return events


def post_everything(mailbox: Mailbox, tokens: int) -> int:
    """The most events that waited."""
    most = 0
    mailbox.post(Started(served(REQUEST)))
    for index in range(tokens):
        mailbox.post(Delta(f"{index} ", (index,)))
        most = max(most, len(mailbox._events))
    mailbox.post(completed(REQUEST, tokens))
    return most


async def little_waits(kind: type[Mailbox]) -> None:
    ended = threading.Event()
    mailbox = kind(Bell(), on_last=ended.set)
    assert post_everything(mailbox, 5000) <= APART
    assert ended.is_set()
    events = await read_all(mailbox)
    assert [type(event) for event in events] == [Started, Delta, Completed]
    assert events[1] == Delta("".join(f"{i} " for i in range(5000)), tuple(range(5000)))


async def test_what_nobody_has_read_is_one_delta_however_much_it_is() -> None:
    await little_waits(Mailbox)


async def test_control_a_mailbox_that_kept_every_delta_apart_would_be_caught() -> None:
    class Unjoined(Mailbox):
        def _join(self) -> None: ...

    with pytest.raises(AssertionError):
        await little_waits(Unjoined)


async def nothing_is_slept_through(
    seeds: Iterable[int], *, box: type[Mailbox] = Mailbox, patience: float = 10.0
) -> None:
    """The engine posts, now waiting for its reader, now not, and both lose their turns anywhere.

    TimeoutError: the reader sleeps although there is news.
    """
    for seed in seeds:
        mailbox, taken = box(Bell(), on_last=lambda: None), threading.Semaphore(0)

        def post(mailbox: Mailbox = mailbox, taken: threading.Semaphore = taken) -> None:
            for index in range(WORDS):
                mailbox.post(Delta(f"{index} ", (index,)))
                if index % 3 == 0:
                    taken.acquire(timeout=patience)
            mailbox.post(completed(REQUEST, WORDS))

        tokens: list[int] = []
        with shaken((mailboxes.__file__, __file__), seed):
            thread = threading.Thread(target=post)
            thread.start()
            async with asyncio.timeout(patience):
                while not isinstance(event := await news(mailbox), Completed):
                    assert isinstance(event, Delta)
                    tokens += event.token_ids
                    taken.release()
        await asyncio.to_thread(thread.join)
        assert tokens == list(range(WORDS)), "each once, in order"


async def test_a_reader_sleeps_through_nothing_wherever_it_and_the_engine_lose_their_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await nothing_is_slept_through(SEEDS)
    monkeypatch.setattr(mailboxes, "APART", 3)
    await nothing_is_slept_through(SEEDS)


class NoSecondLook(Mailbox):
    async def arrival(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader
        self._reader = None


class LooksBeforeItPuts(Mailbox):
    def post(self, event: Event) -> None:
        sleeps = self._reader is not None
        self.ended = isinstance(event, Completed | Failed)
        self._events.append(event)
        if sleeps and not self._rung:
            self._rung = True
            self._bell.ring(self._wake)


class RingsOnce(Mailbox):
    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class JoinsBackwards(Mailbox):
    def _join(self) -> None:
        said = [self._events.pop() for _ in range(APART - 1)]
        self._events.append(joined([event for event in said if isinstance(event, Delta)]))


@pytest.mark.parametrize("box", [NoSecondLook, LooksBeforeItPuts, RingsOnce])
async def test_control_a_mailbox_that_takes_its_steps_in_another_order_is_caught(
    box: type[Mailbox],
) -> None:
    with pytest.raises(TimeoutError):
        await nothing_is_slept_through(range(200), box=box, patience=0.5)


async def test_control_deltas_joined_in_another_order_are_caught() -> None:
    with pytest.raises(AssertionError):
        await little_waits(JoinsBackwards)


async def test_nothing_follows_the_last_event() -> None:
    mailbox = Mailbox(Bell(), on_last=lambda: None)
    mailbox.post(completed(REQUEST, 0))
    mailbox.post(Delta("late", (1,)))
    assert await news(mailbox) == completed(REQUEST, 0)
    assert await news(mailbox) == completed(REQUEST, 0)


def test_posting_after_the_loop_has_closed_does_not_disturb_the_engine() -> None:
    async def make() -> Mailbox:
        return Mailbox(Bell(), on_last=lambda: None)

    mailbox = asyncio.run(make())
    mailbox.post(completed(REQUEST, 0))
    assert mailbox.ended


async def interruptions(mailboxes: int, monkeypatch: pytest.MonkeyPatch, *, shared: bool) -> int:
    """How often one step of the engine interrupts the loop, with a word for each of so many."""
    one = Bell()
    crowd = [Mailbox(one if shared else Bell(), on_last=lambda: None) for _ in range(mailboxes)]
    readers = [asyncio.create_task(news(mailbox)) for mailbox in crowd]
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    real, calls = loop.call_soon_threadsafe, []

    def counted(callback: Callable[[], None]) -> object:
        calls.append(callback)
        return real(callback)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    for mailbox in crowd:
        mailbox.post(completed(REQUEST, 0))
    await asyncio.wait_for(asyncio.gather(*readers), 5)
    return len(calls)


async def test_a_step_with_news_for_many_calls_interrupts_the_loop_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await interruptions(50, monkeypatch, shared=True) == 1
    assert await interruptions(50, monkeypatch, shared=False) == 50, "the control"


async def test_a_reader_that_is_busy_is_not_rung_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bell = Bell()
    monkeypatch.setattr(bell, "ring", lambda wake: pytest.fail("rung"))
    mailbox = Mailbox(bell, on_last=lambda: None)
    post_everything(mailbox, 3)
    assert len(await read_all(mailbox)) == 3


class ForgetsTooLate(Bell):
    def _toll(self) -> None:
        while self._waiting:
            self._waiting.popleft()()
        self._pulled = False


async def a_late_ring_is_heard(kind: type[Bell]) -> None:
    """Somebody rings when the bell has just seen that nobody waits any more."""
    bell, heard = kind(), asyncio.Event()

    class Crowd(deque[Callable[[], None]]):
        late = True

        def __bool__(self) -> bool:
            some = len(self) > 0
            if not some and self.late:
                self.late = False
                bell.ring(heard.set)
            return some

    bell._waiting = Crowd()
    bell.ring(lambda: None)
    await asyncio.wait_for(heard.wait(), 0.5)


async def test_who_rings_while_the_bell_falls_silent_is_heard() -> None:
    await a_late_ring_is_heard(Bell)


async def test_control_a_bell_that_forgets_after_it_has_tolled_is_caught() -> None:
    with pytest.raises(TimeoutError):
        await a_late_ring_is_heard(ForgetsTooLate)
