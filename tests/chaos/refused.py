"""T13: every bad input of the tables is refused as the table says, quickly, leaving no trace."""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

from adapter_store.memory import MemoryStore
from adapter_store.objects import ObjectStore
from tests.chaos.bad_inputs.case import BadInput
from tests.chaos.bad_inputs.configs import CONFIGS
from tests.chaos.bad_inputs.containers import CONTAINERS
from tests.chaos.bad_inputs.in_flight import Seen, forgeries, observe, tiny_node
from tests.chaos.bad_inputs.judge import Verdict, judge
from tests.chaos.bad_inputs.names import NAMES_AND_KEYS
from tests.chaos.bad_inputs.records import RECORDS
from tests.chaos.bad_inputs.semantics import SEMANTICS
from tests.chaos.bad_inputs.signatures import SIGNED
from tests.chaos.bench import Bench
from tests.chaos.row import Row

TABLES = (CONTAINERS, SEMANTICS, CONFIGS, NAMES_AND_KEYS, RECORDS, SIGNED)
AT_LEAST = {"container": 36, "semantics": 25, "config": 25, "names": 24, "records": 20}

ANYTHING = re.compile(r"(?s).+")


@dataclass(frozen=True, slots=True)
class Control:
    """A check taken out, and a case that nothing else may refuse in quite that way."""

    without: str
    check: str
    """Where it is made, below adapter_store."""
    instead: object
    case: str


def _nothing(*arguments: object, **named: object) -> None:
    return


CONTROLS = (
    Control("overlaps and holes", "tensor_file._check_gapless", _nothing, "a hole between tensors"),
    Control("keys that appear twice", "lora_config._no_twins", dict, "a tensor twice"),
    Control("the kind of a file", "validate._check_plain", _nothing, "a named pipe"),
    Control("shapes", "validate._check_shapes", _nothing, "A transposed"),
    Control("finite values", "validate._check_values", _nothing, "bfloat16 NaN, last"),
    Control("the allow-list", "lora_config._check_unused", _nothing, "DoRA"),
    Control("the grammar of names", "names._ID", ANYTHING, "a folder inside"),
    Control("where chunks lie", "log.check_plan", _nothing, "a chunk of another tenant"),
    Control("the digest of content", "record._digest_of", lambda version: version.vdig,
            "a digest of other content"),
    Control("signatures", "provenance._is_valid", lambda *arguments: True,
            "changed after it was signed"),
    Control("the size of a record", "record.MAX_RECORD_BYTES", 2**30, "over 256 KiB"),
)  # fmt: skip


def run(scale: float, seed: int, bench: Bench) -> Row:
    """Every case of the tables, always; scale thins out what is forged beside a node's answers."""
    cases = [case for table in TABLES for case in table]
    counts = Counter(case.group for case in cases)
    violations = [
        f"the table of {group} has {counts[group]} cases, not {least}"
        for group, least in AT_LEAST.items()
        if counts[group] < least
    ]
    with bench.store() as store:
        verdicts = list(_judged(cases, store, bench.folder / "refused"))
    violations += [text for verdict in verdicts for text in verdict.wrong]
    with bench.store() as store:
        some = cases[seed % _stride(scale) :: _stride(scale)]
        seen = _in_flight(some, store, bench.folder / "node")
    violations += [f"in flight: {text}" for text in seen.wrong]
    return Row(
        id="T13",
        cases=len(cases),
        unit="bad inputs",
        violations=violations,
        controls={
            f"without {control.without}": _caught(control, bench.folder / f"control-{number}")
            for number, control in enumerate(CONTROLS)
        }
        | _controls_in_flight(bench.folder / "node-control"),
        faults=dict(counts),
        figures={
            "forged_beside_streams": seen.forged,
            "streams": seen.streams,
            "offers": sum(verdict.offers for verdict in verdicts),
            "slowest_ms": round(max(v.seconds for v in verdicts) * 1000, 1),
            "peak_mib": round(max(v.peak for v in verdicts) / 2**20, 1),
        },
    )


def _judged(cases: Sequence[BadInput], store: ObjectStore, folder: Path) -> Iterator[Verdict]:
    for number, case in enumerate(cases):
        yield judge(case, store, folder / str(number), adapter=f"case-{number}")


def _caught(control: Control, folder: Path) -> bool:
    """Whether the case is refused with the check, and its verdict differs without it."""
    case = next(case for table in TABLES for case in table if case.what == control.case)
    sound = judge(case, MemoryStore(), folder / "with", adapter="control")
    with ExitStack() as patches:
        for holder, name in _bindings(control.check):
            patches.enter_context(mock.patch.object(holder, name, control.instead))
        spoilt = judge(case, MemoryStore(), folder / "without", adapter="control")
    return bool(spoilt.wrong) and not sound.wrong


def _bindings(check: str) -> list[tuple[ModuleType, str]]:
    """Every module that calls this check by its name."""
    module, name = check.split(".")
    original = getattr(importlib.import_module(f"adapter_store.{module}"), name)
    return [
        (holder, name)
        for path, holder in list(sys.modules.items())
        if path.startswith("adapter_store.") and getattr(holder, name, None) is original
    ]


def _stride(scale: float) -> int:
    return max(1, round(1 / max(scale, 0.05)))


def _in_flight(cases: Sequence[BadInput], store: ObjectStore, folder: Path) -> Seen:
    with tiny_node(store, folder) as node:
        return observe(node, list(forgeries(cases, folder / "forged")), folder)


def _controls_in_flight(folder: Path) -> dict[str, bool]:
    """A node without a check serves what it must not."""
    cases = [case for case in CONFIGS if case.what == "DoRA"]
    with mock.patch("adapter_store.lora_config._check_unused", _nothing):
        served = _in_flight(cases, MemoryStore(), folder)
    return {"a node without the allow-list": any("served" in text for text in served.wrong)}
