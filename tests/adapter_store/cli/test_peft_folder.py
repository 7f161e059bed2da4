"""A folder straight from PEFT goes in as it is, and what comes out PEFT loads."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers

from adapter_store.record import BaseCard
from tests.adapter_store.cli.shell import Shell

pytestmark = pytest.mark.services


def base() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


CARD = BaseCard(
    fingerprint="be" * 32,
    name="peft-tiny",
    architecture="LlamaForCausalLM",
    modules={
        name: (part.out_features, part.in_features)
        for name, part in base().named_modules()
        if isinstance(part, torch.nn.Linear) and name != "lm_head"
    },
)


def test_save_pretrained_is_pushed_as_it_is_and_a_pulled_folder_loads_the_same_function(
    empty_shell: Shell, tmp_path: Path
) -> None:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"]
    )
    trained = peft.get_peft_model(base(), config)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    trained.save_pretrained(tmp_path / "saved")
    tokens = torch.arange(6)[None]
    wanted = trained.eval()(tokens).logits
    (tmp_path / "peft-card.json").write_bytes(CARD.encode())

    ran = empty_shell.ok("push", "saved", "--name", "p", "--base-card", "peft-card.json")
    assert "not published: README.md" in ran.err
    empty_shell.ok("pull", "p", "pulled")
    loaded = peft.PeftModel.from_pretrained(base(), str(tmp_path / "pulled"))
    assert torch.equal(loaded.eval()(tokens).logits, wanted)
    assert not torch.allclose(base()(tokens).logits, wanted)
    again = empty_shell.document("push", "push", "pulled", "--name", "p")
    assert again["unchanged"]
