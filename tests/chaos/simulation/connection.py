"""The store as one simulated process sees it: every verb may wait, fail, or happen later."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NoReturn

from adapter_store.errors import AlreadyExists, OutcomeUnknown, StoreUnavailable
from adapter_store.objects import ListPage, ObjectHead
from tests.chaos.simulation.baton import Died, Process
from tests.chaos.simulation.faults import ON_DELETE, ON_PUT, ON_READ, Fault
from tests.chaos.simulation.world import World


class Connection:
    """An ObjectStore over the world's bucket, for one process.

    What a caller is told about a fault is what `adapter_store.s3` makes of it: a PUT without a
    usable answer is OutcomeUnknown, whether or not it was applied.
    """

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def get(self, key: str) -> bytes:
        self._before_reading("get", key)
        return self._world.bucket.get(key)

    def head(self, key: str) -> ObjectHead:
        self._before_reading("head", key)
        return self._world.bucket.head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        self._before_reading("list", prefix)
        return self._world.bucket.list(prefix, delimiter=delimiter, limit=limit, token=token)

    def put_new(self, key: str, body: bytes) -> None:
        world = self._world
        self._step("put", key)
        fault = world.meets(ON_PUT, self._rate(key))
        if fault is None and self._cut_off:
            raise OutcomeUnknown(f"no way to PUT {key}")
        if fault is None:
            world.bucket.put_new(key, body)
            return
        self._count(fault, key)
        body = bytes(body)

        def apply() -> None:
            with contextlib.suppress(AlreadyExists):
                world.bucket.put_new(key, body)

        match fault:
            case Fault.CONFLICT:
                # The backend sends it again by itself, for a while.
                self._step("put again", key)
                if world.random.random() < 0.3:
                    raise StoreUnavailable("met conflicting writes")
                world.bucket.put_new(key, body)
            case Fault.DUPLICATE:
                world.send_late(key, apply)
                world.bucket.put_new(key, body)
            case Fault.UNAVAILABLE if world.random.random() < 0.5:
                raise StoreUnavailable("never sent")
            case _:
                self._interrupted(fault, key, apply)
                raise OutcomeUnknown(f"{fault.value} at PUT {key}")

    def delete(self, key: str) -> None:
        world = self._world
        self._step("delete", key)
        fault = world.meets(ON_DELETE, self._rate(key))
        if fault is None and self._cut_off:
            raise StoreUnavailable(f"no way to DELETE {key}")
        if fault is None:
            world.bucket.delete(key)
            return
        self._count(fault, key)
        self._interrupted(fault, key, lambda: world.bucket.delete(key))
        raise StoreUnavailable(f"{fault.value} at DELETE {key}")

    def _interrupted(self, fault: Fault, key: str, apply: Callable[[], None]) -> None:
        """Apply now, later or never, as the fault says; a crash does not return."""
        chance = self._world.random.random()
        late = fault is Fault.DELAY or (fault is Fault.CRASH and chance < 0.3)
        now = fault is Fault.LOST_ANSWER or (
            fault in (Fault.ERROR, Fault.CRASH) and not late and chance < 0.65
        )
        if fault in (Fault.DELAY, Fault.LOST_ANSWER) and "/log/" in key and chance < 0.3:
            self._world.cut_off(self._process)
        if late:
            self._world.send_late(key, apply)
        elif now:
            apply()
        if fault is Fault.CRASH:
            self._die()

    def _before_reading(self, verb: str, key: str) -> None:
        world = self._world
        self._step(verb, key)
        if self._cut_off:
            raise StoreUnavailable(f"no way to {verb} {key}")
        fault = world.meets(ON_READ, world.weather.read_faults)
        if fault is not None:
            self._count(fault, key)
            if fault is Fault.CRASH:
                self._die()
            raise StoreUnavailable(f"{fault.value} at {verb} {key}")

    @property
    def _cut_off(self) -> bool:
        return self._process.cut_off_until > self._world.tally.steps

    def _rate(self, key: str) -> float:
        """Commits are few beside other writes, and most of what can go wrong goes wrong there."""
        rate = self._world.weather.write_faults
        return 2 * rate if "/log/" in key else rate

    def _step(self, verb: str, key: str) -> None:
        self._world.pause(telling=_tells(verb, key))
        if self._world.trace is not None:
            self._world.note(f"{verb} {key}")

    def _count(self, fault: Fault, key: str) -> None:
        self._world.count(fault)
        self._world.note(f"  {fault.value} at {key}")

    def _die(self) -> NoReturn:
        self._world.kill(self._process)
        raise Died


def _tells(verb: str, key: str) -> bool:
    """Whether publishers, collectors and reapers learn of each other by this operation."""
    if verb in ("get", "head"):
        return False
    return verb == "delete" or "/txn/" in key or "/gc/" in key or "/a/" in key
