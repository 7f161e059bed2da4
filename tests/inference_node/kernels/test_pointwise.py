"""The small operators of a layer compute what transformers does: interpreted, or on a card."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from inference_node.kernels.pointwise import REFERENCE, Pointwise
from tests.inference_node.kernels.device import DEVICE, assert_close_rows, poison_empty

fused = pytest.importorskip("inference_node.kernels.pointwise.fused", exc_type=ImportError)

ALL = pytest.mark.parametrize(
    "kernels", [REFERENCE, fused.FusedPointwise()], ids=["torch", "fused"]
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
EPS = 1e-5


@pytest.fixture(autouse=True)
def scratch_full_of_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape).to(dtype).to(DEVICE)


@ALL
@DTYPES
@pytest.mark.parametrize("width", [8, 96, 100])
def test_the_norm_is_that_of_transformers_and_keeps_the_sum(
    kernels: Pointwise, dtype: torch.dtype, width: int
) -> None:
    torch.manual_seed(width)
    norm = LlamaRMSNorm(width, EPS).to(DEVICE, dtype)
    norm.weight.data = random(width, dtype=dtype)
    x, delta = random(3, width, dtype=dtype), random(3, 2 * width, dtype=dtype)[:, :width]
    summed = x + delta
    found = kernels.add_norm(x, delta, norm.weight.data, EPS)
    assert_close_rows(x, summed)
    assert_close_rows(found, norm(summed), roundings=2)
    assert_close_rows(kernels.add_norm(x, None, norm.weight.data, EPS), norm(summed), roundings=2)
    assert_close_rows(x, summed)


@ALL
@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 1, 24), (8, 4, 6)])
def test_heads_are_turned_as_transformers_turns_them_and_kept_in_their_places_alone(
    kernels: Pointwise, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> None:
    torch.manual_seed(dim)
    rows, slots = 5, torch.tensor([17, 2, 9, 30, 4], device=DEVICE)
    qkv = random(rows, (heads + 2 * kv_heads) * dim, dtype=dtype)
    cos, sin = random(rows, dim, dtype=dtype), random(rows, dim, dtype=dtype)
    caches = [random(8, 4, kv_heads, dim, dtype=dtype) for _ in "kv"]
    before = [cache.clone() for cache in caches]
    q, k, v = qkv.view(rows, -1, dim).split([heads, kv_heads, kv_heads], dim=1)
    turned = apply_rotary_pos_emb(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos[None], sin[None]
    )
    found = kernels.rotate(qkv, cos, sin, caches[0], caches[1], slots)
    assert_close_rows(found, turned[0][0].transpose(0, 1), roundings=2)
    for cache, kept, new in zip(caches, before, (turned[1][0].transpose(0, 1), v), strict=True):
        lines = cache.view(-1, kv_heads, dim)
        assert_close_rows(lines[slots], new, roundings=2)
        others = torch.ones(len(lines), dtype=torch.bool, device=DEVICE)
        others[slots] = False
        assert torch.equal(lines[others], kept.view(-1, kv_heads, dim)[others])


@ALL
@DTYPES
@pytest.mark.parametrize("inner", [8, 100, 1500])
def test_the_gate_is_that_of_transformers(
    kernels: Pointwise, dtype: torch.dtype, inner: int
) -> None:
    torch.manual_seed(inner)
    gate_up = 4 * random(3, 2 * inner, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    assert_close_rows(kernels.silu_times(gate_up), ACT2FN["silu"](gate) * up, roundings=2)


@ALL
def test_what_does_not_fit_is_refused(kernels: Pointwise) -> None:
    cache = torch.zeros(2, 4, 2, 16)
    angles, slots = torch.zeros(3, 16), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="key heads"):
        kernels.rotate(torch.zeros(3, 4 * 16), angles, angles, cache, cache, slots)
    half = torch.zeros(3, 8)
    with pytest.raises(ValueError, match="angles"):
        kernels.rotate(torch.zeros(3, 8 * 16), half, half, cache, cache, slots)
    with pytest.raises(ValueError, match="dtypes"):
        kernels.rotate(torch.zeros(3, 8 * 16).bfloat16(), angles, angles, cache, cache, slots)
