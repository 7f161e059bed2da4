"""Everything that is measured of the engine, looked up at once. For the engine thread."""

from __future__ import annotations

from collections.abc import Callable, Collection

from inference_node.adapters.slots import SlotTable
from inference_node.engine.admission import Admission
from inference_node.engine.census import Census
from inference_node.engine.meters import Meters
from inference_node.engine.scheduler import Scheduler
from inference_node.engine.sequence import Phase, Sequence
from inference_node.readings import InProgress, KvCache, Loading, Readings
from inference_node.residency import Tier


class Readout:
    """Reads the books of the engine thread, on the engine thread."""

    def __init__(
        self,
        meters: Meters,
        census: Census,
        admission: Admission,
        scheduler: Scheduler,
        slots: SlotTable,
        *,
        requests: Callable[[], Collection[Sequence]],
        limit: int,
        hints_healthy: Callable[[], bool | None],
        clock: Callable[[], float],
    ) -> None:
        """`requests` are all that have not ended, `limit` how many there can be."""
        self._meters = meters
        self._census = census
        self._admission = admission
        self._scheduler = scheduler
        self._slots = slots
        self._requests = requests
        self._limit = limit
        self._hints_healthy = hints_healthy
        self._clock = clock

    def read(self, *, listed: int) -> Readings:
        """With at most `listed` versions by name."""
        found = self._census.survey(listed)
        return Readings(
            requests=self._in_progress(),
            kv=self._kv(),
            decoding=self._meters.read(preemptions=self._scheduler.preemptions),
            loading=self._loading(),
            pool=self._census.pool(),
            versions=found.versions,
            listed=found.listed,
            store_away=self._admission.lookups.store_is_away,
            hints_healthy=self._hints_healthy(),
        )

    def _in_progress(self) -> InProgress:
        phases = dict.fromkeys(Phase, 0)
        oldest = now = self._clock()
        running: set[tuple[str, str]] = set()
        waiting: set[tuple[str, str]] = set()
        for sequence in self._requests():
            phases[sequence.phase] += 1
            if not sequence.first_step_at:
                oldest = min(oldest, sequence.accepted_at)
            if (entry := sequence.entry) is not None:
                side = running if sequence.phase is Phase.RUNNING else waiting
                side.add((entry.tenant, entry.adapter))
        return InProgress(
            resolving=phases[Phase.RESOLVING],
            loading=phases[Phase.LOADING],
            waiting=phases[Phase.WAITING],
            running=phases[Phase.RUNNING],
            limit=self._limit,
            oldest_seconds=now - oldest,
            running_adapters=tuple(sorted(running)),
            waiting_adapters=tuple(sorted(waiting)),
        )

    def _kv(self) -> KvCache:
        blocks = self._scheduler.blocks
        return KvCache(
            total=blocks.total,
            held=blocks.total - blocks.free,
            kept=blocks.kept,
            block_tokens=blocks.block_tokens,
        )

    def _loading(self) -> Loading:
        arrivals, names = self._admission.arrivals, self._admission.names
        meter = arrivals.meter
        return Loading(
            in_work=arrivals.in_work,
            lookups=dict(meter.lookups),
            loads=dict(meter.loads),
            refused=dict(meter.refused),
            fetched_bytes=meter.fetched_bytes,
            resolve=meter.resolve.read(),
            fetch=meter.fetch.read(),
            verify=meter.verify.read(),
            stage=meter.stage.read(),
            promote=meter.promote.read(),
            whole=meter.whole.read(),
            swaps=names.swaps,
            made_way=self._admission.made_way,
            withdrawals=names.withdrawals,
            evicted={
                Tier.DEVICE: self._slots.evictions,
                Tier.HOST: self._census.host_evictions,
            },
        )
