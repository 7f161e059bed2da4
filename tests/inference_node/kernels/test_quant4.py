"""4-bit linears: the values are bitsandbytes' own, and its operator stays near them."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from inference_node.kernels.native import Library, NoCompiler, load
from inference_node.kernels.quant4 import (
    NativeLinear,
    dense_linear,
    dequantise,
    describe,
    fits,
    multiplies_bfloat16,
    nf4_linear,
)

CPU = torch.device("cpu")
NF4_TOLERANCE = 0.01
"""||y - exact|| / ||exact|| that the operator may lose by rounding W, x and y to bfloat16."""


def packed(
    out_features: int = 96, in_features: int = 128, *, bias: bool = True, dtype: torch.dtype
) -> tuple[Linear4bit, torch.Tensor]:
    """A quantised linear and the weight it was made from."""
    torch.manual_seed(out_features + in_features)
    linear = Linear4bit(
        in_features,
        out_features,
        bias=bias,
        compute_dtype=dtype,
        compress_statistics=False,
        quant_type="nf4",
    )
    original = linear.weight.data.clone()
    return linear.to(CPU).eval().requires_grad_(False), original


def state_of(linear: Linear4bit) -> Any:
    return getattr(linear.weight, "quant_state")  # noqa: B009 - not in the stubs


def by_hand(linear: Linear4bit) -> torch.Tensor:
    """The codebook entry of every nibble, high one first, times the scale of its 64 values."""
    state = state_of(linear)
    codes = linear.weight.data.view(-1)
    nibbles = torch.stack([codes >> 4, codes & 15], dim=1).view(-1).long()
    values = get_4bit_type("nf4", device="cpu")[nibbles].view(-1, state.blocksize)
    weight: torch.Tensor = (values * state.absmax.view(-1, 1)).view(state.shape)
    return weight


@pytest.mark.parametrize(("out_features", "in_features"), [(96, 128), (24, 64), (40, 192)])
def test_dequantised_values_are_bitsandbytes_own_exactly(
    out_features: int, in_features: int
) -> None:
    linear, original = packed(out_features, in_features, dtype=torch.float32)
    values = dequantise(linear, dtype=torch.float32)
    assert values.shape == (out_features, in_features)
    assert torch.equal(values, dequantize_4bit(linear.weight.data, state_of(linear)))
    assert torch.equal(values, by_hand(linear))
    assert 0 < (values - original).norm() < 0.12 * original.norm()


def test_dequantised_values_do_not_depend_on_the_dtype_asked_for() -> None:
    linear, _ = packed(dtype=torch.float32)
    exact = dequantise(linear, dtype=torch.float32)
    assert torch.equal(dequantise(linear, dtype=torch.bfloat16), exact.bfloat16())


@pytest.mark.parametrize("bias", [True, False])
def test_the_dense_linear_multiplies_the_dequantised_values_exactly(bias: bool) -> None:
    linear, _ = packed(bias=bias, dtype=torch.float32)
    dense = dense_linear(linear, dtype=torch.float32)
    x = torch.randn(5, linear.in_features)
    weight = dequantise(linear, dtype=torch.float32)
    assert isinstance(dense, nn.Linear)
    assert torch.equal(dense(x), nn.functional.linear(x, weight, linear.bias))
    assert not any(p.requires_grad or p.is_meta for p in dense.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_the_nf4_operator_stays_within_its_tolerance_of_the_exact_product(
    rows: int, dtype: torch.dtype
) -> None:
    linear, _ = packed(dtype=dtype)
    exact = dense_linear(linear, dtype=torch.float32)
    x = torch.randn(rows, linear.in_features)
    expected = exact(x)
    found = nf4_linear(linear)(x.to(dtype))
    assert found.dtype is dtype
    assert (found.float() - expected).norm() <= NF4_TOLERANCE * expected.norm()


def test_control_one_scale_off_by_a_tenth_is_past_the_tolerance() -> None:
    linear, _ = packed(bias=False, dtype=torch.float32)
    exact = dense_linear(linear, dtype=torch.float32)
    state_of(linear).absmax *= 1.1
    x = torch.randn(3, linear.in_features)
    expected = exact(x)
    assert (nf4_linear(linear)(x) - expected).norm() > NF4_TOLERANCE * expected.norm()


def test_a_weight_marked_as_repacked_is_refused() -> None:
    linear, _ = packed(dtype=torch.float32)
    state_of(linear).packing_format_for_cpu = True
    with pytest.raises(ValueError, match="own packing"):
        dequantise(linear, dtype=torch.float32)
    with pytest.raises(ValueError, match="own packing"):
        dense_linear(linear, dtype=torch.float32)


@pytest.mark.skipif(not multiplies_bfloat16(CPU), reason="this CPU's operator repacks nothing")
def test_a_weight_that_the_operator_has_repacked_is_refused() -> None:
    linear, _ = packed(dtype=torch.bfloat16)
    nf4_linear(linear)(torch.randn(2, linear.in_features, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="own packing"):
        dequantise(linear, dtype=torch.float32)


def test_a_linear_that_was_never_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match="own packing"):
        dequantise(Linear4bit(64, 64), dtype=torch.float32)


def test_the_description_names_the_library_and_its_version() -> None:
    assert f"bitsandbytes {bitsandbytes.__version__}" in describe(CPU)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    try:
        found = load(tmp_path_factory.mktemp("kernels"))
    except NoCompiler as error:
        pytest.skip(str(error))
    if not found.multiplies_nf4:
        pytest.skip("the C product needs AVX512-BF16")
    return found


CODEBOOK_TOLERANCE = 0.004
"""Of the C product: the codebook, x and y rounded to bfloat16, and no weight a second time."""


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out_features", "in_features"), [(16, 64), (96, 128), (224, 576)])
def test_the_c_product_is_nearer_to_the_exact_one_than_the_operator_is(
    library: Library, out_features: int, in_features: int, bias: bool
) -> None:
    linear, _ = packed(out_features, in_features, bias=bias, dtype=torch.bfloat16)
    exact = dense_linear(linear, dtype=torch.float32)
    assert fits(linear, library)
    native = NativeLinear(linear, library)
    x = torch.randn(70, in_features).bfloat16()
    expected = exact(x.float())
    error = (native(x).float() - expected).norm()
    assert error <= CODEBOOK_TOLERANCE * expected.norm()
    if out_features % 32 == 0:  # The operator packs nothing else.
        assert error < (nf4_linear(linear)(x).float() - expected).norm()


def test_control_one_scale_off_by_a_tenth_is_past_the_tolerance_of_the_c_product(
    library: Library,
) -> None:
    linear, _ = packed(bias=False, dtype=torch.bfloat16)
    exact = dense_linear(linear, dtype=torch.float32)
    state_of(linear).absmax[::16] *= 1.1
    x = torch.randn(3, linear.in_features).bfloat16()
    expected = exact(x.float())
    error = (NativeLinear(linear, library)(x).float() - expected).norm()
    assert error > CODEBOOK_TOLERANCE * expected.norm()


def test_a_row_of_the_c_product_does_not_depend_on_how_many_rows_are_beside_it(
    library: Library,
) -> None:
    linear, _ = packed(48, 192, dtype=torch.bfloat16)
    native = NativeLinear(linear, library)
    x = torch.randn(60, 192).bfloat16()
    every = native(x)
    for rows in (*range(1, 34), 59):
        assert torch.equal(native(x[:rows]), every[:rows])
    assert torch.equal(native(x.flip(0)), every.flip(0))


@pytest.mark.parametrize(("out_features", "in_features"), [(24, 64), (16, 96)])
def test_a_weight_that_is_not_made_of_whole_panels_is_left_to_the_operator(
    library: Library, out_features: int, in_features: int
) -> None:
    linear, _ = packed(out_features, in_features, dtype=torch.bfloat16)
    assert not fits(linear, library)


def test_a_weight_that_was_repacked_is_refused_by_the_c_product(library: Library) -> None:
    linear, _ = packed(dtype=torch.bfloat16)
    state_of(linear).packing_format_for_cpu = True
    with pytest.raises(ValueError, match="own packing"):
        NativeLinear(linear, library)
