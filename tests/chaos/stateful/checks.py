"""N1 to N8, asked of a node between any two of its steps, and N1 inside each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from inference_node.adapters.versions import Entry, Residency, Resident
from inference_node.engine.scheduler import Step
from inference_node.engine.sequence import Phase
from inference_node.engine.sequence import Sequence as Running
from inference_node.kernels.lora import GroupPlan
from inference_node.model.batch import ForwardBatch
from tests.chaos.stateful.node import Node
from tests.inference_node.step_audit import check_leases

Filled = tuple[str, str, tuple[int, ...]]
"""What keys and values depend on: tenant, digest, and all tokens up to them."""


class Checks:
    """Watches one node; every method raises AssertionError."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pool = node.engine._runner._pool
        self._entries: dict[Running, Entry] = {}
        self._filled: dict[int, Filled] = {}
        """By block of the KV cache."""
        self._seen: list[Resident] = []
        self._broken_inside: AssertionError | None = None
        self.reused_blocks = 0
        self._watch_steps()
        self._watch_blocks()

    def between_steps(self) -> None:
        if self._broken_inside is not None:
            raise self._broken_inside
        self._node.engine.check_integrity()  # N8
        check_leases(self._node.engine)  # N3, and stamps
        self._check_pages()
        self._check_names()
        self._check_requests()
        self._check_blocks()

    def at_rest(self) -> None:
        """Nobody is answered any more, so nothing is held."""
        engine = self._node.engine
        assert not engine._active
        info = engine.info()
        assert (info.running, info.waiting, info.pool.leases) == (0, 0, 0)
        assert engine._slots.lease_count == 0
        assert engine._scheduler.idle
        assert engine._scheduler.blocks.free == engine._scheduler.blocks.total
        for resident in self._node.residents():
            assert resident.state is Residency.RESIDENT, f"{resident} holds pages for ever"

    def _check_pages(self) -> None:
        """N2, N5, N6: whoever may be read is there, whole, bit by bit as it was published."""
        self._node.memory.check()
        for resident in self._node.residents():
            if resident.state is Residency.DRAINING:
                assert resident.leases, "N2: a version that nobody holds keeps its pages"
            if resident.state in (Residency.RESIDENT, Residency.DRAINING):
                self._node.memory.check_holds(resident)
            if resident not in self._seen:
                self._seen.append(resident)
        self._check_stale_page_lists()

    def _check_stale_page_lists(self) -> None:
        """What was freed, and is another's by now, no step can be led to."""
        owner = {
            (group, page): resident
            for resident in self._node.residents()
            for group, pages in enumerate(resident.pages)
            for page in pages
        }
        for gone in [one for one in self._seen if one.state is Residency.FREED]:
            places = [(g, page) for g, pages in enumerate(gone.pages) for page in pages]
            if any(place in owner for place in places):
                self._seen.remove(gone)
                try:
                    self._pool.routing(gone)
                except AssertionError:
                    continue
                raise AssertionError("N2: a step could be led to pages that are another's by now")

    def _check_names(self) -> None:
        """N5: a name serves what is complete; N7: and what the log says that it served."""
        slots = self._node.engine._slots
        for name in slots.served_names():
            entry = slots.serving(*name)
            assert entry is not None
            assert (entry.tenant, entry.adapter) == name
            assert slots.resident(entry.key) is not None, f"N5: {name} serves what is not there"

    def _check_requests(self) -> None:
        """N3: whatever happens to a request, its entry stays; N7: and is never none."""
        active = list(self._node.engine._active.values())
        for sequence in active:
            if sequence.entry is not None:
                first = self._entries.setdefault(sequence, sequence.entry)
                assert sequence.entry is first, f"N3: {first} became {sequence.entry}"
            if sequence.phase in (Phase.WAITING, Phase.RUNNING) and sequence.request.adapter:
                assert sequence.lease is not None, "N7: a request for an adapter runs on the base"
        alive = set(active)
        self._entries = {one: entry for one, entry in self._entries.items() if one in alive}

    def _check_blocks(self) -> None:
        """N4: a full block belongs to those alone whose past, tenant and version are its own."""
        scheduler = self._node.engine._scheduler
        size = scheduler.blocks.block_tokens
        for sequence in scheduler.running:
            entry = sequence.entry
            vdig = entry.key.vdig if entry is not None else ""
            for index in range(sequence.cached // size):
                block = sequence.block_table[index]
                past = tuple(sequence.tokens[: (index + 1) * size])
                mine = (sequence.request.tenant, vdig, past)
                before = self._filled.setdefault(block, mine)
                assert before == mine, f"N4: a block of {before[:2]} is read by {mine[:2]}"

    def _watch_blocks(self) -> None:
        """A block that is handed out anew holds nothing."""
        blocks = self._node.engine._scheduler.blocks
        allocate, hold = blocks.allocate, blocks.hold

        def watched(count: int) -> list[int]:
            taken = allocate(count)
            for block in taken:
                self._filled.pop(block, None)
            return taken

        def counted(reused: Iterable[int]) -> None:
            reused = list(reused)
            self.reused_blocks += len(reused)
            hold(reused)

        blocks.allocate = watched  # type: ignore[method-assign]
        blocks.hold = counted  # type: ignore[assignment, method-assign]

    def _watch_steps(self) -> None:
        """N1: the pages of a step's rows are those of its requests' entries, there and then."""
        runner = self._node.engine._runner
        batch = runner.batch

        def watched(step: Step) -> ForwardBatch:
            made = batch(step)
            try:
                self._inside_step(step, made)
            except AssertionError as error:
                # The engine fails such a step, and the requests in it: this says why.
                self._broken_inside = error
                raise
            return made

        runner.batch = watched  # type: ignore[method-assign]

    def _inside_step(self, step: Step, batch: ForwardBatch) -> None:
        groups = range(len(self._pool.groups))
        read = [_pages_read(batch.lora.groups[g]) if batch.lora else {} for g in groups]
        row = 0
        for item in step.work:
            held = item.sequence.lease
            for group in groups:
                own = set(held.pages[group]) if held is not None else set()
                for line in range(row, row + item.length):
                    found = read[group].get(line, set())
                    assert found == own, f"N1: row {line} reads {found}, its request has {own}"
            if held is not None:
                assert held.state in (Residency.RESIDENT, Residency.DRAINING)
                self._node.memory.check_holds(held)
            row += item.length
        self._node.memory.check()


def _pages_read(plan: GroupPlan | None) -> dict[int, set[int]]:
    """By row of the step: pages of one group that enter it with a weight."""
    read: dict[int, set[int]] = defaultdict(set)
    if plan is None:
        return read
    for block in plan.blocks:
        for row, column in block.weights.nonzero().tolist():
            read[block.first + row].add(int(block.pages[column]))
    if plan.single is not None:
        for row, page in zip(plan.single.row.tolist(), plan.single.page.tolist(), strict=True):
            read[row].add(page)
    return read
