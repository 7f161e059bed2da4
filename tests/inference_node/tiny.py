"""A tiny random Llama checkpoint and adapters for it: the real code paths in milliseconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS, HIDDEN, HEADS, KV_HEADS, INNER = 2, 64, 4, 2, 128
VOCABULARY = 49152
"""Of the default base's tokenizer."""


def make_checkpoint(
    folder: Path, *, tokenizer_from: Path, seed: int = 0, vocabulary: int = VOCABULARY
) -> Path:
    """A 2-layer Llama with the tokenizer of a real checkpoint, or its first tokens alone."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=vocabulary,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=2,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, folder / name)
    return folder


def make_adapter(
    folder: Path,
    modules: dict[str, tuple[int, int]],
    *,
    rank: int,
    targets: Sequence[str] = ALL_LINEARS,
    seed: int = 0,
    alpha: int = 16,
    strength: float = 0.3,
) -> Path:
    """An adapter folder as peft writes it, random and strong enough to change every answer."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (out, width) in modules.items():
        if path.rsplit(".", 1)[-1] in targets:
            a = torch.randn(rank, width, generator=generator) * width**-0.5
            b = torch.randn(out, rank, generator=generator) * strength * rank**-0.5
            tensors[f"base_model.model.{path}.lora_A.weight"] = a.to(torch.bfloat16)
            tensors[f"base_model.model.{path}.lora_B.weight"] = b.to(torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
