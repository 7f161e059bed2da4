"""The figures by name: what each is, what it should reach, and how a series becomes one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """A figure, what it should reach, and what it would be a delight to reach."""

    key: str
    what: str
    reach: float
    stretch: float
    less_is_better: bool = False

    def verdict(self, value: float) -> str:
        """`stretch`, `reach`, or `no`."""
        for name, bar in (("stretch", self.stretch), ("reach", self.reach)):
            if (value <= bar) if self.less_is_better else (value >= bar):
                return name
        return "no"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours at one load over a system at another."""

    load: str
    system: str
    other: str


TARGETS = (
    Target(
        "distinct16_over_peft_sequential",
        "16 requests on 16 adapters / PEFT set_adapter loop",
        25,
        45,
    ),
    Target("distinct16_over_peft_mixed", "the same / PEFT adapter_names batch of 16", 9, 15),
    Target("distinct16_over_vllm", "the same / vLLM CPU with 16 LoRA slots", 3, 5),
    Target("base16_over_vllm", "16 requests without adapters / vLLM CPU", 1.5, 2.5),
    Target("single_adapter_over_vllm", "one request with an adapter / vLLM CPU", 2, 4),
    Target(
        "single_over_llamacpp",
        "one request without adapter / llama.cpp server Q4_1",
        0.4,
        0.8,
    ),
    Target("distinct16_over_base16", "16 adapters / none, own engine", 0.80, 0.92),
    Target("distinct64_over_base64", "64 adapters / none, own engine", 0.75, 0.90),
    Target("mixed_rank_over_r8", "ranks 8, 16, 32, 64 evenly / all 8, 16 requests", 0.6, 0.75),
    Target("flat_1000_over_16", "Zipf over 1,000 adapters, 128 fit / 16 resident", 0.90, 0.97),
    Target("cliff_ttft", "TTFT, twice as many hot adapters as fit / all fit", 3, 1.5, True),
    Target(
        "swap_itl_p99", "p99 token latency, an adapter swapped a second / quiet", 1.3, 1.1, True
    ),
    Target("switch_us", "another resident adapter in the next step, us", 200, 20, True),
    Target("host_overhead_share", "of a 16-row step, outside its four parts", 0.25, 0.12, True),
)
RATIOS = {
    "distinct16_over_peft_sequential": Ratio("distinct16", "peft_sequential", "distinct16"),
    "distinct16_over_peft_mixed": Ratio("distinct16", "peft_mixed", "distinct16"),
    "distinct16_over_vllm": Ratio("distinct16", "vllm", "distinct16"),
    "base16_over_vllm": Ratio("base16", "vllm_base", "base16"),
    "single_adapter_over_vllm": Ratio("distinct1", "vllm", "distinct1"),
    "single_over_llamacpp": Ratio("base1", "llamacpp", "base1"),
    "distinct16_over_base16": Ratio("distinct16", "ours", "base16"),
    "distinct64_over_base64": Ratio("distinct64", "ours", "base64"),
    "mixed_rank_over_r8": Ratio("mixed16", "ours", "distinct16"),
}


def target(key: str) -> Target:
    return next(one for one in TARGETS if one.key == key)


def figure(key: str, values: Sequence[float], **about: Any) -> dict[str, Any]:
    """The entry of a figure measured once a repetition: their median, and how far they spread."""
    aim = target(key)
    value = statistics.median(values)
    return {
        "value": rounded(value),
        "reach": aim.reach,
        "stretch": aim.stretch,
        "met": aim.verdict(value),
        "spread": [rounded(min(values)), rounded(max(values))],
        "repetitions": len(values),
        "what": aim.what,
        **about,
    }


def rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
