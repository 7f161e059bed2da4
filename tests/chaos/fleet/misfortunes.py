"""One fault after the other befalls a fleet, evenly over the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle, islice

from adapter_store.settings import REDIS_SERVICE, S3_SERVICE
from tests.adapter_store.waiting import wait_until
from tests.chaos.fleet.front import Front
from tests.chaos.fleet.site import START_S, FleetNode, answers
from tests.chaos.fleet.windows import DRAIN, FREE, GATEWAY, KILL, KINDS, REDIS, Window

OUTAGE_S = 10.0
LEAVE_S = 120.0
"""In which a drained node must have left."""
MET_S = 2.0
"""After an outage or a restart: callers may meet what was so long ago."""
IN_FLIGHT = 2
"""Requests that a node has when it is killed, at least."""
_BUSY_S = 60.0


def misfortunes(
    front: Front, nodes: Sequence[FleetNode], *, count: int, seconds: float
) -> list[Window]:
    """So many faults, evenly over the time; when each could be felt.

    It lasts longer where nodes take long to come back: a fault waits until all are ready, since a
    node that starts without its store ends, for a supervisor to start it again. What ends with the
    thread that began it is begun here, on the caller's thread.
    """
    began, every = time.monotonic(), seconds / count
    outage = min(OUTAGE_S, every / 3)
    windows = []
    victims = cycle(nodes)
    for number, kind in enumerate(islice(cycle(KINDS), count)):
        _sleep_until(began + (number + 0.3) * every)
        all_ready(nodes)
        windows.append(_strike(kind, front, next(victims), outage))
    all_ready(nodes)
    _sleep_until(began + seconds)
    return windows


def all_ready(nodes: Sequence[FleetNode]) -> None:
    """Every node has started and takes requests."""
    for node in nodes:
        node.process.wait_ready(within_s=START_S)
        answers(node.address)


def _strike(kind: str, front: Front, node: FleetNode, outage: float) -> Window:
    if kind == KILL:
        return _kill(front, node)
    began = time.monotonic()
    if kind == DRAIN:
        _drain(node)
    elif kind == GATEWAY:
        front.restart()
    else:
        service = REDIS_SERVICE if kind == REDIS else S3_SERVICE
        front.stack.kill(service)
        time.sleep(outage)
        front.stack.restart(service)
    ended = time.monotonic()
    if kind == DRAIN:
        node.process.launch()
    return Window(kind, began, ended if kind in FREE else ended + MET_S, node.address)


def _kill(front: Front, node: FleetNode) -> Window:
    """While it has something to lose; whoever asks once it has ended must not feel it."""
    wait_until(lambda: front.in_flight(node) >= IN_FLIGHT, within_s=_BUSY_S)
    began = time.monotonic()
    node.process.kill()
    ended = time.monotonic()
    node.process.launch()
    return Window(KILL, began, ended, node.address)


def _drain(node: FleetNode) -> None:
    node.process.terminate()
    code = node.process.exit_code(within_s=LEAVE_S)
    assert code == 0, f"a drained node left with {code}"


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
