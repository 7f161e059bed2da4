"""vLLM for CPU at its best settings here. Run by its own interpreter, which knows no lorapool.

Compiled, tcmalloc and Intel's OpenMP preloaded where its environment has them, as many LoRA slots
as a batch has adapters. No prefix cache: nobody has one here, and prompts are never repeated.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.cpu.wire import serve

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
PRELOADED = ("libtcmalloc_minimal.so.4", "libiomp5.so")


def _start() -> tuple[Any, Mapping[str, Callable[..., Any]]]:
    from vllm import LLM, SamplingParams, __version__
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    settings = json.loads(sys.argv[1])
    slots = settings["max_loras"]
    lora = {"max_loras": slots, "max_lora_rank": 8, "max_cpu_loras": 64} if slots else {}
    llm = LLM(
        model=settings["base"],
        dtype="bfloat16",
        enable_lora=bool(slots),
        enable_prefix_caching=False,
        enforce_eager=False,
        max_model_len=settings["max_len"],
        max_num_seqs=settings["at_once"],
        **lora,
    )
    numbers: dict[str, int] = {}

    def request(folder: str) -> Any:
        if not folder:
            return None
        number = numbers.setdefault(folder, len(numbers) + 1)
        return LoRARequest(str(number), number, folder)

    def generate(prompts: list[list[int]], adapters: list[str], new: int) -> dict[str, Any]:
        sampling = SamplingParams(
            temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False
        )
        requests = [request(folder) for folder in adapters]
        start = time.perf_counter()
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
            sampling,
            lora_request=requests if any(adapters) else None,
            use_tqdm=False,
        )
        seconds = time.perf_counter() - start
        lengths = [len(output.outputs[0].token_ids) for output in outputs]
        return {"seconds": seconds, "lengths": lengths}

    return {"version": __version__}, {"generate": generate}


if __name__ == "__main__":
    serve(_start)
