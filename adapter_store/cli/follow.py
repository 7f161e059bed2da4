"""`watch`: every new generation as it lands, live through Redis or by asking the store in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Tenant, out, say, tell
from adapter_store.cli.outcome import INTERRUPTED, next_steps
from adapter_store.cli.session import open_hints
from adapter_store.cli.store import open_configured
from adapter_store.errors import IntegrityError, NotFound, StoreUnavailable

if TYPE_CHECKING:
    from adapter_store.coordination import Hint
    from adapter_store.notify import HintStream
    from adapter_store.objects import ObjectStore
    from adapter_store.reader import Reader
    from adapter_store.record import Record

POLL_S = 5.0
"""How often the store is asked about everything while Redis is silent or away."""
POLL_BESIDE_HINTS_S = 30.0
TICK_S = 0.5
_THREADS = 8


def watch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Adapters; default: all, new ones too.")
    ] = None,
    last: Annotated[
        int, typer.Option(min=0, help="Begin with the newest so many of each adapter.")
    ] = 0,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many lines, successfully.")
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Follow the store live: one line for each new generation, until Ctrl-C.

    With Redis a line appears at once; without, within seconds. With --json each line is one JSON
    object.

    \b
    Examples:
      adapter-store watch
      adapter-store watch pirate parrot --last 3
      adapter-store watch pirate --count 1 --json
    """
    from adapter_store.layout import check_id

    with next_steps():
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        for name in names or ():
            check_id("adapter", name)
        follower = Follower(store, open_hints(settings), owner, names=names or (), last=last)
        try:
            for printed, record in enumerate(follower.records(), start=1):
                _show(record, as_json=json)
                if printed == count:
                    return
        except KeyboardInterrupt:
            # It was asked to end, so that is no error.
            raise SystemExit(INTERRUPTED) from None


class Follower:
    """Finds new records; knows for each adapter the last one it told."""

    def __init__(
        self,
        store: ObjectStore,
        hints: HintStream | None,
        tenant: str,
        *,
        names: Sequence[str],
        last: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        from adapter_store.reader import Reader

        self._reader: Reader = Reader(store)
        self._hints = hints
        self._tenant = tenant
        self._names = tuple(names)
        self._last = last
        self._clock = clock
        self._sleep = sleep
        self._told: dict[str, int] = {}
        self._damaged: set[str] = set()
        self._gaps = 0
        self._live: bool | None = None
        self._reachable = True

    def records(self) -> Iterator[Record]:
        """Endless. Raises StoreUnavailable at the start alone, and StoreRefused."""
        if self._hints is not None:
            # What is announced from now on is heard; what came before is read below.
            self._hints.poll(0)
        heads = {name: self._head(name) for name in self._all_names()}
        self._told = {name: max(0, gen - self._last) for name, gen in heads.items()}
        self._say_how()
        looked_at = self._clock()
        yield from self._news([name for name in heads if self._last])
        while True:
            hinted = self._wait()
            self._say_how()
            period = POLL_BESIDE_HINTS_S if self._live else POLL_S
            if self._gap() or self._clock() - looked_at >= period:
                looked_at = self._clock()
                yield from self._surviving(self._all_names)
            elif hinted:
                mine = {hint.adapter for hint in hinted if self._follows(hint)}
                yield from self._surviving(partial(sorted, mine))

    def _wait(self) -> Sequence[Hint]:
        if self._hints is not None:
            return self._hints.poll(TICK_S)
        self._sleep(TICK_S)
        return ()

    def _follows(self, hint: Hint) -> bool:
        return hint.tenant == self._tenant and (not self._names or hint.adapter in self._names)

    def _gap(self) -> bool:
        """Whether hints may have been missed since the last call."""
        gaps, self._gaps = self._gaps, self._hints.gaps if self._hints else 0
        return self._gaps != gaps

    def _all_names(self) -> Iterable[str]:
        return self._names or tuple(self._reader.adapters(self._tenant))

    def _surviving(self, names: Callable[[], Iterable[str]]) -> Iterator[Record]:
        """News of `names`; a store that is away is waited for."""
        try:
            yield from self._news(list(names()))
        except StoreUnavailable as error:
            if self._reachable:
                say(f"the store does not answer, trying on: {error}")
            self._reachable = False
        else:
            if not self._reachable:
                say("the store answers again")
            self._reachable = True

    def _news(self, names: list[str]) -> Iterator[Record]:
        with ThreadPoolExecutor(min(_THREADS, len(names) or 1)) as pool:
            heads = list(pool.map(self._head, names))
        for name, head in zip(names, heads, strict=True):
            while (gen := self._told.get(name, 0)) < head:
                record = self._reader.record(self._tenant, name, gen + 1)
                self._told[name] = gen + 1
                yield record

    def _head(self, name: str) -> int:
        """The current generation; what is known of a log that is damaged; 0 for none."""
        try:
            return self._reader.head(self._tenant, name).gen
        except NotFound:
            return 0
        except IntegrityError as error:
            if name not in self._damaged:
                say(f"damaged  {name}: {error}; see: adapter-store verify {name}")
            self._damaged.add(name)
            return self._reader.known_gen(self._tenant, name)

    def _say_how(self) -> None:
        live = self._hints is not None and self._hints.healthy
        if live != self._live:
            what = ", ".join(self._names) or "every adapter"
            how = "live through Redis" if live else f"asking the store every {POLL_S:.0f} s"
            why = "Redis does not answer: " if self._hints is not None and not live else ""
            say(f"{why}watching {what} {how}; end with Ctrl-C")
        self._live = live


def _show(record: Record, *, as_json: bool) -> None:
    from adapter_store.kinds import subject_of

    version = subject_of(record, record.kind)
    if as_json:
        document: dict[str, Any] = {
            "tenant": record.tenant,
            "adapter": record.adapter,
            "generation": record.gen,
            "kind": record.kind.value,
            "version": version.label if version else None,
            "digest": version.vdig if version else None,
            "actor": record.actor,
            "time": record.time,
        }
        out(document)
        return
    label = f"{record.adapter}@{version.label}" if version else record.adapter
    digest = f"  sha256:{version.vdig[:12]}" if version else ""
    tell(
        f"{record.time}  {label}  generation {record.gen}  {record.kind.value}{digest}  "
        f"by {record.actor}"
    )
