"""The engine thread: takes requests and news in, runs steps, hands tokens out.

It alone owns the model, the pages, the blocks and every request's state; the rest of the process
talks to it through one queue. Each accepted request ends with exactly one Completed or Failed, and
each order with an answer, whatever fails in between.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows

from adapter_store.record import BaseCard
from inference_node.adapters.loader import Loader
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.watcher import Watcher
from inference_node.engine.admission import Admission
from inference_node.engine.census import Census, GroupSize
from inference_node.engine.deadlines import Deadlines
from inference_node.engine.flights import Crashed, Flights, Landed
from inference_node.engine.inbox import Cancel, Inbox, Stop, Submit
from inference_node.engine.intake import Intake
from inference_node.engine.meters import Meters
from inference_node.engine.order_desk import OrderDesk
from inference_node.engine.order_window import OrderWindow
from inference_node.engine.orders import Order
from inference_node.engine.outbox import Outbox
from inference_node.engine.readout import Readout
from inference_node.engine.runner import Drawn, Runner
from inference_node.engine.scheduler import Scheduler, Step
from inference_node.engine.sequence import Phase, Sequence
from inference_node.errors import (
    Cancelled,
    DeadlineExpired,
    Draining,
    EngineFailure,
    InvalidRequest,
    ModelFailure,
    NodeError,
)
from inference_node.request import Event, Failed, ModelInfo, OnEvent, PoolStatus, Request
from inference_node.text import StopMatcher, Tokenizer

log = logging.getLogger(__name__)

_SEED_BITS = 31

MakeAdmission = Callable[
    [Callable[[Sequence], None], Callable[[Sequence, NodeError], None]], Admission
]


class EngineLoop(OrderWindow):
    """One thread serving one model."""

    def __init__(
        self,
        *,
        card: BaseCard,
        inbox: Inbox,
        runner: Runner,
        scheduler: Scheduler,
        slots: SlotTable,
        loader: Loader,
        watcher: Watcher,
        admission: MakeAdmission,
        tokenizer: Tokenizer,
        describe: Callable[[PoolStatus, int, int], ModelInfo],
        max_context: int,
        max_queue: int,
        run_ahead: bool,
        groups: Rows[GroupSize],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`admission` is given what to do with a request that is ready, and with one that fails."""
        self._intake = Intake(max_context=max_context, max_queue=max_queue)
        super().__init__(self._intake, inbox, clock=clock)
        self.card = card
        self.tokenizer = tokenizer
        self._inbox = inbox
        self._runner = runner
        self._scheduler = scheduler
        self._slots = slots
        self._loader = loader
        self._watcher = watcher
        self._admission = admission(self._on_ready, self._fail)
        self._describe = describe
        self._page_bytes = sum(group.page_bytes for group in groups)
        self._max_context = max_context
        self._clock = clock
        self._active: dict[str, Sequence] = {}
        names, arrivals = self._admission.names, self._admission.arrivals
        self._meters = Meters()
        self._outbox = Outbox(self._meters, clock=clock)
        self._flights = Flights(runner, ahead=run_ahead, clock=clock)
        census = Census(
            slots,
            arrivals,
            loader.host,
            names,
            self._admission.foresight,
            groups=groups,
            clock=clock,
        )
        readout = Readout(
            self._meters,
            census,
            self._admission,
            scheduler,
            slots,
            requests=self._active.values,
            limit=max_queue,
            hints_healthy=lambda: watcher.hints_healthy,
            clock=clock,
        )
        self._desk = OrderDesk(
            self._admission,
            slots,
            census,
            readout,
            requests=self._active.values,
            fail=self._fail,
            clock=clock,
        )
        self._deadlines = Deadlines()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._watcher.start()
        self._thread.start()

    def submit(self, request: Request, on_event: OnEvent) -> None:
        """Accept a request; its events follow on the engine thread, the last one ends it.

        Raises Draining, QueueFull, or InvalidRequest when the prompt leaves no room for a token.
        """
        with self._intake.accept(request) as order:
            seed = request.sampling.seed
            sequence = Sequence(
                request=request,
                on_event=on_event,
                accepted_at=self._clock(),
                order=order,
                seed=secrets.randbits(_SEED_BITS) if seed is None else seed,
                detokenizer=self.tokenizer.detokenizer(),
                stops=StopMatcher(request.stopping.stop),
                eos=self.tokenizer.eos_token_ids,
                room=self._max_context,
            )
            self._inbox.post(Submit(sequence))

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step; one that already ended is left alone."""
        self._inbox.post(Cancel(request_id))

    def healthy(self) -> bool:
        return self._thread.is_alive()

    def info(self) -> ModelInfo:
        allocator = self._slots.allocator
        status = PoolStatus(
            pages_total=sum(allocator.total),
            pages_free=sum(allocator.free),
            page_bytes=self._page_bytes,
            resident=self._slots.resident_count,
            leases=self._slots.lease_count,
        )
        running = len(self._scheduler.running)
        return self._describe(status, running, max(0, self._intake.in_progress - running))

    def drain(self, timeout: float) -> bool:
        """Refuse new requests and wait for those in progress; False when time ran out."""
        self._intake.close()
        return self._intake.wait_empty(timeout)

    def stop(self) -> None:
        """Fail whatever is left and end every thread."""
        self._intake.close()
        self._inbox.post(Stop())
        if self._thread.is_alive():
            self._thread.join()
        self._watcher.stop()
        self._loader.close()

    def check_integrity(self) -> None:
        """For tests, while no step runs: pages, blocks and leases add up."""
        self._admission.check_integrity()
        self._scheduler.check_integrity()
        self._desk.check_integrity()
        self._loader.host.check_integrity()
        without = {s for s in self._active.values() if s.phase in (Phase.RESOLVING, Phase.LOADING)}
        assert without == set(self._admission.waiting()), "each request waits for something"
        leased = sum(sequence.lease is not None for sequence in self._active.values())
        assert leased == self._slots.lease_count, "each lease belongs to one request"

    def _run(self) -> None:
        end: NodeError = Draining("this node stopped", retry_after=1.0)
        try:
            self._runner.take_the_cores()
            while not self._stopping:
                stuck = self._turn()
                if stuck and not self._stopping:
                    self._receive(block=True)
        except Exception:
            log.exception("the engine cannot go on")
            end = EngineFailure("the engine has ended", hint="restart this node", retry_after=1.0)
        self._intake.close()
        self._answer_all(end)

    def _answer_all(self, error: NodeError) -> None:
        """Nothing runs any more: whoever was accepted is told so."""
        for message in self._inbox.take(wait=None, block=False):
            match message:
                case Submit(sequence):
                    self._end(sequence, Failed(error, None))
                case Order():
                    message.fail(error)
        for sequence in list(self._active.values()):
            try:
                self._fail(sequence, error)
            except Exception:
                log.exception("a request's resources are lost with the engine")
                self._outbox.tell(sequence, Failed(error, None))
                self._intake.ended(sequence.request)
        self._desk.end(error)

    def _turn(self) -> bool:
        """Take news, expire, run or launch one step. True when nothing could run."""
        self._receive(block=False)
        self._expire()
        self._admission.relieve(self._active.values(), self._scheduler.remove)
        step = self._scheduler.schedule()
        if step is None and not self._flights.any:
            return True
        if step is not None:
            self._begin_step(step)
        for outcome in self._flights.advance(step):
            match outcome:
                case Landed():
                    self._meters.end_step(outcome.seconds)
                    self._scheduler.ran(outcome.step)
                    for result in outcome.drawn:
                        self._hand_out(result)
                case Crashed(failed, error):
                    log.error("a step failed", exc_info=error)
                    for item in failed.work:
                        self._scheduler.distrust(item.sequence)
                        reason = EngineFailure("the step failed", retry_after=1.0)
                        self._fail(item.sequence, reason)
        return False

    def _begin_step(self, step: Step) -> None:
        self._meters.begin_step(loading=self._admission.arrivals.loading)
        now = self._clock()
        for item in step.work:
            if not item.sequence.first_step_at:
                item.sequence.first_step_at = now
                self._meters.began(item.sequence)

    def _receive(self, *, block: bool) -> None:
        clocks = (self._deadlines, self._desk, self._admission) if block else ()
        times = [clock.soonest() for clock in clocks]
        soonest = min((time for time in times if time is not None), default=None)
        wait = None if soonest is None else max(0.0, soonest - self._clock())
        for message in self._inbox.take(wait=wait, block=block):
            match message:
                case Submit(sequence):
                    self._begin(sequence)
                case Cancel(request_id):
                    cancelled = self._active.get(request_id)
                    if cancelled is not None:
                        self._fail(cancelled, Cancelled("the caller cancelled"))
                case Stop():
                    self._stopping = True
                case Order():
                    self._desk.take(message)
                case _:
                    began = self._clock()
                    self._admission.on_event(message)
                    if not self._scheduler.idle:
                        self._meters.stalled += self._clock() - began

    def _begin(self, sequence: Sequence) -> None:
        request_id = sequence.request.request_id
        if request_id in self._active:
            problem = InvalidRequest("request_id", f"{request_id!r} is in progress already")
            self._end(sequence, Failed(problem, None))
            return
        self._active[request_id] = sequence
        self._deadlines.add(sequence)
        # Whose time is up already is not looked up, let alone loaded for.
        self._expire()
        if sequence.phase is not Phase.DONE:
            self._admission.begin(sequence)

    def _on_ready(self, sequence: Sequence) -> None:
        self._outbox.ready(sequence)
        self._scheduler.add(sequence)

    def _expire(self) -> None:
        for sequence in self._deadlines.passed(self._clock()):
            self._fail(sequence, DeadlineExpired("the deadline passed"))
        self._desk.tick()
        self._admission.tick()

    def _hand_out(self, result: Drawn) -> None:
        sequence, token = result.sequence, result.token
        if sequence.phase is Phase.DONE:
            return
        if token is None:
            self._scheduler.distrust(sequence)
            self._fail(
                sequence,
                ModelFailure("the model's logits are not finite for this request"),
            )
            return
        last = self._outbox.take(sequence, token, result.score)
        if last is not None:
            self._end(sequence, last)

    def _fail(self, sequence: Sequence, error: NodeError) -> None:
        if sequence.phase is Phase.DONE:
            return
        waiting_for = self._admission.withdraw(sequence)
        if waiting_for and isinstance(error, DeadlineExpired) and not sequence.produced:
            error = waiting_for
        self._end(sequence, Failed(error, sequence.served if sequence.entry else None))

    def _end(self, sequence: Sequence, last: Event) -> None:
        """The only way out of the engine: resources first, then the answer, exactly once."""
        if sequence.phase is Phase.DONE:
            return
        self._scheduler.remove(sequence)
        sequence.phase = Phase.DONE
        if self._active.get(sequence.request.request_id) is sequence:
            del self._active[sequence.request.request_id]
        self._admission.release(sequence)
        self._outbox.tell(sequence, last)
        self._intake.ended(sequence.request)
