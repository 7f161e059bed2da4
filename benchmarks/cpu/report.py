"""The one table, and the file that holds every figure of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cpu.figures import TARGETS
from benchmarks.cpu.plot import draw
from benchmarks.machine import machine

_REST = ("concurrency", "step", "memory", "curve", "zipf_curve")
_LESS = {one.key for one in TARGETS if one.less_is_better}


def write(out: Path, found: Mapping[str, Any], *, merge: bool) -> dict[str, Any]:
    """Figures under their own keys, then the tables; and the plot beside it.

    With `merge` what was not measured now stays as it was, marked as kept.
    """
    earlier: dict[str, Any] = {}
    if merge and out.exists():
        earlier = json.loads(out.read_text())
    about = machine()
    versions = {**earlier.get("versions", {}), **about.pop("versions"), **found["versions"]}
    entries = {**_kept(earlier), **found["figures"]}
    skipped = {
        key: {"skipped": reason} for key, reason in found["skipped"].items() if key not in entries
    }
    whole: dict[str, Any] = {
        one.key: {**entries, **skipped}[one.key]
        for one in TARGETS
        if one.key in entries or one.key in skipped
    }
    for name in _REST:
        value = found.get(name, earlier.get(name))
        if value is not None:
            whole[name] = value
    whole |= {
        "machine": {**about, **found["rates"]},
        "versions": versions,
        "configuration": found["configuration"],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(whole, indent=2) + "\n")
    curves = _curves(whole)
    if curves:
        draw(out.with_suffix(".svg"), curves, machine=_caption(whole))
    return whole


def _kept(earlier: Mapping[str, Any]) -> dict[str, Any]:
    return {
        one.key: {**earlier[one.key], "kept": True}
        for one in TARGETS
        if "value" in earlier.get(one.key, {})
    }


def _curves(whole: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Ours goes on where a burst ends and traffic over more adapters than requests begins."""
    curves = {name: list(points) for name, points in whole.get("curve", {}).items()}
    bursts = [point for point in curves.get("ours", ()) if point[0] <= 16]
    beyond = [point for point in whole.get("zipf_curve", ()) if point[0] > 16]
    if bursts or beyond:
        curves["ours"] = [*bursts, *beyond]
    return curves


def _caption(whole: Mapping[str, Any]) -> str:
    about, asked = whole["machine"], whole["configuration"]
    return (
        f"SmolLM2-135M, {about['cpu']}, {about['cores']} cores; rank 8 on all linears, "
        f"{asked['prompt_tokens']} + {asked['new_tokens']} tokens; beyond 16: Zipf"
    )


def print_table(whole: Mapping[str, Any]) -> None:
    """Every figure, then what is reported beside them."""
    head = ("figure", "value", "reach", "stretch", "met", "spread", "at floor", "of floor")
    print("{:32} {:>9} {:>8} {:>8} {:>8} {:>19} {:>9} {:>9}".format(*head))
    for one in TARGETS:
        entry = whole.get(one.key)
        if entry is None:
            continue
        if "skipped" in entry:
            print(f"{one.key:32} skipped: {entry['skipped']}")
            continue
        sign = "<=" if one.key in _LESS else ">="
        spread = "{:g} to {:g}".format(*entry["spread"])
        share = entry.get("share_of_floor")
        print(
            f"{one.key:32} {entry['value']:9.4g} {sign + format(one.reach, 'g'):>8} "
            f"{sign + format(one.stretch, 'g'):>8} {entry['met']:>8} {spread:>19} "
            f"{entry['at_floor']:9.4g} {'' if share is None else format(share, '.0%'):>9}"
            f"{'  (kept)' if entry.get('kept') else ''}"
        )
    for row in whole.get("concurrency", ()):
        print(
            f"{row['requests']:3} at once on {row['adapters']:2} adapters: "
            f"{row['tokens_s']:7.1f} tokens/s, TTFT {row['ttft_ms']:6.1f} ms, "
            f"{row['share_of_floor']:.0%} of the floor's {row['floor_tokens_s']:.0f}"
        )
    for name in ("distinct16", "base16"):
        if "step" in whole:
            row = whole["step"][name]
            parts = ("base_linears", "attention", "lora", "lm_head", "rest")
            split = ", ".join(f"{part} {row[part]:.2f}" for part in parts)
            print(f"step of {name}: {row['step']:.2f} ms = {split}; floor {row['floor']:.2f}")
    memory = whole.get("memory", {})
    if memory:
        resident = ", ".join(f"{name} {mib}" for name, mib in memory["resident_mib"].items())
        print(f"resident MiB: {resident}; {memory['adapters_per_gib']} adapters per GiB of pool")
