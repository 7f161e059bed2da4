"""Where a node has its adapters: on the device, on the host, on disk, or in the store alone.

Device and host let go by the node's own rule (inference_node/adapters/recency.py), the disk by
least recent use down to its low-water mark. Every adapter is one unit of room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Protocol

from inference_node.adapters.recency import Recency

DISK_LOW_WATER = 0.9


class Order(Protocol):
    """In which order to let go; `recency.Recency` is the node's."""

    def __iter__(self) -> Iterator[int]: ...
    def __len__(self) -> int: ...
    def add(self, key: int, size: int) -> None: ...
    def used(self, key: int) -> None: ...
    def used_again(self, key: int) -> None: ...
    def remove(self, key: int) -> None: ...


class LeastRecent:
    """Plain LRU, for comparison: its hit rate has a closed form."""

    def __init__(self, room: int) -> None:
        self._keys: OrderedDict[int, None] = OrderedDict()

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: int, size: int) -> None:
        self._keys[key] = None

    def used(self, key: int) -> None:
        self._keys.move_to_end(key)

    used_again = used

    def remove(self, key: int) -> None:
        del self._keys[key]


def segmented(room: int) -> Order:
    """The node's."""
    return Recency(room)


class Place(Enum):
    """The nearest tier that had an adapter when it was asked for."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    STORE = "store"


class Slot:
    """An adapter on the device."""

    __slots__ = ("leases", "stale_since", "used")

    def __init__(self) -> None:
        self.leases = 0
        self.used = False
        self.stale_since: float | None = None
        """When a newer version was published that this node does not serve yet."""


class Tiers:
    """One node's."""

    def __init__(
        self,
        *,
        device_room: int,
        host_room: int,
        disk_room: int,
        order: Callable[[int], Order] = segmented,
    ) -> None:
        self.device: dict[int, Slot] = {}
        self.known: set[int] = set()
        """Names that were resolved here before."""
        self._device_room, self.host_room, self._disk_room = device_room, host_room, disk_room
        self._device_order = order(device_room)
        self._host_order = order(host_room)
        self._host: set[int] = set()
        self._disk: OrderedDict[int, None] = OrderedDict()

    def lease(self, adapter: int) -> Slot:
        """Hold an adapter that is on the device."""
        slot = self.device[adapter]
        slot.leases += 1
        if slot.used:
            self._device_order.used_again(adapter)
        else:
            slot.used = True
            self._device_order.used(adapter)
        return slot

    def bring(self, adapter: int) -> Place:
        """Where an adapter comes from that is not on the device; it is on host and disk now."""
        if adapter in self._host:
            self._host_order.used_again(adapter)
            return Place.HOST
        self._keep_on_host(adapter)
        if adapter in self._disk:
            self._disk.move_to_end(adapter)
            return Place.DISK
        self._keep_on_disk(adapter)
        return Place.STORE

    def place(self, adapter: int) -> bool:
        """Put an adapter on the device. False when everything there is leased."""
        if len(self.device) >= self._device_room:
            idle = (key for key in self._device_order if not self.device[key].leases)
            victim = next(idle, None)
            if victim is None:
                return False
            del self.device[victim]
            self._device_order.remove(victim)
        self.device[adapter] = Slot()
        self._device_order.add(adapter, 1)
        return True

    def touch(self, adapter: int) -> None:
        """As a request that is answered at once would leave the tiers."""
        if adapter not in self.device:
            self.bring(adapter)
            self.known.add(adapter)
            self.place(adapter)
        self.lease(adapter).leases -= 1

    def forget_copies(self, adapter: int) -> None:
        """A newer version is out: what host and disk hold of it is of no more use."""
        if adapter in self._host:
            self._host.discard(adapter)
            self._host_order.remove(adapter)
        self._disk.pop(adapter, None)

    def check_integrity(self) -> None:
        """Raises AssertionError when a tier holds more than it has room for, or loses count."""
        assert len(self.device) == len(self._device_order) <= self._device_room
        assert set(self._device_order) == self.device.keys()
        assert len(self._host) == len(self._host_order) <= self.host_room
        assert len(self._disk) <= self._disk_room

    def _keep_on_host(self, adapter: int) -> None:
        if not self.host_room:
            return
        if len(self._host) >= self.host_room:
            victim = next(iter(self._host_order))
            self._host.discard(victim)
            self._host_order.remove(victim)
        self._host.add(adapter)
        self._host_order.add(adapter, 1)

    def _keep_on_disk(self, adapter: int) -> None:
        if not self._disk_room:
            return
        self._disk[adapter] = None
        if len(self._disk) > self._disk_room:
            while len(self._disk) > self._disk_room * DISK_LOW_WATER:
                self._disk.popitem(last=False)
