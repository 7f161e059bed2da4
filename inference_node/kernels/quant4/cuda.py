"""The 4-bit linear on CUDA: bitsandbytes' operator, or the same weights written out in bfloat16."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from inference_node.kernels.quant4.dispatch import (
    ROWS,
    Dispatch,
    LinearShape,
    Timing,
    choose,
    read_timings,
    write_timings,
)
from inference_node.kernels.quant4.reference import dequantise
from inference_node.kernels.stopwatch import seconds_on_card

_FILL = 256 << 20
"""Bytes of weights a timed turn goes through, so that none of them is found in the cache."""


class GemmLinear(nn.Module):
    """A linear by `bitsandbytes::gemm_4bit`, called as it is: no module's forward around it."""

    dense: torch.Tensor | None

    def __init__(self, linear: Linear4bit) -> None:
        """Shares the weights of `linear`, whose scales are not themselves quantised."""
        super().__init__()
        state = linear.weight.quant_state  # type: ignore[attr-defined]
        if state.nested:
            raise ValueError("the scales of the weight are quantised: write them out first")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.block = state.blocksize
        self.weight = nn.Buffer(linear.weight.data)
        self.absmax = nn.Buffer(state.absmax)
        self.bias = linear.bias
        self.register_buffer("dense", None)
        self._written_out: Callable[[int], bool] = partial(
            Dispatch({}).takes_written_out, self.shape
        )
        self._packed = (linear,)
        """In a tuple: its weights are counted once, as this module's buffers."""

    @property
    def shape(self) -> LinearShape:
        return LinearShape(self.out_features, self.in_features)

    def write_out(self, dispatch: Dispatch) -> None:
        """Keep the weights in bfloat16 too if `dispatch` has use for them, and only then."""
        shape = self.shape
        self._written_out = partial(dispatch.takes_written_out, shape)
        if shape not in dispatch.written_out:
            self.dense = None
        elif self.dense is None:
            self.dense = self.exact()

    def exact(self) -> torch.Tensor:
        """The weights written out."""
        return dequantise(self._packed[0], dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., in] -> [..., out]
        if self.dense is not None and self._written_out(x.numel() // self.in_features):
            return nn.functional.linear(x, self.dense, self.bias)
        y: torch.Tensor = torch.ops.bitsandbytes.gemm_4bit(
            x,
            self.weight,
            [self.out_features, self.in_features],
            self.absmax,
            self.block,
            "nf4",
            self.bias,
        )
        return y


def dispatch_for(linears: Sequence[GemmLinear], *, budget: int, folder: Path) -> Dispatch:
    """Measure both forms of every shape, or find what was measured before; then choose.

    Times are kept in `folder` under the device and the versions they were taken with.
    """
    by_shape: dict[LinearShape, list[GemmLinear]] = {}
    for linear in linears:
        by_shape.setdefault(linear.shape, []).append(linear)
    shapes = sorted(by_shape)
    path = folder / f"{_signature(linears[0].weight.device, shapes)}.json"
    timings = read_timings(path, shapes)
    if timings is None:
        timings = [t for shape in shapes for t in measure(shape, by_shape[shape])]
        write_timings(path, timings)
    counts = {shape: len(same) for shape, same in by_shape.items()}
    return choose(timings, counts, budget=budget)


@torch.inference_mode()
def measure(shape: LinearShape, linears: Sequence[GemmLinear]) -> Iterable[Timing]:
    """Seconds a product, packed and written out, at every number of rows."""
    some = linears[: max(1, _FILL // shape.bytes_written_out + 1)]
    dense = [linear.exact() for linear in some]
    for rows in ROWS:
        x = torch.randn(rows, shape.in_features, device=some[0].weight.device).bfloat16()

        def packed(x: torch.Tensor = x) -> None:
            for linear in some:
                linear(x)

        def written_out(x: torch.Tensor = x) -> None:
            for weight in dense:
                nn.functional.linear(x, weight)

        yield Timing(shape, rows, _seconds(packed) / len(some), _seconds(written_out) / len(some))


def _seconds(run: Callable[[], None]) -> float:
    """Median over captured runs, so that what is timed is the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return seconds_on_card(graph.replay)


def _signature(device: torch.device, shapes: Sequence[LinearShape]) -> str:
    said = [
        torch.cuda.get_device_name(device),
        torch.__version__,
        bitsandbytes.__version__,
        str(torch.version.cuda),
        *map(str, shapes),
    ]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]
