"""The figures as they come: the file is whole after every one, whatever ends the run."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.marks import MARKS


@dataclass(frozen=True, slots=True)
class Figure:
    """One ratio of `marks`: what was measured, and what it is made of."""

    number: str
    value: float
    rows: int = 0
    """Of the step; 0 where it is of none in particular."""
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        of = f", {self.rows} rows" if self.rows else ""
        return f"{self.number} {MARKS[self.number].ratio}{of}"

    def reaches(self, bar: float | None) -> bool | None:
        if bar is None:
            return None
        return self.value >= bar if MARKS[self.number].higher else self.value <= bar

    def as_json(self) -> dict[str, Any]:
        must, stretch = MARKS[self.number].bars(self.rows)
        return {
            "name": self.name,
            "value": self.value,
            "must": must,
            "stretch": stretch,
            "better": "higher" if MARKS[self.number].higher else "lower",
            "holds": self.reaches(must),
            "reaches_stretch": self.reaches(stretch),
            "parts": self.parts,
        }

    def __str__(self) -> str:
        must, stretch = MARKS[self.number].bars(self.rows)
        verdict = {True: "holds", False: "MISSED", None: ""}[self.reaches(must)]
        wanted = "" if must is None else f" (must {must}, stretch {stretch})"
        parts = ", ".join(
            f"{key} {part:.3f}" if isinstance(part, float) else f"{key} {part}"
            for key, part in self.parts.items()
        )
        return f"{self.name}: {self.value:.3f}{wanted} {verdict} {parts}"


class Results:
    """Checks and rows of figures, written to a file as they come."""

    def __init__(self, path: Path, about: dict[str, Any], *, seconds: float) -> None:
        self._path = path
        self._until = time.monotonic() + seconds
        self._document: dict[str, Any] = {"about": about, "checks": {}, "rows": {}}

    def go_on(self) -> None:
        """Keep what an earlier process of this run wrote."""
        found = json.loads(self._path.read_text())
        self._document["checks"], self._document["rows"] = found["checks"], found["rows"]
        for row in self._document["rows"].values():
            if row.pop("running", False):
                row["failed"] = "the process ended"

    @property
    def left(self) -> float:
        return self._until - time.monotonic()

    @property
    def rows(self) -> Collection[str]:
        """That were measured, or tried."""
        return self._document["rows"].keys()

    @property
    def families(self) -> Collection[str]:
        """That were checked."""
        return self._document["checks"].keys()

    def note(self, key: str, value: Any) -> None:
        self._document["about"][key] = value
        self.write()

    def check(self, family: str, found: Iterable[Any]) -> bool:
        """Write what the checks of one family of kernels find; whether the process can go on."""
        checks = self._document["checks"][family] = []
        try:
            for check in found:
                checks.append({"name": check.name, "error": check.error, "holds": check.holds})
                print(f"check {family}: {check}", flush=True)
                self.write()
        except Exception as error:
            traceback.print_exc()
            checks.append({"name": f"{type(error).__name__}: {error}", "holds": False})
            self.write()
            return False
        return True

    def wrong(self, families: Iterable[str]) -> list[str]:
        """Those of which not every check holds, or that have none."""
        checks = self._document["checks"]
        return [
            family
            for family in families
            if not checks.get(family) or not all(check["holds"] for check in checks[family])
        ]

    @property
    def complete(self) -> bool:
        """Whether every check holds, and every row that was asked for is measured to its end."""
        rows = self._document["rows"].values()
        ended = all(not row.keys() & {"skipped", "failed", "running"} for row in rows)
        return ended and not self.wrong(self.families)

    def skip(self, name: str, reason: str) -> None:
        self._document["rows"][name] = {"skipped": reason}
        print(f"{name}: skipped, {reason}", flush=True)
        self.write()

    def row(self, name: str, measure: Callable[[], Iterable[Figure]], *, needs: float) -> bool:
        """Measure a row unless time is up; False when it failed, which the row then says."""
        if self.left < needs:
            self.skip(name, f"{self.left:.0f} s left")
            return True
        start = time.monotonic()
        row: dict[str, Any] = {"running": True, "figures": []}
        self._document["rows"][name] = row
        self.write()
        try:
            for figure in measure():
                row["figures"].append(figure.as_json())
                print(f"{name}: {figure}", flush=True)
                self.write()
        except Exception as error:
            traceback.print_exc()
            row["failed"] = f"{type(error).__name__}: {error}"
        del row["running"]
        row["seconds"] = round(time.monotonic() - start, 1)
        self.write()
        return "failed" not in row

    def write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._document, indent=1) + "\n")
        partial.replace(self._path)
