"""How many adapters an 80 GB card holds beside an 8B base: counted on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from benchmarks.gpu.sizes import EIGHT_B
from inference_node.adapters.pages import pages_for
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import VersionKey
from inference_node.kernels.lora import ModuleMap
from inference_node.model.trace import trace

CARD = 80 * 10**9
LEFT_ALONE = 4 * 10**9
"""The CUDA context, captured steps, logits, and what a prompt needs while it is read."""
MANY = 2000
ROWS, CONTEXT = 64, 2048
FOR_ATTENTION = {"gate_proj": 0.01, "down_proj": 0.01}
META = torch.device("meta")
LLAMA = EIGHT_B.config


@pytest.fixture(scope="module")
def modules() -> ModuleMap:
    return trace(LLAMA).modules


def base_bytes(modules: ModuleMap) -> int:
    """Codes of half a byte, a float32 scale for each 64 of them, embeddings in and out."""
    linears = sum(out * width for out, width in modules.modules().values())
    embeddings = 2 * LLAMA.vocab_size * LLAMA.hidden_size * 2
    return linears // 2 + linears // 64 * 4 + embeddings


def kv_bytes() -> int:
    width = LLAMA.hidden_size // LLAMA.num_attention_heads * LLAMA.num_key_value_heads
    return ROWS * CONTEXT * LLAMA.num_hidden_layers * 2 * width * 2


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def pool_of(modules: ModuleMap, budget: int, shares: dict[str, float]) -> AdapterPool:
    return AdapterPool(
        modules,
        pool_bytes=budget,
        dtype=torch.bfloat16,
        device=META,
        shares=modules.by_linear(shares, default=1.0),
    )


def resident(modules: ModuleMap, pool: AdapterPool, most: int) -> int:
    """How many rank-8 adapters of attention alone are resident at once, up to `most`."""
    slots = SlotTable(pool.allocator)
    wanted = [0 if ".mlp." in group.tails[0] else 1 for group in modules.groups]
    for count in range(most):
        if not pool.allocator.can_allocate(wanted):
            return count
        slots.activate(slots.stage(VersionKey("t", str(count)), wanted=wanted, scale=1.0))
    slots.check_integrity()
    return slots.resident_count


def test_two_thousand_adapters_of_attention_are_resident_on_one_80_gb_card_beside_an_8b_base(
    modules: ModuleMap,
) -> None:
    room = CARD - LEFT_ALONE - base_bytes(modules) - kv_bytes()
    shared = pool_of(modules, room, FOR_ATTENTION)
    taken = bytes_of(tensor for group in shared.groups for tensor in (group.a, group.b))
    assert taken <= room + shared.page_bytes, "no more than the null pages over it"
    assert resident(modules, shared, MANY) == MANY
    widest = 64 // 8
    assert min(shared.allocator.total) >= widest, "one adapter of the largest rank fits too"


def test_control_with_as_many_pages_of_every_group_they_are_not(modules: ModuleMap) -> None:
    room = CARD - LEFT_ALONE - base_bytes(modules) - kv_bytes()
    assert resident(modules, pool_of(modules, room, {}), MANY) < MANY


def test_pages_follow_shares_within_the_budget_and_none_is_left_without() -> None:
    sizes = [9, 4, 19, 10]
    for budget in (1, 41, 42, 43, 10**6):
        for shares in (None, [1.0, 1.0, 0.01, 0.5], [3.0, 2.0, 1.0, 7.0]):
            pages = pages_for(budget, sizes, shares)
            assert min(pages) >= 1
            over_one = sum((count - 1) * size for count, size in zip(pages, sizes, strict=True))
            assert over_one <= budget
    assert pages_for(84, sizes) == (2, 2, 2, 2)
    assert pages_for(83, sizes) == (1, 1, 1, 1)
    first, second, third, fourth = pages_for(10**6, sizes, [1.0, 1.0, 0.01, 0.5])
    assert first == second
    assert (first // 100, first // 2) == (third, fourth)


def test_a_group_has_the_share_of_the_linear_that_is_named(modules: ModuleMap) -> None:
    assert modules.by_linear({"up_proj": 0.5, "o_proj": 2.0}, default=1.0) == (1.0, 2.0, 0.5, 1.0)
    assert modules.by_linear({"gate_proj": 0.25, "up_proj": 0.5}, default=1.0)[2] == 0.5
    with pytest.raises(KeyError, match="dwon_proj"):
        modules.by_linear({"dwon_proj": 0.5}, default=1.0)
