"""What a decoder is made of, learnt by running it once without weights.

A twin of the model on the meta device says which linears read one tensor and what each layer asks
of attention. What a paged decoder cannot do exactly shows here, before a weight is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM

from inference_node.errors import UnsupportedModel
from inference_node.kernels.lora import GroupShape, ModuleGroup, ModuleMap

_TRACE = "lorapool_trace"
_LAYER = re.compile(r"(?P<head>.*\blayers\.)(?P<layer>\d+)(?P<tail>\..*)")
_ROWS = 3
_UNHEEDED = frozenset({"dropout", "position_ids", "use_cache", "is_causal", "output_router_logits"})
"""Arguments of attention that say nothing a paged cache does not know."""


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """What one layer asks of attention."""

    path: str
    """Module path of the attention."""
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    """Keys a query sees, its own the last of them; None for all before it."""
    softcap: float | None
    """Scores s become softcap * tanh(s / softcap)."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Where adapters attach, and what attention does in every layer."""

    modules: ModuleMap
    attention: tuple[AttentionRule, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of attention."""

    module: nn.Module
    key: tuple[int, ...]  # [1, kv_heads, rows, head_dim]
    value: tuple[int, ...]
    masked: bool
    arguments: dict[str, Any]


def trace(settings: Any) -> Traced:
    """Find the groups of linears and the rules of attention.

    `settings` is a checkpoint's configuration; no weight is read and nothing is computed. Raises
    UnsupportedModel, with the reason, when the model cannot be served exactly.
    """
    twin = _twin(settings)
    seen: list[tuple[str, int, int, int]] = []
    keep_alive: list[torch.Tensor] = []
    calls: list[_Call] = []

    def watch(path: str, module: Any) -> None:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            keep_alive.append(inputs[0])
            seen.append((path, id(inputs[0]), module.out_features, module.in_features))

        module.register_forward_pre_hook(hook)

    for path, module in twin.named_modules():
        module.lorapool_calls = calls
        if isinstance(module, nn.Linear) and _LAYER.fullmatch(path):
            watch(path, module)
    logits = _run(twin)
    modules = _group(seen)
    if logits.shape[:2] != (1, 1):
        raise UnsupportedModel(
            f"{type(twin).__name__} cannot give the logits of chosen rows alone",
            hint="serve a model of another architecture",
        )
    return Traced(modules, _rules(twin, calls, modules.layers))


def _twin(settings: Any) -> Any:
    plain = type(settings).from_dict({**settings.to_dict(), "quantization_config": None})
    try:
        with torch.device("meta"):
            twin: Any = AutoModelForCausalLM.from_config(plain, attn_implementation=_TRACE).eval()
    except (ValueError, ImportError) as error:
        raise UnsupportedModel(
            f"{type(settings).__name__} is of no causal language model that can be traced: {error}",
            hint="serve a text-only decoder, such as Llama, Qwen, Mistral, Gemma or Phi",
        ) from error
    name = type(twin).__name__
    if not twin._supports_attention_backend:
        raise UnsupportedModel(
            f"{name} has no pluggable attention over keys and values",
            hint="serve a model whose every layer has attention, such as Llama or Qwen",
        )
    for path, parameter in twin.named_parameters():
        if parameter.ndim > 2:
            raise UnsupportedModel(
                f"{name} computes with {path} of {list(parameter.shape)}, which is no linear layer",
                hint="serve a dense decoder without convolutions or stacked experts",
            )
    return twin


def _run(twin: Any) -> torch.Tensor:
    try:
        with torch.device("meta"), torch.inference_mode():
            logits: torch.Tensor = twin(
                input_ids=torch.zeros(1, _ROWS, dtype=torch.int64),
                position_ids=torch.arange(_ROWS)[None],
                use_cache=False,
                logits_to_keep=torch.tensor([_ROWS - 1]),
            ).logits
    except Exception as error:
        raise UnsupportedModel(
            f"{type(twin).__name__} cannot be traced: {error}",
            hint="serve a model of another architecture",
        ) from error
    return logits


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
    if not seen:
        raise UnsupportedModel(
            "the model has no linear layers under a list named `layers`",
            hint="serve a model of another architecture",
        )
    if len(heads) != 1 or len(shapes) != 1:
        raise UnsupportedModel(
            "decoder layers differ in their linears",
            hint="adapter pages are the same for all layers: serve a model whose layers are alike",
        )
    return ModuleMap(heads.pop(), len(layers), shapes.pop())


def _rules(twin: Any, calls: list[_Call], layers: int) -> tuple[AttentionRule, ...]:
    order = [getattr(call.module, "layer_idx", None) for call in calls]
    if order != list(range(layers)):
        raise UnsupportedModel(
            f"{len(set(order))} of {layers} layers have attention, not each once and in order",
            hint="serve a model whose every layer has attention over keys and values",
        )
    paths = {id(module): path for path, module in twin.named_modules()}
    return tuple(_rule(call, paths[id(call.module)]) for call in calls)


def _rule(call: _Call, path: str) -> AttentionRule:
    asked = {name: value for name, value in call.arguments.items() if name not in _UNHEEDED}
    scale, window, softcap = (
        asked.pop(name, None) for name in ("scaling", "sliding_window", "softcap")
    )
    odd = sorted(name for name, value in asked.items() if value is not None and value is not False)
    if call.masked:
        odd.append("a mask of its own")
    if call.key != call.value:
        odd.append("keys and values of different shapes")
    if not getattr(call.module, "is_causal", True):
        odd.append("sight of later tokens")
    if odd:
        raise UnsupportedModel(
            f"attention of {path} wants {', '.join(odd)}",
            hint="serve a model with plain causal attention",
        )
    _, kv_heads, _, dim = call.key
    return AttentionRule(
        path, kv_heads, dim, dim**-0.5 if scale is None else scale, window, softcap
    )


def _attend_nothing(
    module: Any,
    query: torch.Tensor,  # [1, heads, rows, head_dim]
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    call = _Call(
        module, tuple(key.shape), tuple(value.shape), attention_mask is not None, arguments
    )
    module.lorapool_calls.append(call)
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(_TRACE, _attend_nothing)
