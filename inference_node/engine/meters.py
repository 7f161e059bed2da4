"""What the engine counts and times while it runs. Pure Python; for the engine thread.

A token costs one comparison chain between fixed bounds. All else happens once a request or once a
step, or is looked up when somebody asks (readout.py).
"""

from __future__ import annotations

from inference_node.distribution import Histogram
from inference_node.engine.sequence import Sequence
from inference_node.readings import Decoding

WAIT_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60, 120)
GAP_SECONDS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)


class Meters:
    """Since the engine started."""

    def __init__(self) -> None:
        self._steps = Histogram(STEP_SECONDS)
        self._queue = Histogram(WAIT_SECONDS)
        self._adapter_wait = Histogram(WAIT_SECONDS)
        self._first_token = Histogram(FIRST_TOKEN_SECONDS)
        self._quiet, self._loading = Histogram(GAP_SECONDS), Histogram(GAP_SECONDS)
        self._gaps = self._quiet
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0
        self.stalled = 0.0

    def begin_step(self, *, loading: bool) -> None:
        """`loading`: whether adapters are being loaded beside the step that begins now."""
        self._gaps = self._loading if loading else self._quiet

    def end_step(self, seconds: float) -> None:
        self._steps.observe(seconds)

    def ready(self, sequence: Sequence) -> None:
        """The request holds the version that it named."""
        self._adapter_wait.observe(sequence.ready_at - sequence.accepted_at)

    def began(self, sequence: Sequence) -> None:
        """Its first step begins."""
        self._queue.observe(sequence.first_step_at - sequence.accepted_at)
        self._prompt_tokens += len(sequence.request.prompt)
        self._cached_tokens += sequence.reused

    def token(self, sequence: Sequence, now: float) -> None:
        """The request has got one more; its times are still those of the one before."""
        self._generated_tokens += 1
        if sequence.first_token_at:
            self._gaps.observe(now - sequence.last_token_at)
        else:
            self._first_token.observe(now - sequence.accepted_at)

    def read(self, *, preemptions: int) -> Decoding:
        return Decoding(
            steps=self._steps.read(),
            queue=self._queue.read(),
            adapter_wait=self._adapter_wait.read(),
            first_token=self._first_token.read(),
            gaps_quiet=self._quiet.read(),
            gaps_loading=self._loading.read(),
            stalled=self.stalled,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=preemptions,
        )
