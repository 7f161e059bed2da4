"""The small operators between the products of a Llama-shaped layer, each in one launch.

Row by row, in the model's dtype, rounded where transformers rounds, for x [rows, hidden]::

    add_norm:    x += delta;  y = weight * (x.float() / sqrt(mean(x.float()**2) + eps)).to(x.dtype)
    rotate:      q, k = qkv's heads;  q' = q * cos + turn(q) * sin, k' alike, turn((a, b)) = (-b, a)
                 k_cache[slot], v_cache[slot] = k', v;  returns q'
    silu_times:  silu(gate) * up,  gate and up lying side by side

RMSNorm after Zhang and Sennrich (arXiv 1910.07467), rotary embeddings after Su et al. (arXiv
2104.09864) in the halves that transformers uses, SwiGLU after Shazeer (arXiv 2002.05202).
"""

from inference_node.kernels.pointwise.contract import Pointwise
from inference_node.kernels.pointwise.reference import REFERENCE

__all__ = ["REFERENCE", "Pointwise"]
