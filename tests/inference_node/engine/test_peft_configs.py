"""What PEFT can be told to adapt, saved by PEFT itself: answered alike, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapter_store.errors import Incompatible, InvalidAdapter, StoreError
from adapter_store.lora_config import LoraSpec
from adapter_store.memory import MemoryStore
from adapter_store.validate import check_content, read_adapter_dir
from inference_node.adapters.weights import host_adapter
from inference_node.engine.build import base_card
from inference_node.model.trace import trace
from tests.inference_node.engine.oracle import Oracle
from tests.inference_node.engine.parity import Logits, ask, compare, family_config
from tests.inference_node.families import FAMILIES, make_family
from tests.inference_node.harness import start_node

QV = ["q_proj", "v_proj"]
FIRST_Q = "model.layers.0.self_attn.q_proj"
SERVED: dict[str, dict[str, Any]] = {
    "rslora": {"r": 16, "lora_alpha": 4, "use_rslora": True, "target_modules": QV},
    "all-linear": {"r": 8, "lora_alpha": 4, "target_modules": "all-linear"},
    "rank-pattern": {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"1.self_attn.v_proj": 33, FIRST_Q: 12, "q_proj": 2, "down_proj": 64},
    },
    "alpha-pattern": {
        "r": 8,
        "lora_alpha": 2,
        "target_modules": QV,
        "alpha_pattern": {FIRST_Q: 24, "v_proj": 7},
    },
    "both-rslora": {
        "r": 8,
        "lora_alpha": 2,
        "use_rslora": True,
        "target_modules": [*QV, "up_proj"],
        "rank_pattern": {"up_proj": 20, "layers.1.self_attn.q_proj": 3},
        "alpha_pattern": {"q_proj": 5, "up_proj": 1},
    },
    "layers": {"r": 8, "lora_alpha": 8, "target_modules": QV, "layers_to_transform": [1]},
    "one-layer": {"r": 8, "lora_alpha": 8, "target_modules": QV, "layers_to_transform": 0},
    "exclude": {
        "r": 8,
        "lora_alpha": 4,
        "target_modules": "all-linear",
        "exclude_modules": ["down_proj", FIRST_Q],
    },
}
REFUSED: dict[str, tuple[dict[str, Any], type[StoreError], str]] = {
    "dora": ({"use_dora": True}, InvalidAdapter, "use_dora"),
    "lora-bias": ({"lora_bias": True}, InvalidAdapter, "lora_bias"),
    "bias": ({"bias": "all"}, InvalidAdapter, "bias"),
    "saved-module": ({"modules_to_save": ["lm_head"]}, InvalidAdapter, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [5]}, InvalidAdapter, "trainable_token_indices"),
    "expression": ({"target_modules": r".*\.q_proj"}, InvalidAdapter, "target_modules"),
    "pissa": ({"init_lora_weights": "pissa"}, InvalidAdapter, "init_lora_weights"),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, Incompatible, "embed_tokens"),
    "head": ({"target_modules": ["q_proj", "lm_head"]}, Incompatible, "lm_head"),
    "rank-expression": ({"rank_pattern": {r".*\.0\..*": 4}}, InvalidAdapter, "rank_pattern"),
    "wide": ({"rank_pattern": {"v_proj": 65}}, InvalidAdapter, "rank_pattern of 'v_proj' is 65"),
    # PEFT sorts the names when it saves them and loads another rank than it trained.
    "shadowed": (
        {"rank_pattern": {"q_proj": 9, FIRST_Q: 17}},
        Incompatible,
        r"q_proj.lora_A.weight is \[9, 64\], not \[17, 64\]",
    ),
    "pattern-layers": (
        {"layers_to_transform": [0], "layers_pattern": "layers"},
        InvalidAdapter,
        "layers_pattern",
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("bases") / "llama", FAMILIES["llama"])


def save_adapter(folder: Path, base: Path, **asked: Any) -> Path:
    """Random factors, as PEFT lays them out and saves them."""
    torch.manual_seed(len(folder.name))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"init_lora_weights": False, "target_modules": QV, "r": 8, **asked}
    with warnings.catch_warnings():
        # What PEFT warns of is among what is refused.
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
        adapted.save_pretrained(str(folder))
    return folder


def test_what_peft_adapts_is_adapted_alike_in_one_batch(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Logits(monkeypatch)
    folders = {name: save_adapter(tmp_path / name, base, **asked) for name, asked in SERVED.items()}
    node = start_node(family_config(base), MemoryStore())
    try:
        for name, folder in folders.items():
            node.publish(name, folder)
        answers = ask(node, ["", *folders])
    finally:
        node.close()
    oracle = Oracle(base, folders)
    compare(oracle, answers, seen)
    first = answers[0][1]
    told = [oracle.logits(name, first)[-1] for name in ["", *folders]]
    apart = min(float((a - b).abs().max()) for i, a in enumerate(told) for b in told[:i])
    assert apart > 0.02, "two of the adapters could be taken for one another"


@pytest.mark.parametrize("name", ["alpha-pattern", "both-rslora"])
def test_control_one_scale_for_all_modules_is_seen(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoraSpec, "scale_of", lambda spec, module: spec.scale)
    seen = Logits(monkeypatch)
    folder = save_adapter(tmp_path / name, base, **SERVED[name])
    node = start_node(family_config(base), MemoryStore())
    try:
        node.publish(name, folder)
        answers = ask(node, [name])
    finally:
        node.close()
    with pytest.raises(AssertionError):
        compare(Oracle(base, {name: folder}), answers, seen)


def test_a_group_takes_the_pages_of_its_largest_rank_and_no_more(
    base: Path, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "a", base, **SERVED["rank-pattern"])
    card = base_card(family_config(base))
    local = read_adapter_dir(folder, card=card)
    content = check_content(
        local.files, config=local.spec.allow_listed(), card_modules=card.modules
    )
    modules = trace(FAMILIES["llama"]).modules
    host = host_adapter(content, modules, dtype=torch.float32)
    assert modules.groups[0].name == "q_proj+k_proj+v_proj"
    assert host.pages == (5, 0, 0, 8)


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_fits_no_page_is_refused_at_publish_by_name_and_with_what_to_do(
    name: str, base: Path, tmp_path: Path
) -> None:
    asked, error, says = REFUSED[name]
    folder = save_adapter(tmp_path / name, base, **asked)
    with pytest.raises(error, match=says) as caught:
        read_adapter_dir(folder, card=base_card(family_config(base)))
    assert caught.value.hint or name == "wide"


def test_a_rank_in_a_pattern_over_the_bases_limit_is_refused(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "wide", base, **SERVED["rank-pattern"])
    card = base_card(family_config(base))
    read_adapter_dir(folder, card=card)
    with pytest.raises(Incompatible, match="rank 64 is over the base's limit of 32"):
        read_adapter_dir(folder, card=replace(card, max_rank=32))
