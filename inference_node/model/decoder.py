"""Drives transformers' own modelling code over paged keys and values and a pool of adapters.

The forward pass is the library's; three things are ours and are reached through its public seams:
the attention function (AttentionInterface), the linears (replaced by LoraLinear), and the rows,
which are the new tokens of many sequences laid end to end in one row of a [1, rows] batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from inference_node.kernels.backend import REFERENCE, Backend
from inference_node.kernels.lora import GroupPool
from inference_node.kernels.native import Library
from inference_node.kernels.paged_attention import AttentionPlan
from inference_node.kernels.quant4 import (
    GemmLinear,
    NativeLinear,
    dense_linear,
    describe,
    dispatch_for,
    fits,
    nf4_linear,
    stacked,
)
from inference_node.model.batch import Decoded, ForwardBatch
from inference_node.model.checkpoint import ATTENTION, Base
from inference_node.model.fused import FusedLayers, FusedModel, fuse, fuse_whole
from inference_node.model.layers import LoraGroup, LoraLinear, StepLora
from inference_node.model.short import short_layers
from inference_node.model.trace import AttentionRule
from inference_node.model.vocabulary import replace_ends


class _PagedCache:
    """Keys and values of every layer, and the attention routing of the running step."""

    def __init__(self, backend: Backend, rules: tuple[AttentionRule, ...]) -> None:
        self.backend = backend
        self.rules = rules
        self.plain = all(rule.window is None and rule.softcap is None for rule in rules)
        """Whether every layer attends whole contexts, uncapped."""
        self.k: list[torch.Tensor] = []  # [layers] of [blocks, block_tokens, kv_heads, head_dim]
        self.v: list[torch.Tensor] = []
        self.plan: AttentionPlan | None = None
        self._windows: dict[int, AttentionPlan] = {}

    def begin(self, plan: AttentionPlan | None) -> None:
        """The step that starts, or None when it has ended."""
        self.plan = plan
        self._windows.clear()

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """q [rows, heads, head_dim] over the step's keys and values, already written."""
        rule = self.rules[layer]
        return self.backend.attend(
            q,
            self.k[layer],
            self.v[layer],
            self._seen_through(rule.window),
            scale=rule.scale,
            softcap=rule.softcap,
        )

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store the step's new keys and values, [rows, kv_heads, head_dim]."""
        assert self.plan is not None
        self.backend.write_kv(self.k[layer], self.v[layer], k, v, self.plan)

    def _seen_through(self, window: int | None) -> AttentionPlan:
        """The step's plan for the layers of one window; made once a step."""
        assert self.plan is not None
        if window is None:
            return self.plan
        if window not in self._windows:
            self._windows[window] = self.plan.within(window)
        return self._windows[window]


class Decoder:
    """A loaded base with its linears and attention replaced. Used by one thread."""

    def __init__(self, base: Base, *, linears: str = "nf4", backend: Backend = REFERENCE) -> None:
        self.base = base
        self.backend = backend
        self.module_map = base.traced.modules
        self._linears: list[nn.Module] = []
        """What computes each group of each layer, without adapters."""
        self._step = StepLora(backend)
        self._cache = _PagedCache(backend, base.traced.attention)
        self.base_bytes_bf16 = _bf16_bytes(base.model)
        self._replace_linears("nf4" if linears == "auto" else linears)
        if backend.library is not None:
            replace_ends(base.model, backend.library)
        self._fused: FusedLayers | None = None
        self._whole: FusedModel | None = None
        self._short = (
            short_layers(base.model, self.module_map, backend.pointwise, self._cache)
            if backend.pointwise is not None
            else None
        )
        self.is_short = False
        """Whether layers run in few launches."""
        for rule in base.traced.attention:
            base.model.get_submodule(rule.path).lorapool_cache = self._cache

    @property
    def by_row(self) -> int:
        """Up to which context the rows of a chunk are attended one by one, and come first."""
        return self.backend.by_row if self._cache.plain else 1

    @property
    def kernel(self) -> str:
        dtype = str(self.base.dtype).removeprefix("torch.")
        layers = " and layers" if self._fused is not None or self.is_short else ""
        return f"{self._kernel}, {dtype} compute, {self.backend.name}{layers}"

    @property
    def base_bytes(self) -> int:
        """Bytes the base holds, the scales of its 4-bit blocks included."""
        total = 0
        for parameter in (*_unique_parameters(self.base.model), *self.base.model.buffers()):
            total += parameter.numel() * parameter.element_size()
            state = getattr(parameter, "quant_state", None)
            total += state.absmax.numel() * state.absmax.element_size() if state else 0
        return total

    def allocate_cache(self, *, blocks: int, block_tokens: int) -> None:
        """Fix the KV cache: `blocks` blocks beside block 0, which takes no tokens.

        One more, `blocks` + 1, is there for the rows that pad a captured step.
        """
        for cache in (self._cache.k, self._cache.v):
            cache[:] = [
                torch.zeros(
                    (blocks + 2, block_tokens, rule.kv_heads, rule.head_dim),
                    dtype=self.base.dtype,
                    device=self.base.device,
                )
                for rule in self._cache.rules
            ]
        self._fuse()

    @property
    def can_be_short(self) -> bool:
        """Whether layers can be run in few launches."""
        return self._short is not None

    def be_short(self, short: bool) -> None:
        """Run layers in few launches from now on, or as transformers does.

        What was captured stays as it was.
        """
        if self._short is None:
            assert not short
        elif short:
            self._short.use()
        else:
            self._short.leave()
        self.is_short = short

    def zero_blocks(self, blocks: list[int]) -> None:
        """Forget what blocks hold, for kernels that read more of them than a context."""
        backend = self.backend
        whole = backend.reads_whole_blocks or (backend.plain_alone and not self._cache.plain)
        if not blocks or not whole:
            return
        index = torch.tensor(blocks, device=self.base.device)
        for cache in (*self._cache.k, *self._cache.v):
            cache.index_fill_(0, index, 0)

    def bind_pool(self, pools: tuple[GroupPool, ...]) -> None:
        """Fix the adapter pool."""
        self._step.bind(pools)
        self._fuse()

    @property
    def caches(self) -> tuple[torch.Tensor, ...]:
        """Keys and values of every layer, [blocks, block_tokens, kv_heads, head_dim] each."""
        return (*self._cache.k, *self._cache.v)

    @property
    def pools(self) -> tuple[GroupPool, ...]:
        """What `bind_pool` fixed."""
        return self._step.pools

    def write_out(self, *, budget: int, timings: Path) -> None:
        """On CUDA in bfloat16: keep up to `budget` bytes of weights written out, where that wins.

        What wins is measured once a card, and kept in the folder `timings`.
        """
        linears = [made for made in self._linears if isinstance(made, GemmLinear)]
        if not linears or self.base.dtype is not torch.bfloat16:
            return
        chosen = dispatch_for(linears, budget=budget, folder=timings)
        for linear in linears:
            linear.write_out(chosen)
        shapes = ", ".join(f"{s.out_features}x{s.in_features}" for s in sorted(chosen.written_out))
        self._kernel += f", {shapes or 'none'} in bfloat16 too"

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits of the wanted rows, [sampled, vocab], in the base's dtype.

        Caches new keys and values.
        """
        whole = self._at_once(batch)
        if whole is not None:
            return whole.logits
        with torch.inference_mode():
            return self._one_by_one(batch)

    def decide(self, batch: ForwardBatch) -> Decoded:
        """`forward`, and the likeliest token of each wanted row."""
        # A native call builds no graph, and entering the mode costs a step 70 us.
        whole = self._at_once(batch)
        if whole is not None:
            return whole
        with torch.inference_mode():
            logits = self._one_by_one(batch)
            return Decoded(logits, self.backend.likeliest(logits))

    def _at_once(self, batch: ForwardBatch) -> Decoded | None:
        """The step in one native call, if it can be."""
        if self._fused is None:
            return None
        layers = self._fused.native
        layers.begin(batch.lora, batch.attention)
        if self._whole is None or not layers.whole:
            return None
        return self._whole.forward(batch)

    def _one_by_one(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits by the model's own forward pass, layer after layer."""
        self._cache.begin(batch.attention)
        self._step.begin(batch.lora)
        try:
            output = self.base.model(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.logit_rows,
            )
        finally:
            self._cache.begin(None)
            self._step.begin(None)
        logits: torch.Tensor = output.logits[0]
        return logits

    def _fuse(self) -> None:
        """Let native kernels run whole layers over the cache and the pool, where they can."""
        if self._cache.k and self._step.pools and isinstance(self.backend.rows, Library):
            self._fused = fuse(
                self.base.model,
                self.module_map,
                self.backend.rows,
                caches=(self._cache.k, self._cache.v),
                pools=self._step.pools,
                attend=self._cache.attend,
                rules=self._cache.rules,
            )
            if self._fused is not None:
                self._whole = fuse_whole(self.base.model, self._fused, self.backend.rows)

    def _replace_linears(self, linears: str) -> None:
        model = self.base.model
        made = self._linears
        for layer in range(self.module_map.layers):
            for index, group in enumerate(self.module_map.groups):
                paths = [self.module_map.path(layer, tail) for tail in group.tails]
                base = self._product([model.get_submodule(path) for path in paths], linears)
                made.append(base)
                shared = LoraGroup(
                    base, group.shape.out_features, self._step, group=index, layer=layer
                )
                for part, path in enumerate(paths):
                    parent, _, name = path.rpartition(".")
                    setattr(model.get_submodule(parent), name, LoraLinear(shared, part))
        if linears != "nf4":
            self._kernel = "NF4 values dequantised once"
        elif all(isinstance(base, NativeLinear) for base in made):
            self._kernel = "NF4 decoded in registers (AVX512-BF16)"
        else:
            self._kernel = describe(self.base.device)

    def _product(self, linears: list[Any], kind: str) -> nn.Module:
        linear = stacked(linears)
        if kind != "nf4":
            return dense_linear(linear, dtype=self.base.dtype)
        library = self.backend.library
        if library is not None and fits(linear, library):
            return NativeLinear(linear, library)
        return nf4_linear(linear)


def _unique_parameters(model: Any) -> list[torch.Tensor]:
    return list({id(p): p for p in model.parameters()}.values())


def _bf16_bytes(model: Any) -> int:
    quantised = {id(m.weight): m for m in model.modules() if hasattr(m, "quant_storage")}
    total = 0
    for parameter in _unique_parameters(model):
        module = quantised.get(id(parameter))
        total += 2 * (
            module.out_features * module.in_features if module is not None else parameter.numel()
        )
    return total


def _attend(
    module: Any,
    query: torch.Tensor,  # [1, heads, rows, head_dim]
    key: torch.Tensor,  # [1, kv_heads, rows, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    cache: _PagedCache = module.lorapool_cache
    layer = module.layer_idx
    cache.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
    return cache.attend(layer, query[0].transpose(0, 1))[None], None


AttentionInterface.register(ATTENTION, _attend)
