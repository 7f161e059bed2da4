"""transformers and PEFT alone, on the very 4-bit values the engine serves, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import DynamicCache

from inference_node.config import EngineConfig
from inference_node.kernels.quant4 import dense_linear
from inference_node.model.checkpoint import load_base


class Oracle:
    """One adapter, one sequence, no batching, no pages."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        loaded = load_base(EngineConfig(base_model=str(base), dtype="float32"))
        model: Any = loaded.model
        for path, module in list(model.named_modules()):
            if hasattr(module, "quant_storage"):
                parent, _, name = path.rpartition(".")
                dense = dense_linear(module, dtype=torch.float32)
                setattr(model.get_submodule(parent), name, dense)
        model.is_loaded_in_4bit = False
        model.config.quantization_config = None
        model.set_attn_implementation("sdpa")
        self._model = model
        self._adapters = dict(adapters)
        if adapters:
            (first, folder), *others = adapters.items()
            self._model = PeftModel.from_pretrained(model, str(folder), adapter_name=first)
            for name, folder in others:
                self._model.load_adapter(str(folder), adapter_name=name)
        self._model.eval()

    @torch.inference_mode()
    def greedy(self, adapter: str, prompt: Sequence[int], tokens: int) -> list[int]:
        """The next `tokens` likeliest tokens after `prompt`, end-of-text not heeded."""
        if adapter:
            self._model.set_adapter(adapter)
            return self._decode(prompt, tokens)
        if not self._adapters:
            return self._decode(prompt, tokens)
        with self._model.disable_adapter():
            return self._decode(prompt, tokens)

    def _decode(self, prompt: Sequence[int], tokens: int) -> list[int]:
        cache = DynamicCache()
        ids = torch.tensor([list(prompt)])
        found: list[int] = []
        while len(found) < tokens:
            logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            found.append(int(logits[0, -1].argmax()))
            ids = torch.tensor([[found[-1]]])
        return found
