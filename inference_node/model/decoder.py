"""Drives transformers' own modelling code over paged keys and values and a pool of adapters.

The forward pass is the library's; three things are ours and are reached through its public seams:
the attention function (AttentionInterface), the linears (replaced by LoraLinear), and the rows,
which are the new tokens of many sequences laid end to end in one row of a [1, rows] batch.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM

from inference_node.errors import UnsupportedModel
from inference_node.kernels.backend import REFERENCE, Backend
from inference_node.kernels.lora import GroupPool, GroupShape, ModuleGroup, ModuleMap
from inference_node.kernels.native import Library
from inference_node.kernels.paged_attention import (
    AttentionPlan,
    DecodeAttention,
    paged_attention,
    write_kv,
)
from inference_node.kernels.quant4 import dense_linear, describe, nf4_linear, stacked
from inference_node.model.batch import ForwardBatch
from inference_node.model.checkpoint import ATTENTION, Base
from inference_node.model.fused import FusedLayers, fuse
from inference_node.model.layers import LoraGroup, LoraLinear, StepLora

_TRACE = f"{ATTENTION}_trace"
_LAYER = re.compile(r"(?P<head>.*\blayers\.)(?P<layer>\d+)(?P<tail>\..*)")


class _PagedCache:
    """Keys and values of every layer, and the attention routing of the running step."""

    def __init__(self, decode: DecodeAttention) -> None:
        self.decode = decode
        self.k: list[torch.Tensor] = []  # [layers] of [blocks, block_tokens, kv_heads, head_dim]
        self.v: list[torch.Tensor] = []
        self.plan: AttentionPlan | None = None

    def attend(self, layer: int, q: torch.Tensor, *, scale: float) -> torch.Tensor:
        """q [rows, heads, head_dim] over the step's keys and values, already written."""
        assert self.plan is not None
        return paged_attention(
            q, self.k[layer], self.v[layer], self.plan, scale=scale, decode=self.decode
        )


class Decoder:
    """A loaded base with its linears and attention replaced. Used by one thread."""

    def __init__(self, base: Base, *, linears: str = "nf4", backend: Backend = REFERENCE) -> None:
        self.base = base
        self.backend = backend
        self.module_map = trace_modules(base.model.config)
        self._step = StepLora(backend)
        self._cache = _PagedCache(backend.decode_attention)
        self.base_bytes_bf16 = _bf16_bytes(base.model)
        self._replace_linears("nf4" if linears == "auto" else linears)
        self._fused: FusedLayers | None = None
        self._layers = _attention_modules(base.model)
        for attention in self._layers:
            attention.lorapool_cache = self._cache

    @property
    def kernel(self) -> str:
        dtype = str(self.base.dtype).removeprefix("torch.")
        layers = " and layers" if self._fused is not None else ""
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
        """Fix the KV cache: `blocks` blocks beside block 0, which takes no sequence's tokens."""
        settings = self.base.model.config
        heads = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
        dim = getattr(settings, "head_dim", None) or (
            settings.hidden_size // settings.num_attention_heads
        )
        shape = (blocks + 1, block_tokens, heads, dim)
        for cache in (self._cache.k, self._cache.v):
            cache[:] = [
                torch.zeros(shape, dtype=self.base.dtype, device=self.base.device)
                for _ in self._layers
            ]
        self._fuse()

    def zero_blocks(self, blocks: list[int]) -> None:
        """Forget what blocks hold."""
        if not blocks:
            return
        index = torch.tensor(blocks, device=self.base.device)
        for cache in (*self._cache.k, *self._cache.v):
            cache.index_fill_(0, index, 0)

    def bind_pool(self, pools: tuple[GroupPool, ...]) -> None:
        """Fix the adapter pool."""
        self._step.pools = pools
        self._fuse()

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits of the wanted rows, [sampled, vocab] float32; caches new keys and values."""
        self._cache.plan = batch.attention
        self._step.begin(batch.lora)
        if self._fused is not None:
            self._fused.begin(batch.lora, batch.attention)
        try:
            output = self.base.model(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.logit_rows,
            )
        finally:
            self._cache.plan = None
            self._step.begin(None)
        logits: torch.Tensor = output.logits[0]
        return logits.float()

    def _fuse(self) -> None:
        """Let native kernels run whole layers over the cache and the pool, where they can."""
        if self._cache.k and self._step.pools and isinstance(self.backend.rows, Library):
            self._fused = fuse(
                self.base.model,
                self.module_map,
                self.backend.rows,
                caches=(self._cache.k, self._cache.v),
                pools=self._step.pools,
                attend=self._attend,
            )

    def _attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        return self._cache.attend(layer, q, scale=self._layers[layer].scaling)

    def _replace_linears(self, linears: str) -> None:
        model = self.base.model
        self._kernel = (
            describe(self.base.device) if linears == "nf4" else "NF4 values dequantised once"
        )
        for layer in range(self.module_map.layers):
            for index, group in enumerate(self.module_map.groups):
                paths = [self.module_map.path(layer, tail) for tail in group.tails]
                base = self._product([model.get_submodule(path) for path in paths], linears)
                shared = LoraGroup(
                    base, group.shape.out_features, self._step, group=index, layer=layer
                )
                for part, path in enumerate(paths):
                    parent, _, name = path.rpartition(".")
                    setattr(model.get_submodule(parent), name, LoraLinear(shared, part))

    def _product(self, linears: list[Any], kind: str) -> nn.Module:
        linear = stacked(linears)
        return nf4_linear(linear) if kind == "nf4" else dense_linear(linear, dtype=self.base.dtype)


def trace_modules(settings: Any) -> ModuleMap:
    """Find the groups by watching which linears receive the same tensor object.

    `settings` is a checkpoint's configuration; the traced twin lies on the meta device, so no
    weight is read and nothing is computed. Raises UnsupportedModel when layers differ, or when the
    model cannot run there.
    """
    seen: list[tuple[str, int, int, int]] = []
    keep_alive: list[torch.Tensor] = []

    def watch(path: str, module: Any) -> None:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            keep_alive.append(inputs[0])
            seen.append((path, id(inputs[0]), module.out_features, module.in_features))

        module.register_forward_pre_hook(hook)

    plain = type(settings).from_dict({**settings.to_dict(), "quantization_config": None})
    with torch.device("meta"), torch.inference_mode():
        twin = AutoModelForCausalLM.from_config(plain, attn_implementation=_TRACE).eval()
        for path, module in twin.named_modules():
            if isinstance(module, nn.Linear) and _LAYER.fullmatch(path):
                watch(path, module)
        try:
            twin(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
        except Exception as error:
            raise UnsupportedModel(f"{type(twin).__name__} cannot be traced: {error}") from error
    return _group(seen)


def _group(seen: list[tuple[str, int, int, int]]) -> ModuleMap:
    layers: dict[int, dict[int, list[tuple[str, int, int]]]] = {}
    heads = set()
    for path, tensor, out_features, in_features in seen:
        match = _LAYER.fullmatch(path)
        assert match is not None
        heads.add(match["head"])
        siblings = layers.setdefault(int(match["layer"]), {}).setdefault(tensor, [])
        siblings.append((match["tail"], out_features, in_features))
    shapes = {
        tuple(
            ModuleGroup(
                name="+".join(tail.rsplit(".", 1)[-1] for tail, _, _ in siblings),
                tails=tuple(tail for tail, _, _ in siblings),
                shape=GroupShape(siblings[0][2], tuple(out for _, out, _ in siblings)),
            )
            for siblings in groups.values()
        )
        for groups in layers.values()
    }
    if len(heads) != 1 or len(shapes) != 1:
        raise UnsupportedModel("decoder layers differ in their linears")
    return ModuleMap(heads.pop(), len(layers), shapes.pop())


def _attention_modules(model: Any) -> list[Any]:
    return [
        module
        for module in model.modules()
        if hasattr(module, "layer_idx") and hasattr(module, "scaling")
    ]


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
    assert cache.plan is not None
    keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
    write_kv(cache.k[layer], cache.v[layer], keys, values, cache.plan)
    return cache.attend(layer, query[0].transpose(0, 1), scale=kwargs["scaling"])[None], None


def _attend_nothing(
    module: Any, query: torch.Tensor, *_: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    return query.transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attend)
AttentionInterface.register(_TRACE, _attend_nothing)
