"""Laying an adapter out in pages keeps every value where its module, rank and slice say."""

from __future__ import annotations

import pytest
import torch

from adapter_store.validate import AdapterTensors
from inference_node.adapters.weights import HostAdapter, host_adapter
from inference_node.kernels.lora import PAGE_RANKS
from tests.inference_node.adapters.contents import MAP, content

RANKS = (1, 5, 7, 8, 9, 12, 16, 63, 64)


def unpaged(host: HostAdapter, group: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A [slices, ranks, in] and B [ranks, sum(out)] with the pages laid end to end."""
    pages = host.groups[group]
    assert pages is not None
    return torch.cat(list(pages.a[:, layer]), dim=1), torch.cat(list(pages.b[:, layer]), dim=0)


def factors(found: AdapterTensors, path: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    bits = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[found.dtype]
    a, b = (torch.tensor(array).view(bits).to(dtype) for array in (found.a(path), found.b(path)))
    return a, b


@pytest.mark.parametrize("rank", RANKS)
def test_every_value_lies_at_its_rank_and_slice_and_the_rest_is_zero(rank: int) -> None:
    found = content(rank)
    host = host_adapter(found, MAP, dtype=torch.float32)
    for path, layer, group, part in MAP.sites():
        a, b = factors(found, path, torch.float32)
        paged_a, paged_b = unpaged(host, group, layer)
        first = sum(MAP.groups[group].shape.out_features[:part])
        columns = paged_b[:, first : first + b.shape[0]]
        assert torch.equal(paged_a[part, :rank], a)
        assert torch.equal(columns[:rank], b.T)
        assert not paged_a[part, rank:].any()
        assert not columns[rank:].any()


@pytest.mark.parametrize("rank", RANKS)
def test_an_adapter_takes_the_pages_of_its_true_rank_in_every_group(rank: int) -> None:
    host = host_adapter(content(rank), MAP, dtype=torch.bfloat16)
    assert host.pages == (-(-rank // PAGE_RANKS),) * 2
    elements = sum(group.shape.page_elements(MAP.layers) for group in MAP.groups)
    assert host.bytes == host.pages[0] * elements * 2


def test_a_group_without_targets_takes_no_pages() -> None:
    host = host_adapter(content(12, targets=("down",)), MAP, dtype=torch.float32)
    assert host.groups[0] is None
    assert host.pages == (0, 2)


def test_a_slice_without_a_target_adds_zeros_beside_its_siblings() -> None:
    found = content(8, targets=("q", "v"))
    host = host_adapter(found, MAP, dtype=torch.float32)
    a, b = unpaged(host, 0, 1)
    assert a[0].any()
    assert not a[1].any()
    assert a[2].any()
    assert not b[:, 10:16].any()
    assert b[:, 16:].any()


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_file_dtype_keeps_its_values_up_to_the_pools_rounding(
    source: torch.dtype, dtype: torch.dtype
) -> None:
    found = content(5, dtype=source)
    host = host_adapter(found, MAP, dtype=dtype)
    for path, layer, group, part in MAP.sites():
        a, b = factors(found, path, dtype)
        paged_a, paged_b = unpaged(host, group, layer)
        first = sum(MAP.groups[group].shape.out_features[:part])
        assert paged_a.dtype is dtype
        assert torch.equal(paged_a[part, :5], a)
        assert torch.equal(paged_b[:5, first : first + b.shape[0]], b.T)


def test_the_scale_is_alpha_over_the_true_rank() -> None:
    assert host_adapter(content(5, alpha=10), MAP, dtype=torch.float32).scale == 2.0
    assert host_adapter(content(12, alpha=16), MAP, dtype=torch.float32).scale == 16 / 12


def test_laying_out_twice_gives_bit_equal_pages() -> None:
    one, other = (host_adapter(content(12), MAP, dtype=torch.bfloat16) for _ in range(2))
    for left, right in zip(one.groups, other.groups, strict=True):
        assert left is not None
        assert right is not None
        assert torch.equal(left.a, right.a)
        assert torch.equal(left.b, right.b)
