"""The engine's figures on a CPU, beside PEFT, vLLM and llama.cpp in the same run.

Every system runs in a process of its own, stopped while another is measured. Greedy, no early end,
every answer checked for its length; SmolLM2-135M-Instruct, 4-bit for ours and PEFT, bf16 for vLLM,
Q4_1 for llama.cpp; random rank-8 adapters on all linears. Ratios are of rates taken in the same
repetition, figures are medians over the repetitions. VLLM_PYTHON names an interpreter that has
vLLM, LLAMA_SERVER a llama.cpp server; without one its rows are skipped. Prints one table, writes
results/cpu.json and results/cpu.svg; with --rows the other rows' earlier entries stay, each marked
as kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.cpu import alternating, steady, tiers
from benchmarks.cpu.alternating import Alternating
from benchmarks.cpu.figures import RATIOS, TARGETS, rounded
from benchmarks.cpu.floors import Floor
from benchmarks.cpu.report import print_table, write
from benchmarks.cpu.systems import AT_ONCE, Shape, Systems
from benchmarks.cpu.wire import Worker
from inference_node.model.default_base import ensure_default_base

RESULT = Path(__file__).resolve().parents[1] / "results" / "cpu.json"
GIB = 2**30
Rows = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    shape: Shape
    repetitions: int
    peft_requests: int
    flat_adapters: int


FULL = Plan(Shape(prompt=32, new=64), repetitions=5, peft_requests=4, flat_adapters=1000)
QUICK = Plan(Shape(prompt=32, new=16), repetitions=2, peft_requests=2, flat_adapters=160)


def main() -> int:
    arguments = _arguments()
    plan = QUICK if arguments.quick else FULL
    if arguments.new:
        plan = replace(plan, shape=replace(plan.shape, new=arguments.new))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lorapool-cpu-") as scratch:
        systems = Systems(ensure_default_base(), Path(scratch), threads=arguments.threads)
        with systems.open():
            found = _measure(systems, plan, arguments.rows)
    found["configuration"] = {
        "prompt_tokens": plan.shape.prompt,
        "new_tokens": plan.shape.new,
        "sampling": "greedy, ignore_eos, every answer's length checked",
        "prompts": "random token ids, never repeated, equal for all systems of a repetition",
        "requests": "all at once; those of flat_ and cliff_ rows 16 at a time",
        "adapters": "random, rank 8, all linears, bf16",
        "repetitions": plan.repetitions,
        "peft_set_adapter_requests_a_repetition": plan.peft_requests,
        "threads": arguments.threads,
        "quick": arguments.quick,
        "minutes": rounded((time.monotonic() - started) / 60, 3),
    }
    whole = write(arguments.out, found, merge=arguments.rows != tuple(t.key for t in TARGETS))
    print_table(whole)
    print(f"written to {arguments.out}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    keys = tuple(one.key for one in TARGETS)
    parser.add_argument("--quick", action="store_true", help="two minutes, no figure to keep")
    parser.add_argument("--rows", type=_rows, default=keys, help="keys, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--new", type=int, default=0, help="tokens of each answer")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp's server")
    return parser.parse_args()


def _rows(text: str) -> Rows:
    keys = tuple(part.strip() for part in text.split(",") if part.strip())
    known = [one.key for one in TARGETS]
    unknown = sorted(set(keys) - set(known))
    if unknown:
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {known}")
    return keys


def _measure(systems: Systems, plan: Plan, rows: Rows) -> dict[str, Any]:
    _say("memory and arithmetic rates")
    rates = systems.rates()
    ours = systems.ours("ours", pool_adapters=192, host_adapters=192)
    floor = Floor(ours.facts, rates)
    found: dict[str, Any] = {
        "figures": {},
        "rates": {name: rounded(value) for name, value in rates.items()},
    }
    names = [f"a{index}" for index in range(64)]
    ours.ask("publish", names=names, ranks=[8], seed=0, folder=str(systems.scratch / "adapters"))
    ratios = [key for key in rows if key in RATIOS]
    if ratios:
        _ratios(systems, ours, plan, ratios, floor, found)
    _steady(systems, ours, plan, rows, floor, found)
    found["memory"] = _memory(systems, ours)
    found["versions"] = systems.versions
    found["skipped"] = _skipped(systems, found["figures"], rows)
    for process in (ours, *systems.running.values()):
        process.close()
    _tiers(systems, plan, rows, floor, found)
    return found


def _ratios(
    systems: Systems,
    ours: Worker,
    plan: Plan,
    keys: list[str],
    floor: Floor,
    found: dict[str, Any],
) -> None:
    wanted = alternating.needed(keys)
    whole = len(keys) == len(RATIOS)
    if whole:
        wanted += [("ours", load) for load in alternating.CONCURRENCY]
    if "mixed_rank_over_r8" in keys:
        names = [f"m{index}" for index in range(16)]
        ours.ask("publish", names=names, ranks=[8, 16, 32, 64], seed=200, folder="")
    _start(systems, {system for system, _ in wanted}, plan)
    _say("throughput, all systems in turn")
    run = Alternating(systems, ours, plan.shape, peft_requests=plan.peft_requests)
    series = run.run(list(dict.fromkeys(wanted)), repetitions=plan.repetitions, curve=whole)
    for key in keys:
        entry = alternating.ratio_figure(key, series, plan.shape, floor)
        if entry is not None:
            found["figures"][key] = entry
    if whole:
        found["concurrency"] = alternating.concurrency(series, plan.shape, floor)
        found["curve"] = alternating.curve(series)


def _start(systems: Systems, wanted: set[str], plan: Plan) -> None:
    adapters = [systems.folder(f"a{index}") for index in range(AT_ONCE)]
    longest = plan.shape.prompt + plan.shape.new + 32
    if any(system.startswith("peft") for system in wanted):
        _say("starting PEFT")
        systems.start_peft(adapters)
    for name, slots in (("vllm", AT_ONCE), ("vllm_base", 0)):
        if name in wanted:
            _say(f"starting {name}, which compiles for a minute")
            systems.start_vllm(name, max_loras=slots, max_len=longest)
    if "llamacpp" in wanted:
        _say("starting llama.cpp")
        systems.start_llamacpp()


def _steady(
    systems: Systems,
    ours: Worker,
    plan: Plan,
    rows: Rows,
    floor: Floor,
    found: dict[str, Any],
) -> None:
    figures = found["figures"]
    if "host_overhead_share" in rows:
        _say("the parts of a step")
        if ours.facts["steps_in_one_call"]:
            figures["host_overhead_share"], found["step"] = steady.step(
                ours, plan.shape, floor, repetitions=plan.repetitions
            )
        else:
            systems.skipped["host_overhead_share"] = "steps are not one native call here"
    if "switch_us" in rows:
        _say("switches")
        figures["switch_us"] = steady.switch(
            ours, plan.shape, repetitions=plan.repetitions, peft=systems.running.get("peft")
        )
    if "swap_itl_p99" in rows:
        _say("swaps under load")
        figures["swap_itl_p99"] = steady.swap(ours, plan.shape, floor, repetitions=plan.repetitions)


def _tiers(systems: Systems, plan: Plan, rows: Rows, floor: Floor, found: dict[str, Any]) -> None:
    if "cliff_ttft" in rows:
        _say("the cliff")
        found["figures"]["cliff_ttft"] = tiers.cliff(
            systems, plan.shape, floor, repetitions=plan.repetitions
        )
    if "flat_1000_over_16" in rows:
        _say(f"{plan.flat_adapters} adapters")
        entry, points = tiers.flat(
            systems,
            plan.shape,
            floor,
            adapters=plan.flat_adapters,
            repetitions=plan.repetitions,
        )
        found["figures"]["flat_1000_over_16"] = entry
        found["zipf_curve"] = points


def _memory(systems: Systems, ours: Worker) -> dict[str, Any]:
    """Resident bytes of each process, and what our own are for."""
    facts = ours.ask("facts")
    page = facts["pool"]["page_bytes"]
    processes = {"ours": ours.process, **{n: s.process for n, s in systems.running.items()}}
    return {
        "resident_mib": {
            name: round(process.resident_bytes / 2**20) for name, process in processes.items()
        },
        "ours_of_which_the_store_mib": rounded(facts["store_bytes"] / 2**20),
        "ours_base_mib": rounded(facts["base_bytes"] / 2**20),
        "ours_pool_mib": rounded(page * facts["pool"]["pages_total"] / 4 / 2**20),
        "ours_kernel": facts["kernel"],
        "adapter_bytes": page,
        "adapters_per_gib": GIB // page,
    }


def _skipped(systems: Systems, figures: Mapping[str, Any], rows: Rows) -> dict[str, str]:
    """Rows that a missing system leaves out, with the reason."""
    found = {}
    for key in rows:
        if key in RATIOS and key not in figures:
            system = RATIOS[key].system
            process = "peft" if system.startswith("peft_") else system
            found[key] = systems.skipped.get(process, f"{process} did not run")
        elif key in systems.skipped:
            found[key] = systems.skipped[key]
    return found


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
