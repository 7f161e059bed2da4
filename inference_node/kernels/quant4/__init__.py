"""Linear layers over NF4 weights.

**Semantics.** With codes c and per-64-element scales s as bitsandbytes packs them::

    W = codebook_nf4[c] * s                  # [out, in]
    y = x @ W.T + bias

`stacked` puts linears that read the same input under each other, so that one product serves all.
`dense_linear` dequantises once and multiplies exactly: the oracle. `nf4_linear` hands the packed
weights to bitsandbytes' own kernel, which may round W to bfloat16 (QLoRA, arXiv 2305.14314).
`GemmLinear` is the same on CUDA, where some weights may be kept in bfloat16 too (`dispatch`).
`NativeLinear` is the C kernel for CPUs with AVX512-BF16, which rounds the codebook and nothing else
(docs/decisions/0012-own-4-bit-product-on-cpus.md).
"""

from inference_node.kernels.quant4.cuda import GemmLinear, dispatch_for
from inference_node.kernels.quant4.dispatch import Dispatch, LinearShape
from inference_node.kernels.quant4.fused import (
    PackedLinear,
    describe,
    multiplies_bfloat16,
    nf4_linear,
)
from inference_node.kernels.quant4.native import NativeLinear, fits
from inference_node.kernels.quant4.reference import dense_linear, dequantise
from inference_node.kernels.quant4.stacked import stacked

__all__ = [
    "Dispatch",
    "GemmLinear",
    "LinearShape",
    "NativeLinear",
    "PackedLinear",
    "dense_linear",
    "dequantise",
    "describe",
    "dispatch_for",
    "fits",
    "multiplies_bfloat16",
    "nf4_linear",
    "stacked",
]
