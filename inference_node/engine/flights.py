"""Steps on their way: the device works on one while the host prepares the next and reads the last.

A step that can be launched before the tokens of the one before are known is launched, and only then
are those read and handed out. Any other waits until they are read. At most two are on their way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from inference_node.engine.runner import Drawn, Flight, Runner
from inference_node.engine.scheduler import Step
from inference_node.engine.sequence import Phase


@dataclass(frozen=True, slots=True)
class Landed:
    """A step whose tokens are read."""

    step: Step
    drawn: list[Drawn]
    seconds: float
    """Since it was launched, or since the one before landed if that was later."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """A step that failed: none of its requests has a token of it."""

    step: Step
    error: Exception


class Flights:
    """For the engine thread."""

    def __init__(
        self, runner: Runner, *, ahead: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """With `ahead`, steps that can be launched early are."""
        self.runner = runner
        self._ahead = ahead
        self._clock = clock
        self._last: Flight | None = None
        self._began = 0.0

    @property
    def any(self) -> bool:
        """Whether a step is on its way."""
        return self._last is not None

    def advance(self, step: Step | None) -> Iterator[Landed | Crashed]:
        """Run a step, or land the last one if there is none; what has come of which step.

        To be taken to the end: what comes is in the order of the steps, and a step that could not
        be launched early starts when the caller has handed out what came before it.
        """
        if step is not None and self._ahead and self.runner.runs_ahead(step):
            yield from self._launch(step)
            return
        before, self._last = self._last, None
        if before is not None:
            yield self._land(before)
        if step is not None:
            left = [item for item in step.work if item.sequence.phase is Phase.RUNNING]
            if left:
                yield self._run(Step(tuple(left)))

    def _launch(self, step: Step) -> Iterator[Landed | Crashed]:
        before, self._last = self._last, None
        crashed = None
        if before is None:
            self._began = self._clock()
        try:
            self._last = self.runner.launch(step)
        except Exception as error:
            crashed = Crashed(step, error)
        if before is not None:
            yield self._land(before)
        if crashed is not None:
            yield crashed

    def _land(self, flight: Flight) -> Landed | Crashed:
        try:
            drawn = flight.read()
        except Exception as error:
            return Crashed(flight.step, error)
        began, self._began = self._began, self._clock()
        return Landed(flight.step, drawn, self._began - began)

    def _run(self, step: Step) -> Landed | Crashed:
        began = self._clock()
        try:
            drawn = self.runner.run(step)
        except Exception as error:
            return Crashed(step, error)
        return Landed(step, drawn, self._clock() - began)
