"""What each figure must reach, and what would be better: the table of docs/decisions/0014, once.

`python -m benchmarks.gpu.marks` prints it for that page.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mark:
    """A ratio's bars by number of rows; 0 where it is of none in particular."""

    ratio: str
    must: dict[int, float]
    stretch: dict[int, float]
    higher: bool = True
    """Whether more is better."""

    def bars(self, rows: int) -> tuple[float | None, float | None]:
        return self.must.get(rows), self.stretch.get(rows)


def _even(numbers: tuple[int, ...], must: float, stretch: float) -> tuple[dict[int, float], ...]:
    return dict.fromkeys(numbers, must), dict.fromkeys(numbers, stretch)


MARKS = {
    "1": Mark(
        "linears: bitsandbytes' modules / ours",
        {1: 0.97, 4: 0.97, 8: 1.1, 16: 1.1, 32: 1.0, 64: 1.4},
        {1: 1.2, 4: 1.2, 8: 2.0, 16: 2.0, 32: 1.8, 64: 2.5},
    ),
    "1b": Mark(
        "the same with 4.6 GB of bfloat16",
        {8: 1.3, 16: 1.3, 32: 1.3, 64: 1.8},
        {8: 1.8, 16: 1.8, 32: 1.8, 64: 2.8},
    ),
    "2": Mark(
        "linears: all bfloat16 / ours",
        {1: 1.3, 4: 1.3, 8: 0.75, 16: 0.75, 32: 0.65, 64: 0.65},
        {1: 1.8, 4: 1.8, 8: 1.2, 16: 1.2, 32: 1.0, 64: 1.0},
    ),
    "3": Mark(
        "step operator by operator / captured", {1: 4.0, 8: 3.0, 32: 3.0}, {1: 6.0, 8: 4.0, 32: 4.0}
    ),
    "4": Mark(
        "step with one hot r16 adapter / base",
        {1: 1.30, 32: 1.20, 64: 1.20},
        {1: 1.20, 32: 1.10, 64: 1.10},
        higher=False,
    ),
    "5": Mark(
        "step with all distinct r16 / base",
        {8: 1.35, 32: 1.60, 64: 1.80},
        {8: 1.25, 32: 1.45, 64: 1.60},
        higher=False,
    ),
    "6": Mark("LoRA bytes / time / copy bandwidth, all distinct", *_even((32, 64), 0.45, 0.65)),
    "7": Mark(
        "ranks 8, 16, 32, 64 mixed: paged / padded, time", {64: 0.65}, {64: 0.55}, higher=False
    ),
    "7b": Mark("the same, memory", {64: 0.50}, {64: 0.47}, higher=False),
    "8": Mark(
        "tokens/s: ours / PEFT `adapter_names`, distinct", {8: 10.0, 32: 25.0}, {8: 25.0, 32: 60.0}
    ),
    "9": Mark(
        "tokens/s: ours / PEFT `set_adapter`, distinct", {8: 15.0, 32: 50.0}, {8: 40.0, 32: 120.0}
    ),
    "10": Mark(
        "steps/s: ours / bitsandbytes' modules in our engine",
        {8: 1.1, 32: 1.0, 64: 1.3},
        {8: 1.5, 32: 1.5, 64: 1.8},
    ),
    "11": Mark("step beside a promotion / quiet", {32: 1.10}, {32: 1.03}, higher=False),
    "11b": Mark("promotion / its bytes at the host's rate", {0: 1.5}, {0: 1.2}, higher=False),
    "12": Mark(
        "byte floor / step, all distinct",
        {1: 0.28, 8: 0.28, 32: 0.32, 64: 0.35, 128: 0.42},
        {1: 0.40, 8: 0.40, 32: 0.45, 64: 0.50, 128: 0.58},
    ),
    "13": Mark(
        "share of steady decode in which the card waits", {64: 0.10}, {64: 0.03}, higher=False
    ),
    "layers": Mark("step with transformers' layers / with short ones", {}, {}),
    "capacity": Mark("steps/s: 2,000 small adapters resident / 5", {32: 0.90}, {32: 0.95}),
    "fidelity": Mark("tokens that differ from the reference's", {0: 0.0}, {0: 0.0}, higher=False),
    "swaps": Mark("pages that are not the host's after a swap", {0: 0.0}, {0: 0.0}, higher=False),
    "swaps b": Mark("steps that swaps changed", {0: 0.0}, {0: 0.0}, higher=False),
}


def table() -> list[str]:
    """Lines of Markdown."""
    lines = ["| row | ratio | rows | must | stretch |", "|---|---|---|---|---|"]
    for number, mark in MARKS.items():
        sizes = "; ".join(str(rows) for rows in mark.must if rows)
        bars = [
            "; ".join(f"{value:g}" for value in side.values()) or "reported"
            for side in (mark.must, mark.stretch)
        ]
        order = "at least" if mark.higher else "at most"
        must = f"{order} {bars[0]}" if mark.must else bars[0]
        lines.append(f"| {number} | {mark.ratio} | {sizes} | {must} | {bars[1]} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
