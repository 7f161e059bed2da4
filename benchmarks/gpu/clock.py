"""Seconds on the device, in alternation, and what its memory can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Clock:
    """Times work on one device: by events on CUDA, by the wall elsewhere."""

    device: torch.device
    repeats: int = 20

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def once(self, run: Run) -> float:
        """Seconds of one run on the device."""
        if not self.cuda:
            return self.wall(run)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def wall(self, run: Run) -> float:
        """Seconds of one run with all that the host does for it."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def alternating(self, runs: Mapping[str, Run], *, wall: bool = False) -> dict[str, float]:
        """Median seconds of each, taken in turn after a turn that is not counted.

        A single repeat goes without that: it is for seeing that the work runs.
        """
        taken: dict[str, list[float]] = {name: [] for name in runs}
        measure = self.wall if wall else self.once
        first = 0 if self.repeats == 1 else 1
        for turn in range(first + self.repeats):
            for name, run in runs.items():
                seconds = measure(run)
                if turn >= first:
                    taken[name].append(seconds)
        return {name: statistics.median(some) for name, some in taken.items()}

    def captured(self, run: Run) -> Run:
        """The same work as one launch, so that gaps between launches are not measured."""
        if not self.cuda:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
            run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
        return graph.replay

    def copy_bandwidth(self) -> float:
        """Bytes a second that a large copy on the device reads and writes together."""
        size = 2 << 30 if self.cuda else 1 << 20
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        taken = self.alternating({"copy": lambda: target.copy_(source)})
        return 2 * size / taken["copy"]

    def host_bandwidth(self) -> float:
        """Bytes a second from pinned host memory to the device."""
        size = 1 << 30 if self.cuda else 1 << 20
        source = torch.zeros(size, dtype=torch.uint8, pin_memory=self.cuda)
        target = torch.empty(size, dtype=torch.uint8, device=self.device)
        taken = self.alternating({"copy": lambda: target.copy_(source, non_blocking=True)})
        return size / taken["copy"]
