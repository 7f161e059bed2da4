"""The shapes of model that are measured. Weights are random: nothing depends on their values."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig


@dataclass(frozen=True, slots=True)
class Size:
    """One shape, and how much of everything its measurements take."""

    name: str
    config: LlamaConfig
    context: int
    """Tokens that every decoding sequence has."""
    rows: tuple[int, ...]
    """Numbers of rows of a decode step."""
    many: int
    """Small adapters that are resident at once in the row about capacity."""


def _llama(**sizes: int | bool) -> LlamaConfig:
    return LlamaConfig(
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        **sizes,
    )


EIGHT_B = Size(
    "Llama-3-8B",
    _llama(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    ),
    context=512,
    rows=(1, 8, 32, 64, 128),
    many=2000,
)
ONE_B = Size(
    "Llama-3.2-1B",
    _llama(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
        tie_word_embeddings=True,
    ),
    context=512,
    rows=(1, 8, 32, 64, 128),
    many=2000,
)
SMALL = Size(
    "small",
    _llama(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=1024,
        tie_word_embeddings=False,
    ),
    context=64,
    rows=(1,),
    many=1,
)
TINY = Size(
    "tiny",
    _llama(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        tie_word_embeddings=False,
    ),
    context=20,
    rows=(1, 2),
    many=4,
)
SIZES = {"8b": EIGHT_B, "1b": ONE_B, "tiny": TINY}
