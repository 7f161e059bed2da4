"""Small models of Llama's shape, and what a decoder makes of two steps over several adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from inference_node.adapters.pool import AdapterPool
from inference_node.kernels.lora import LoraPlan, SlotPages
from inference_node.kernels.paged_attention import AttentionPlan, Chunk
from inference_node.model.batch import ForwardBatch
from inference_node.model.decoder import Decoder

CPU = torch.device("cpu")
BLOCK, BLOCKS, VOCABULARY = 4, 40, 96
RANKS = (1, 12, 33)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama with one embedding": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral with a window": MistralConfig(**SIZES, sliding_window=5),
    "qwen2": Qwen2Config(**SIZES),
}


def save_model(folder: Path, config: PretrainedConfig) -> None:
    """Random weights, with norms and biases that are no ones and zeros."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += torch.randn_like(parameter) / 4
    model.save_pretrained(folder)


def furnish(decoder: Decoder) -> Decoder:
    """Give it a cache and a pool of random pages."""
    decoder.allocate_cache(blocks=BLOCKS, block_tokens=BLOCK)
    dtype = decoder.base.dtype
    pool = AdapterPool(decoder.module_map, pool_bytes=2**20, dtype=dtype, device=CPU)
    generator = torch.Generator().manual_seed(1)
    for group in pool.groups:
        for tensor, scale in ((group.a, group.shape.in_features**-0.5), (group.b, 0.1)):
            # Page 0 stays zeros.
            tensor[1:] = torch.randn(tensor[1:].shape, generator=generator) * scale
    decoder.bind_pool(pool.groups)
    return decoder


def logits_of_two_steps(decoder: Decoder, *, by_row: int = 1) -> torch.Tensor:
    """Prompts of several lengths under several adapters, then a step of one token each.

    `by_row`: up to which context prompts are attended row by row, if the model allows it.
    """
    groups = len(decoder.module_map.groups)
    pages = iter(range(1, BLOCKS))
    slots: list[SlotPages | None] = [None]
    for stamp, rank in enumerate(RANKS, start=1):
        own = tuple(next(pages) for _ in range(-(-rank // 8)))
        slots.append(SlotPages((own,) * groups, 0.5, stamp))
    lengths = [5, 1, 9, 3]
    tables = [tuple(range(1 + 4 * row, 5 + 4 * row)) for row in range(len(slots))]
    found = []
    for steps in ([(0, length) for length in lengths], [(length, 1) for length in lengths]):
        order = sorted(range(len(slots)), key=lambda row: steps[row][1] != 1)
        chunks = [Chunk(tables[row], *steps[row]) for row in order]
        segments, ids, positions = [], [], []
        for row, chunk in zip(order, chunks, strict=True):
            segments.append((len(ids), chunk.length, slots[row]))
            positions += range(chunk.start, chunk.context)
            ids += [3 + (row * 31 + place * 7) % 90 for place in positions[-chunk.length :]]
        plan = LoraPlan.build(
            segments,
            groups=groups,
            device=CPU,
            dtype=decoder.base.dtype,
            in_place=decoder.backend.rows is not None,
        )
        batch = ForwardBatch(
            token_ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            attention=AttentionPlan.build(
                chunks, block_tokens=BLOCK, device=CPU, by_row=min(by_row, decoder.by_row)
            ),
            lora=plan,
            logit_rows=torch.arange(len(ids)),
        )
        found.append(decoder.forward(batch))
    return torch.cat(found).float()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the worst row, relative."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())
