"""A scheduled step becomes tensors, logits, and one token for every request that reached its end.

Some steps can be launched before the tokens of the one before are read: captured ones, of requests
whose tokens can be drawn without those before them.

The routing of rows to pages is derived here, in the step that uses it, from the leases the requests
hold; it is kept nowhere.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial

import torch

from inference_node.adapters.pool import AdapterPool
from inference_node.engine.early_draws import EarlyDraws
from inference_node.engine.logprobs import score
from inference_node.engine.sampler import sample
from inference_node.engine.scheduler import Step, Work
from inference_node.engine.sequence import Sequence
from inference_node.engine.steady import Steady
from inference_node.kernels.lora import PAGE_RANKS, LoraPlan, SlotPages
from inference_node.kernels.paged_attention import AttentionPlan, Chunk
from inference_node.model.batch import Decoded, ForwardBatch
from inference_node.model.decoder import Decoder
from inference_node.model.graphs import DecodeGraphs, Queued, Record, buckets_for
from inference_node.model.layer_trial import Seconds, choose_layers
from inference_node.model.static_batch import DecodeRow, StaticSizes
from inference_node.request import TokenScore

CORES = torch.get_num_threads()
"""What torch would use, read before anyone changes it."""


def leave_the_cores() -> None:
    """The calling thread, and every thread that has not used torch yet, works on one core.

    Each thread that runs parallel torch code gets OpenMP workers of its own, and OpenMP stops
    spinning at barriers once there are more of them than cores: a decode step then takes twice as
    long. So the engine thread alone has workers. To torch, the last count that any thread asked for
    is what a new thread begins with: this is called before the engine thread takes the cores, by
    whoever builds the engine, and after it, for the threads that load adapters.
    """
    torch.set_num_threads(1)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step gave one request: its next token, or None when its logits were not finite."""

    sequence: Sequence
    token: int | None
    score: TokenScore | None = None
    """Where the request asks for it."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that the device was given, and whose tokens nobody has read."""

    step: Step
    sequences: tuple[Sequence, ...]
    """By row."""
    _queued: Queued

    def read(self) -> list[Drawn]:
        """Wait for it. Its requests have a token less unread."""
        tokens = self._queued.tokens()
        for sequence in self.sequences:
            sequence.unread -= 1
        return [
            Drawn(sequence, None if token < 0 else token)
            for sequence, token in zip(self.sequences, tokens, strict=True)
        ]


class Runner:
    """Owns the model for the engine thread."""

    def __init__(self, decoder: Decoder, pool: AdapterPool, *, block_tokens: int) -> None:
        self._decoder = decoder
        self._pool = pool
        self._block_tokens = block_tokens
        self._device = decoder.base.device
        self._by_row = decoder.by_row
        self._graphs: DecodeGraphs | None = None
        self._draws: EarlyDraws | None = None
        self._rows: dict[Sequence, int] = {}
        """Of the last step that was launched."""
        self._steady = Steady(block_tokens=block_tokens)

    def capture(
        self,
        *,
        max_rows: int,
        max_context: int,
        max_rank: int,
        blocks: int,
        record: Record,
        seconds: Seconds,
    ) -> None:
        """Choose how layers run, and capture decode steps of up to `max_rows` rows.

        `blocks` are those of the KV cache.
        """
        sizes = StaticSizes(
            groups=len(self._pool.groups),
            widest=-(-max_rank // PAGE_RANKS),
            blocks=-(-max_context // self._block_tokens),
            block_tokens=self._block_tokens,
            spare_block=blocks + 1,
        )
        choose_layers(self._decoder, sizes, max_rows=max_rows, record=record, seconds=seconds)
        self._draws = EarlyDraws(max_rows, self._device)
        self._graphs = DecodeGraphs(self._decoder.forward, record)
        self._graphs.capture(buckets_for(max_rows), sizes, device=self._device)

    @property
    def graphs(self) -> DecodeGraphs | None:
        """What was captured."""
        return self._graphs

    def take_the_cores(self) -> None:
        """Called by the engine thread before its first step. Threads that start later have one."""
        torch.set_num_threads(CORES)
        torch.get_num_threads()  # The first call in a thread takes over what was asked for last.
        leave_the_rest = threading.Thread(target=leave_the_cores)
        leave_the_rest.start()
        leave_the_rest.join()

    def run(self, step: Step) -> list[Drawn]:
        """One forward pass. Marks the step's tokens as cached; draws where a request is due one."""
        asked = step.work
        written = self._steady.go_on(asked)
        step = Step(written.work if written else tuple(sorted(asked, key=self._place)))
        sampling = [item.sequence for item in step.work if item.samples]
        self._decoder.zero_blocks(self._fresh_blocks(step))
        decoded = self._decode(step)
        if decoded is None:
            if written:
                batch = self._with_adapters(step, written.batch)
            else:
                batch = self.batch(step)
                self._steady.begin(asked, step.work, batch)
            decoded = self._decoder.decide(batch)
        logits, best, drawing = decoded.logits, decoded.best, len(sampling)
        if len(best) > drawing:
            _score_prompts(logits[drawing:], step)
            logits, best = logits[:drawing], best[:drawing]
        for item in step.work:
            item.sequence.cached += item.length
        tokens = sample(logits, sampling, best)
        scores = _score_tokens(logits, sampling, tokens)
        return [
            Drawn(sequence, token, scores.get(row))
            for row, (sequence, token) in enumerate(zip(sampling, tokens, strict=True))
        ]

    def runs_ahead(self, step: Step) -> bool:
        """Whether `launch` takes the step."""
        return (
            self._graphs is not None
            and all(_decodes(item) and item.sequence.early for item in step.work)
            and self._graphs.holds(
                len(step.work),
                lora=any(item.sequence.lease is not None for item in step.work),
                position=max(item.sequence.cached for item in step.work),
            )
        )

    def launch(self, step: Step) -> Flight:
        """Give the device a step that `runs_ahead`; its tokens stay there for the next one.

        Marks the step's tokens as cached. Requests with an unread token are rows of the last
        launched step; no step of another kind comes between.
        """
        assert self._graphs is not None
        step = Step(tuple(sorted(step.work, key=self._place)))
        sequences = tuple(item.sequence for item in step.work)
        self._graphs.put(partial(self._decoder.zero_blocks, self._fresh_blocks(step)))
        assert self._draws is not None
        rows = [self._row(sequence) for sequence in sequences]
        queued = self._graphs.queue(rows, draw=self._draws.prepare(sequences))
        for sequence in sequences:
            sequence.cached += 1
            sequence.unread += 1
        self._rows = {sequence: row for row, sequence in enumerate(sequences)}
        return Flight(step, sequences, queued)

    def _row(self, sequence: Sequence) -> DecodeRow:
        known = sequence.cached < len(sequence.tokens)
        return DecodeRow(
            sequence.tokens[sequence.cached] if known else 0,
            sequence.cached,
            sequence.block_table,
            None if sequence.lease is None else self._pool.routing(sequence.lease),
            source=None if known else self._rows[sequence],
        )

    def _place(self, item: Work) -> tuple[bool, int]:
        """Last what attention runs on its own; rows of one adapter side by side, to share pages."""
        lease = item.sequence.lease
        return self._is_long(item), 0 if lease is None else lease.stamp

    def _is_long(self, item: Work) -> bool:
        """Whether attention runs the item on its own, after all that runs row by row."""
        context = item.sequence.cached + item.length
        return item.length > 1 and context > self._by_row

    def _decode(self, step: Step) -> Decoded | None:
        """The step by a captured one, when each of its rows is the last token of a request."""
        if self._graphs is None or not all(map(_decodes, step.work)):
            return None
        return self._graphs.run([self._row(item.sequence) for item in step.work])

    def batch(self, step: Step) -> ForwardBatch:
        """The step's rows, in its order: as attention wants it."""
        token_ids: list[int] = []
        positions: list[int] = []
        chunks: list[Chunk] = []
        logit_rows: list[int] = []
        prompt_rows: list[int] = []
        for item in step.work:
            sequence, start = item.sequence, item.sequence.cached
            token_ids.extend(sequence.tokens[start : start + item.length])
            positions.extend(range(start, start + item.length))
            chunks.append(Chunk(tuple(sequence.block_table), start, item.length))
            if item.samples:
                logit_rows.append(len(token_ids) - 1)
            first_row = len(token_ids) - item.length - start
            prompt_rows += [first_row + position for position in unscored(item)]
        return ForwardBatch(
            token_ids=torch.tensor(token_ids, device=self._device),
            positions=torch.tensor(positions, device=self._device),
            attention=AttentionPlan.build(
                chunks,
                block_tokens=self._block_tokens,
                device=self._device,
                by_row=self._by_row,
            ),
            lora=self._lora(step),
            logit_rows=torch.tensor(
                logit_rows + prompt_rows, dtype=torch.int64, device=self._device
            ),
        )

    def _with_adapters(self, step: Step, batch: ForwardBatch) -> ForwardBatch:
        lora = self._lora(step)
        return batch if lora is None else replace(batch, lora=lora)

    def _lora(self, step: Step) -> LoraPlan | None:
        """Which pages the step's rows read, in its order."""
        segments: list[tuple[int, int, SlotPages | None]] = []
        row = 0
        for item in step.work:
            held = item.sequence.lease
            segments.append((row, item.length, None if held is None else self._pool.routing(held)))
            row += item.length
        return LoraPlan.build(
            segments,
            groups=len(self._pool.groups),
            device=self._device,
            dtype=self._decoder.base.dtype,
            in_place=self._decoder.backend.rows is not None,
        )

    def _fresh_blocks(self, step: Step) -> list[int]:
        """Blocks this step writes first.

        Attention multiplies what it masks by zero instead of leaving it out, so whatever an
        earlier request left in a block must be finite, and zeros are. Blocks that came filled, from
        the cache, lie before `cached` and are full.
        """
        fresh: list[int] = []
        for item in step.work:
            used = -(-item.sequence.cached // self._block_tokens)
            fresh += item.sequence.block_table[used:]
        return fresh


def _decodes(item: Work) -> bool:
    """Whether it is the last token of a request, and only the next one is asked for."""
    return item.length == 1 and item.samples and not unscored(item)


def unscored(item: Work) -> range:
    """Positions among the step's tokens whose logits score one more token of the prompt.

    The row at position p scores the token at p + 1; a request that starts over scores none twice.
    """
    sequence = item.sequence
    if not sequence.scores_prompt:
        return range(0)
    start, end = sequence.cached, sequence.cached + item.length
    known = max(len(sequence.prompt_scores), 1)
    return range(max(start, known - 1), min(end, len(sequence.request.prompt) - 1))


def _score_prompts(logits: torch.Tensor, step: Step) -> None:
    row = 0
    for item in step.work:
        positions, sequence = unscored(item), item.sequence
        if not positions:
            continue
        prompt = sequence.request.prompt
        found = sequence.prompt_scores
        if not found:
            found.append(TokenScore(prompt[0], None, 0))
        assert len(found) == positions.start + 1, "scored without a gap"
        found += score(
            logits[row : row + len(positions)],
            [prompt[position + 1] for position in positions],
            [sequence.request.output.top_logprobs] * len(positions),
        )
        row += len(positions)


def _score_tokens(
    logits: torch.Tensor, sequences: list[Sequence], tokens: list[int | None]
) -> dict[int, TokenScore]:
    """By row, for the rows that ask."""
    rows = [row for row, s in enumerate(sequences) if s.request.output.logprobs]
    wanted = {row: token for row in rows if (token := tokens[row]) is not None}
    if not wanted:
        return {}
    top = [sequences[row].request.output.top_logprobs for row in wanted]
    found = score(logits[list(wanted)], list(wanted.values()), top)
    return dict(zip(wanted, found, strict=True))
