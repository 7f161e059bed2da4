"""transformers and PEFT alone, on the very 4-bit values the engine serves, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        self._linears: dict[str, tuple[int, int]] = {}
        for path, module in list(model.named_modules()):
            if hasattr(module, "quant_storage"):
                self._linears[path] = (module.out_features, module.in_features)
                parent, _, name = path.rpartition(".")
                dense = dense_linear(module, dtype=torch.float32)
                setattr(model.get_submodule(parent), name, dense)
        model.is_loaded_in_4bit = False
        model.config.quantization_config = None
        # Soft-capped scores are computed by transformers' eager attention alone.
        capped = getattr(model.config, "attn_logit_softcapping", None)
        model.set_attn_implementation("eager" if capped else "sdpa")
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
        with self._speaking(adapter):
            return self._decode(prompt, tokens)

    @torch.inference_mode()
    def logits(self, adapter: str, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary], all read at once."""
        with self._speaking(adapter):
            found: torch.Tensor = self._model(
                input_ids=torch.tensor([list(tokens)]), use_cache=False
            ).logits
        return found[0]

    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear that was in 4 bits."""
        return dict(self._linears)

    @contextmanager
    def _speaking(self, adapter: str) -> Iterator[None]:
        if adapter:
            self._model.set_adapter(adapter)
            yield
        elif self._adapters:
            with self._model.disable_adapter():
                yield
        else:
            yield

    def _decode(self, prompt: Sequence[int], tokens: int) -> list[int]:
        cache = DynamicCache(config=self._model.config)
        ids = torch.tensor([list(prompt)])
        found: list[int] = []
        while len(found) < tokens:
            logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            found.append(int(logits[0, -1].argmax()))
            ids = torch.tensor([[found[-1]]])
        return found
