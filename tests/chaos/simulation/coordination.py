"""Redis in the simulation: leases that expire, a memory that can be lost, hints that may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from adapter_store.coordination import Hint, Lease
from adapter_store.errors import LockLost
from tests.chaos.simulation.baton import Process
from tests.chaos.simulation.faults import Fault
from tests.chaos.simulation.world import World

LEASE_S = 30.0


class Redis:
    """What every process shares, until it is flushed, down, or failed over."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.leases: dict[str, SimulatedLease] = {}
        self.counters: dict[str, int] = {}
        self.down = False
        self.inboxes: list[SimulatedHints] = []
        world.trouble.update(
            {
                Fault.FLUSH: self._flush,
                Fault.REDIS_DOWN: self._go_down_or_up,
                Fault.TWO_HOLDERS: self._fail_over,
                Fault.LEASE_EXPIRY: self._expire,
            }
        )

    def _flush(self) -> bool:
        self.leases.clear()
        self.counters.clear()
        return True

    def _go_down_or_up(self) -> bool:
        self.down = not self.down
        return True

    def _fail_over(self) -> bool:
        """A replica that never heard of the newest grants takes over: two holders, one fence."""
        if not self.leases:
            return False
        name = self._world.random.choice(sorted(self.leases))
        self.counters[name] = self.leases.pop(name).fence - 1
        return True

    def _expire(self) -> bool:
        """The holder stood still past its lease; whether its clock tells it so is chance."""
        if not self.leases:
            return False
        name = self._world.random.choice(sorted(self.leases))
        lease = self.leases.pop(name)
        lease.lost = self._world.random.random() < 0.5
        return True


class SimulatedLock:
    """A PublishLock as one process sees it."""

    def __init__(self, world: World, redis: Redis, process: Process) -> None:
        self._world = world
        self._redis = redis
        self._process = process
        self._clock = world.clock(process)
        self.reason = ""

    def acquire(self, tenant: str, adapter: str, *, floor: int) -> Lease | None:
        name = f"{tenant}/{adapter}"
        deadline = self._clock() + self._world.weather.lock_wait_s
        while True:
            self._world.pause()
            if self._redis.down:
                self.reason = "Redis is down"
                return None
            held = self._redis.leases.get(name)
            if held is None or held.expired():
                return self._grant(name, floor)
            if self._clock() >= deadline:
                self.reason = "another publisher held the lock"
                return None
            self._world.sleep(self._world.random.uniform(1.0, 10.0))

    def _grant(self, name: str, floor: int) -> Lease:
        fence = max(self._redis.counters.get(name, 0), floor) + 1
        self._redis.counters[name] = fence
        lease = SimulatedLease(self._world, self._redis, self._process, name, fence)
        self._redis.leases[name] = lease
        self.reason = ""
        return lease


class SimulatedLease:
    """Renewed for as long as its process lives; Redis keeps a dead one's for LEASE_S."""

    def __init__(self, world: World, redis: Redis, process: Process, name: str, fence: int) -> None:
        self._world = world
        self._redis = redis
        self._process = process
        self._name = name
        self._granted_at = world.now
        self.fence = fence
        self.lost = False
        self._released = False

    def expired(self) -> bool:
        return self._process.dead and self._world.now - self._granted_at > LEASE_S

    def ensure_held(self) -> None:
        mine = self._redis.leases.get(self._name) is self
        # The renewing thread hears of a loss some time after it, or never while Redis is down.
        if not mine and not self._redis.down and self._world.random.random() < 0.3:
            self.lost = True
        if self.lost:
            raise LockLost("Redis no longer has it")

    def release(self) -> None:
        if self._released:
            return
        self._released = True
        self._world.pause()
        if not self._redis.down and self._redis.leases.get(self._name) is self:
            del self._redis.leases[self._name]


@dataclass(eq=False, slots=True)
class SimulatedHints:
    """One node's end of the stream."""

    redis: Redis
    waiting: list[Hint] = field(default_factory=list)
    gaps: int = 0

    @property
    def healthy(self) -> bool:
        return not self.redis.down

    def poll(self, timeout_s: float, /) -> Sequence[Hint]:
        news, self.waiting = self.waiting, []
        return news


class SimulatedAnnouncer:
    """Tells every node, unless Redis is away."""

    def __init__(self, world: World, redis: Redis) -> None:
        self._world = world
        self._redis = redis

    def announce(self, tenant: str, adapter: str, gen: int) -> None:
        self._world.pause()
        for inbox in self._redis.inboxes:
            if self._redis.down:
                inbox.gaps += 1
            elif self._world.random.random() < 0.9:
                inbox.waiting.append(Hint(tenant, adapter, gen))
