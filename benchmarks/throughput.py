"""How fast are 16 requests on 16 distinct adapters, beside no adapters and beside PEFT?

Ours and PEFT's run in one process on the same NF4 base and the same adapters (rank 8 on all
linears, random), alternating, greedy, 32-token prompts, 24 new tokens. Figures are medians over
the repetitions; only the ratios mean anything on a shared machine. Writes
`results/throughput.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from adapter_store.bases import register_base
from adapter_store.commit import Publisher
from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from adapter_store.validate import read_adapter_dir
from inference_node.config import EngineConfig
from inference_node.engine.build import build_engine
from inference_node.engine.loop import EngineLoop
from inference_node.model.default_base import ensure_default_base
from inference_node.request import Completed, Event, Failed, Request, Stopping

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine

REQUESTS, PROMPT, NEW, RANK = 16, 32, 24, 8
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RESULT = Path(__file__).parent / "results" / "throughput.json"


def write_adapter(folder: Path, modules: dict[str, tuple[int, int]], *, seed: int) -> Path:
    """A random rank-8 adapter on every linear, as peft writes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (out, width) in modules.items():
        a = torch.randn(RANK, width, generator=generator) * width**-0.5
        b = torch.randn(out, RANK, generator=generator) * 0.02
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": RANK,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(LINEARS),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class Ours:
    """The engine without its network edge."""

    def __init__(self, base: Path, store: MemoryStore) -> None:
        # Every repetition reads the same prompts, and is to read them in full.
        config = EngineConfig(base_model=str(base), pool_bytes=256 * 2**20, prefix_cache=False)
        self.engine: EngineLoop = build_engine(config, reader=Reader(store))
        self.engine.start()
        self._count = 0

    def run(self, prompts: Sequence[Sequence[int]], adapters: Sequence[str]) -> float:
        """Tokens a second over all requests, sent at once."""
        left = threading.Semaphore(0)
        failures: list[Event] = []

        def on_event(event: Event) -> None:
            if isinstance(event, Failed):
                failures.append(event)
            if isinstance(event, Completed | Failed):
                left.release()

        start = time.perf_counter()
        for prompt, adapter in zip(prompts, adapters, strict=True):
            self._count += 1
            request = Request(
                request_id=str(self._count),
                tenant="default",
                adapter=adapter,
                prompt=tuple(prompt),
                stopping=Stopping(max_new_tokens=NEW, ignore_eos=True),
            )
            self.engine.submit(request, on_event)
        for _ in prompts:
            left.acquire()
        if failures:
            raise SystemExit(f"a request failed: {failures[0]}")
        return len(prompts) * NEW / (time.perf_counter() - start)


class Peft:
    """The loop a PEFT user writes: switch, generate, switch, generate.

    It runs in a process of its own, so that neither system's OpenMP workers slow the other down.
    """

    def __init__(self, base: Path, folders: Sequence[Path]) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve_peft, args=(theirs, base, list(folders)))
        self._process.start()
        self._ours.recv()

    def run(self, prompts: Sequence[Sequence[int]]) -> float:
        """Tokens a second over all requests, one after the other."""
        self._ours.send(prompts)
        rate: float = self._ours.recv()
        return rate

    def close(self) -> None:
        self._ours.send(None)
        self._process.join()


@torch.inference_mode()
def _serve_peft(pipe: Connection, base: Path, folders: Sequence[Path]) -> None:
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    loaded = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantisation, dtype=torch.bfloat16
    )
    model: Any = PeftModel.from_pretrained(loaded, folders[0], adapter_name="a0")
    for index, folder in enumerate(folders[1:], start=1):
        model.load_adapter(folder, adapter_name=f"a{index}")
    model.eval()
    pipe.send("ready")
    while (prompts := pipe.recv()) is not None:
        start = time.perf_counter()
        for index, prompt in enumerate(prompts):
            model.set_adapter(f"a{index}")
            ids = torch.tensor([list(prompt)])
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )
        pipe.send(len(prompts) * NEW / (time.perf_counter() - start))


def measure(repetitions: int, peft_requests: int) -> dict[str, Any]:
    """All systems in turn, `repetitions` times."""
    base = ensure_default_base()
    store = MemoryStore()
    ours = Ours(base, store)
    register_base(store, ours.engine.card)
    publisher = Publisher(
        store, lock=None, announcer=None, actor="bench", warn=lambda message: None
    )
    names = [f"a{index}" for index in range(REQUESTS)]
    generator = torch.Generator().manual_seed(7)
    prompts = torch.randint(100, 40_000, (REQUESTS, PROMPT), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [
            write_adapter(Path(scratch) / name, dict(ours.engine.card.modules), seed=seed)
            for seed, name in enumerate(names)
        ]
        for name, folder in zip(names, folders, strict=True):
            local = read_adapter_dir(folder, card=ours.engine.card)
            publisher.publish("default", name, local)
        peft = Peft(base, folders)
        peft.run(prompts[:1])
    none = [""] * REQUESTS
    ours.run(prompts, names)
    ours.run(prompts, none)
    rates: dict[str, list[float]] = {"distinct16": [], "base16": [], "peft_sequential": []}
    for repetition in range(repetitions):
        print(f"repetition {repetition + 1} of {repetitions}", file=sys.stderr)
        rates["distinct16"].append(ours.run(prompts, names))
        rates["base16"].append(ours.run(prompts, none))
        rates["peft_sequential"].append(peft.run(prompts[:peft_requests]))
    ours.engine.stop()
    peft.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "machine": machine(),
        "conditions": {
            "requests": REQUESTS,
            "prompt_tokens": PROMPT,
            "new_tokens": NEW,
            "rank": RANK,
            "repetitions": repetitions,
            "peft_requests_a_repetition": peft_requests,
        },
        "tokens_per_second": {
            name: [round(v, 1) for v in values] for name, values in rates.items()
        },
        "ratios": {
            "distinct16_over_peft_sequential": medians["distinct16"] / medians["peft_sequential"],
            "distinct16_over_base16": statistics.median(
                ours_rate / base_rate
                for ours_rate, base_rate in zip(rates["distinct16"], rates["base16"], strict=True)
            ),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--peft-requests", type=int, default=4, help="a repetition, of the 16")
    arguments = parser.parse_args()
    result = measure(arguments.repetitions, arguments.peft_requests)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for name, values in result["tokens_per_second"].items():
        print(f"{name:32} {statistics.median(values):8.1f} tokens/s  (median of {len(values)})")
    for name, ratio in result["ratios"].items():
        print(f"{name:32} {ratio:8.2f}")


if __name__ == "__main__":
    main()
