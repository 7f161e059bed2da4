"""Rows 8 and 9: PEFT over the same random base, in the same process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.node import DTYPE, Node, adapters, pools_of, random_model
from benchmarks.gpu.results import Figure

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TURNS = 5
"""Of PEFT's steps: they are slow, and steady."""


def beside_peft(node: Node, clock: Clock) -> Iterator[Figure]:
    """Tokens a second of decode steps over distinct r16 adapters: ours, and both of PEFT's ways."""
    sizes = [rows for rows in (8, 32) if rows <= max(node.size.rows)] or [max(node.size.rows)]
    slots = adapters([16] * max(sizes), [True] * len(node.modules.groups))
    ours = _ours(node, clock, sizes)
    model = _peft(node, max(sizes))
    slow = Clock(clock.device, repeats=min(TURNS, clock.repeats))
    names = [f"a{index}" for index in range(max(sizes))]
    turn = iter(range(10**9))

    def alone(step: Callable[..., object]) -> None:
        model.set_adapter(names[next(turn) % len(names)])
        step()

    single = _decode(node, model, 1)
    one = slow.alternating({"one": lambda: alone(single)}, wall=True)["one"]
    for rows in sizes:
        many = _decode(node, model, rows)
        mixed = slow.alternating(
            {"mixed": lambda s=many, n=names[:rows]: s(adapter_names=n)}, wall=True
        )["mixed"]
        rate = rows / ours[rows]
        parts = {"ours tokens/s": rate, "floor ms": node.floor_ms(slots[:rows])}
        yield Figure("8", rate * mixed / rows, rows, parts | {"PEFT tokens/s": rows / mixed})
        yield Figure("9", rate * one, rows, parts | {"PEFT tokens/s": 1 / one})


def _ours(node: Node, clock: Clock, sizes: list[int]) -> dict[int, float]:
    """Seconds of a whole step: inputs sent, the step, its tokens read."""
    every = [True] * len(node.modules.groups)
    node.bind(pools_of(node.modules, [2 * max(sizes)] * len(every), node.device))
    slots = adapters([16] * max(sizes), every)
    node.capture(*sizes)
    taken = {}
    for rows in sizes:
        step = node.step(slots[:rows])

        def run(step: Any = step) -> None:
            decoded = node.graphs.run(step)
            assert decoded is not None
            decoded.best.tolist()

        taken[rows] = clock.alternating({"ours": run}, wall=True)["ours"]
    node.forget()
    return taken


def _peft(node: Node, count: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    base = random_model(node.size, node.device, attention="sdpa")
    model = get_peft_model(base, config, adapter_name="a0", autocast_adapter_dtype=False)
    for index in range(1, count):
        model.add_adapter(f"a{index}", config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(node.device, DTYPE).normal_(0, 0.02)
    return model.eval()


def _decode(node: Node, model: Any, rows: int) -> Callable[..., object]:
    """One token of each row after a full context, over a cache that is put back every time."""
    config, context = node.size.config, node.size.context - 1
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    cache = DynamicCache()
    for layer in range(config.num_hidden_layers):
        shape = (rows, config.num_key_value_heads, context, head_dim)
        k, v = (torch.randn(shape, device=node.device).to(DTYPE) for _ in "kv")
        cache.update(k, v, layer)
    tokens = torch.zeros(rows, 1, dtype=torch.int64, device=node.device)
    positions = torch.full((rows, 1), context, device=node.device)

    @torch.inference_mode()
    def step(**how: Any) -> object:
        out = model(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **how,
        )
        best = out.logits[:, -1].argmax(dim=-1).tolist()
        cache.crop(-1)
        return best

    return step
