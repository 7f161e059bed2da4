"""What a model's own code shows of it, and what is refused for it before a weight is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    Olmo2Config,
    PhiConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
    StableLmConfig,
    T5Config,
)
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from inference_node.errors import UnsupportedModel
from inference_node.model.trace import trace
from tests.inference_node.families import FAMILIES, SIZES, WIDE, WINDOW

MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT: dict[str, Any] = {
    **SIZES,
    "first_k_dense_replace": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


def test_every_layer_says_what_it_asks_of_attention() -> None:
    config = Gemma2Config(
        **WIDE, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    )
    first, second = trace(config).attention
    assert (first.path, second.path) == ("model.layers.0.self_attn", "model.layers.1.self_attn")
    assert (first.window, second.window) == (WINDOW, None)
    assert first.softcap == second.softcap == 50.0
    assert (first.kv_heads, first.head_dim) == (2, 32)
    assert first.scale == 256**-0.5


def test_parallel_attention_and_mlp_are_one_group() -> None:
    groups = trace(FAMILIES["phi"]).modules.groups
    assert [group.name for group in groups] == ["q_proj+k_proj+v_proj+fc1", "dense", "fc2"]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Olmo2Config(**SIZES), id="olmo2"),
        pytest.param(lambda: CohereConfig(**SIZES), id="cohere"),
        pytest.param(lambda: PhiConfig(**SIZES), id="phi"),
    ],
)
def test_a_decoder_of_another_family_with_plain_attention_is_traced(
    make: Callable[[], PretrainedConfig],
) -> None:
    found = trace(make())
    assert len(found.attention) == found.modules.layers == 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(
            lambda: MambaConfig(hidden_size=64, num_hidden_layers=2),
            "MambaForCausalLM has no pluggable attention",
            id="state space",
        ),
        pytest.param(
            lambda: StableLmConfig(**SIZES), "has no pluggable attention", id="own attention"
        ),
        pytest.param(
            lambda: Qwen3MoeConfig(**SIZES, **MOE),
            r"layers.0.mlp.experts.gate_up_proj of \[4, 128, 64\], which is no linear layer",
            id="experts",
        ),
        pytest.param(
            lambda: GptOssConfig(**SIZES, num_local_experts=2), "no linear layer", id="gpt-oss"
        ),
        pytest.param(lambda: DeepseekV3Config(**LATENT), "different shapes", id="latent attention"),
        pytest.param(
            lambda: GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=96),
            "no linear layers under a list named `layers`",
            id="convolutions for linears",
        ),
        pytest.param(T5Config, "no causal language model", id="encoder-decoder"),
    ],
)
def test_a_model_whose_code_cannot_be_served_is_refused_with_its_reason_and_what_to_do(
    make: Callable[[], PretrainedConfig], reason: str
) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        trace(make())
    assert caught.value.hint


def test_an_encoder_is_refused() -> None:
    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    with pytest.raises(UnsupportedModel):
        trace(config)


@pytest.fixture
def doctored(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], object]], None]:
    """Llamas are made with a change from now on."""

    def doctor(change: Callable[[Any], object]) -> None:
        make = AutoModelForCausalLM.from_config

        def made(*args: Any, **settings: Any) -> Any:
            model = make(*args, **settings)
            change(model)
            return model

        monkeypatch.setattr(AutoModelForCausalLM, "from_config", made)

    return doctor


def sees_the_future(model: LlamaForCausalLM) -> None:
    model.model.layers[1].self_attn.is_causal = False


def layers_differ(model: LlamaForCausalLM) -> None:
    config = model.config
    config.intermediate_size *= 2
    model.model.layers[1].mlp = LlamaMLP(config)


def skips_attention(model: LlamaForCausalLM) -> None:
    class Nothing(LlamaAttention):
        def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
            for each in (self.q_proj, self.k_proj, self.v_proj):
                each(hidden_states)
            self.o_proj(torch.empty_like(hidden_states))
            return hidden_states, None

    model.model.layers[0].self_attn.__class__ = Nothing


def heeds_no_rows(model: LlamaForCausalLM) -> None:
    def whole(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: torch.Tensor) -> torch.Tensor:
        return inputs[0].new_empty(1, 3, 96)

    model.lm_head.register_forward_hook(whole)


def breaks(model: LlamaForCausalLM) -> None:
    model.model.layers[1].mlp = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (sees_the_future, "layers.1.self_attn wants sight of later tokens"),
        (layers_differ, "decoder layers differ"),
        (skips_attention, "1 of 2 layers have attention"),
        (heeds_no_rows, "cannot give the logits of chosen rows alone"),
        (breaks, "LlamaForCausalLM cannot be traced"),
    ],
)
def test_an_odd_model_under_a_known_name_is_refused(
    change: Callable[[Any], object],
    reason: str,
    doctored: Callable[[Callable[[Any], object]], None],
) -> None:
    trace(LlamaConfig(**SIZES))
    doctored(change)
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        trace(LlamaConfig(**SIZES))
    assert caught.value.hint
