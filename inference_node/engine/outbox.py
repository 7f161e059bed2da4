"""What callers are told: that their request holds its version, each token as text, and the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from inference_node.engine.meters import Meters
from inference_node.engine.sequence import Sequence
from inference_node.request import Completed, Delta, Echo, Event, FinishReason, Started, TokenScore

log = logging.getLogger(__name__)


class Outbox:
    """Tokens become events, in order; for the engine thread."""

    def __init__(self, meters: Meters, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._meters = meters
        self._clock = clock

    def tell(self, sequence: Sequence, event: Event) -> None:
        try:
            sequence.on_event(event)
        except Exception:
            log.exception("a caller's event handler failed")

    def ready(self, sequence: Sequence) -> None:
        """The request holds its version; said once, however often it starts over."""
        if sequence.ready_at:
            return
        sequence.ready_at = self._clock()
        if sequence.entry is not None:
            self._meters.ready(sequence)
        self.tell(sequence, Started(sequence.served))

    def take(self, sequence: Sequence, token: int, score: TokenScore | None) -> Completed | None:
        """Hand out one more token; the last event, still to be told, when it ends the answer."""
        now = self._clock()
        self._meters.token(sequence, now)
        sequence.tokens.append(token)
        sequence.unsent.append(token)
        if score is not None:
            sequence.unsent_scores.append(score)
        if sequence.produced == 1 and sequence.request.output.echo:
            self._echo(sequence)
        sequence.first_token_at = sequence.first_token_at or now
        sequence.last_token_at = now
        reason = sequence.ended_by(token)
        text, matched = _next_text(sequence, token, reason)
        if text:
            self._send(sequence, text)
        if matched is not None:
            return self._complete(sequence, FinishReason.STOP_SEQUENCE, matched)
        return None if reason is None else self._complete(sequence, reason, "")

    def _send(self, sequence: Sequence, text: str) -> None:
        scores = tuple(sequence.unsent_scores)
        self.tell(sequence, Delta(text, tuple(sequence.unsent), scores))
        sequence.unsent.clear()
        sequence.unsent_scores.clear()

    def _echo(self, sequence: Sequence) -> None:
        prompt, scores = sequence.request.prompt, sequence.prompt_scores
        if sequence.scores_prompt and not scores:
            scores.append(TokenScore(prompt[0], None, 0))
        self.tell(sequence, Echo(prompt, tuple(scores)))

    def _complete(self, sequence: Sequence, reason: FinishReason, stop: str) -> Completed:
        if sequence.unsent:
            self._send(sequence, "")
        return Completed(
            sequence.served, reason, stop, sequence.usage, sequence.timings, sequence.seed
        )


def _next_text(
    sequence: Sequence, token: int, reason: FinishReason | None
) -> tuple[str, str | None]:
    """The text that may be told now, and the stop string that it ran into.

    Text that might begin a stop string is kept until more of it is known, or the answer ends.
    """
    if reason is None and sequence.stops.never:
        return sequence.detokenizer.push(token), None
    ended_by_token = reason in (FinishReason.STOP, FinishReason.STOP_SEQUENCE)
    text = "" if ended_by_token else sequence.detokenizer.push(token)
    if reason is not None:
        text += sequence.detokenizer.flush()
    too_early = sequence.produced <= sequence.request.stopping.min_new_tokens
    scan = sequence.stops.feed(text, heed=not too_early)
    if scan.matched is None and reason is not None:
        return scan.emit + sequence.stops.flush(), None
    return scan.emit, scan.matched
