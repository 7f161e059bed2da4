"""PEFT on the same NF4 base: a switch and an answer at a time, or one mixed batch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.cpu.wire import serve


class Peft:
    """One model with every adapter loaded, named by its folder."""

    def __init__(self, base: str, folders: list[str]) -> None:
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        loaded = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=quantisation, dtype=torch.bfloat16
        )
        self._names = {folder: f"a{index}" for index, folder in enumerate(folders)}
        self._model: Any = PeftModel.from_pretrained(loaded, folders[0], adapter_name="a0")
        for folder in folders[1:]:
            self._model.load_adapter(folder, adapter_name=self._names[folder])
        self._model.eval()

    def sequential(self, prompts: list[list[int]], adapters: list[str], new: int) -> dict[str, Any]:
        """The loop a PEFT user writes: switch, generate, switch, generate."""
        lengths = []
        start = time.perf_counter()
        for prompt, folder in zip(prompts, adapters, strict=True):
            self._model.set_adapter(self._names[folder])
            lengths += self._generate([prompt], new)
        return {"seconds": time.perf_counter() - start, "lengths": lengths}

    def mixed(self, prompts: list[list[int]], adapters: list[str], new: int) -> dict[str, Any]:
        """One batch; PEFT sends each row through its own adapter."""
        start = time.perf_counter()
        lengths = self._generate(
            prompts, new, adapter_names=[self._names[folder] for folder in adapters]
        )
        return {"seconds": time.perf_counter() - start, "lengths": lengths}

    def switch(self) -> dict[str, Any]:
        """Seconds of each change of adapter."""
        seconds = []
        for name in self._names.values():
            start = time.perf_counter()
            self._model.set_adapter(name)
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], new: int, **mixed: list[str]) -> list[int]:
        ids = torch.tensor(prompts)
        out = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **mixed,
        )
        return [out.shape[1] - ids.shape[1]] * len(prompts)


def _start() -> tuple[Any, Mapping[str, Callable[..., Any]]]:
    settings = json.loads(sys.argv[1])
    peft = Peft(settings["base"], settings["folders"])
    operations: dict[str, Callable[..., Any]] = {
        "sequential": peft.sequential,
        "mixed": peft.mixed,
        "switch": peft.switch,
    }
    return {}, operations


if __name__ == "__main__":
    serve(_start)
