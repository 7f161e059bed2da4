"""Multi-adapter LoRA over a paged pool: each row of a batch adds its own adapter's product.

**Semantics.** For row t whose adapter slot is s = row_slot[t], with the pages of s in order::

    A_s = cat([A[p] for p in pages(s)], dim=rank)       # [slices, rank, in]
    B_s = cat([B[p] for p in pages(s)], dim=rank)       # [rank, sum(out)]
    y[t, out_j] = scale[s] * (x[t] @ A_s[j].T) @ B_s[:, out_j]    for each slice j

Slot 0 has no pages: its rows get exact zeros. Ranks are true ranks rounded up to whole pages; the
missing ranks of a last page are zeros and add nothing. After Punica's SGMV (arXiv 2310.18547) and
S-LoRA's paged pool (arXiv 2311.03285).
"""

from inference_node.kernels.lora.contract import (
    BLOCK_WORK,
    PAGE_RANKS,
    TILE_ROWS,
    GroupPlan,
    GroupPool,
    GroupShape,
    LoraPlan,
    RowPages,
    SlotPages,
)
from inference_node.kernels.lora.modules import ModuleGroup, ModuleMap
from inference_node.kernels.lora.reference import (
    expand_add_rows,
    gather_a,
    gather_b,
    lora_delta,
    lora_expand_add,
    lora_shrink,
    shrink_rows,
)

__all__ = [
    "BLOCK_WORK",
    "TILE_ROWS",
    "PAGE_RANKS",
    "GroupPlan",
    "GroupPool",
    "GroupShape",
    "LoraPlan",
    "ModuleGroup",
    "ModuleMap",
    "RowPages",
    "SlotPages",
    "expand_add_rows",
    "gather_a",
    "gather_b",
    "lora_delta",
    "lora_expand_add",
    "lora_shrink",
    "shrink_rows",
]
