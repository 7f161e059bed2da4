"""A verified adapter in the pool's own layout, on the host."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from adapter_store.validate import AdapterTensors
from inference_node.kernels.lora import PAGE_RANKS, ModuleMap

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True, slots=True)
class HostGroup:
    """One group's pages of one adapter; the ranks a last page lacks are zeros."""

    a: torch.Tensor  # [pages, layers, slices, 8, in]
    b: torch.Tensor  # [pages, layers, 8, sum(out)]


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """Immutable once built: copying it twice gives bit-equal pages."""

    groups: tuple[HostGroup | None, ...]
    """None where the adapter targets nothing in the group: it takes no pages there."""
    scale: float

    @property
    def pages(self) -> tuple[int, ...]:
        """Pages wanted in each group."""
        return tuple(0 if group is None else group.a.shape[0] for group in self.groups)

    @property
    def bytes(self) -> int:
        return sum(
            tensor.numel() * tensor.element_size()
            for group in self.groups
            if group is not None
            for tensor in (group.a, group.b)
        )


def host_adapter(
    content: AdapterTensors, modules: ModuleMap, *, dtype: torch.dtype, pin: bool = False
) -> HostAdapter:
    """Lay checked tensors out in pages. The content fits the map: `check_content` said so.

    A group has the pages of its largest rank. Where modules differ in scale, it is folded into B.
    """
    spec = content.spec
    scales = {spec.scale_of(module) for module in content.modules}
    fold = len(scales) > 1
    sites = {path: (layer, group, part) for path, layer, group, part in modules.sites()}
    groups: list[HostGroup | None] = [None] * len(modules.groups)
    wanted = [0] * len(modules.groups)
    for module in content.modules:
        _, index, _ = sites[module]
        wanted[index] = max(wanted[index], -(-spec.rank_of(module) // PAGE_RANKS))
    source = _DTYPES[content.dtype]
    for module in content.modules:
        layer, index, part = sites[module]
        rank, pages = spec.rank_of(module), wanted[index]
        shape = modules.groups[index].shape
        group = groups[index]
        if group is None:
            group = groups[index] = HostGroup(
                _zeros((pages, modules.layers, *shape.a_page), dtype=dtype, pin=pin),
                _zeros((pages, modules.layers, *shape.b_page), dtype=dtype, pin=pin),
            )
        first = sum(shape.out_features[:part])
        columns = slice(first, first + shape.out_features[part])
        a = torch.tensor(content.a(module)).view(source).to(dtype)  # [rank, in]
        b = torch.tensor(content.b(module)).view(source)  # [out, rank]
        b = (b.float() * spec.scale_of(module) if fold else b).to(dtype)
        for page in range(-(-rank // PAGE_RANKS)):
            ranks = slice(page * PAGE_RANKS, min(rank, (page + 1) * PAGE_RANKS))
            count = ranks.stop - ranks.start
            group.a[page, layer, part, :count] = a[ranks]
            group.b[page, layer, :count, columns] = b[:, ranks].T
    return HostAdapter(tuple(groups), 1.0 if fold else scales.pop())


def _zeros(shape: tuple[int, ...], *, dtype: torch.dtype, pin: bool) -> torch.Tensor:
    """Zeros on the host, without torch's worker threads: they belong to the engine thread."""
    if pin:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)
    raw = np.zeros(prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)
