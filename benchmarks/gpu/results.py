"""The figures as they come: the file is whole after every row, whatever ends the run."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One ratio of docs: what was measured, what must hold, and what it is made of."""

    name: str
    value: float
    must: float | None = None
    stretch: float | None = None
    higher: bool = True
    """Whether more is better."""
    parts: dict[str, Any] = field(default_factory=dict)

    def reaches(self, mark: float | None) -> bool | None:
        if mark is None:
            return None
        return self.value >= mark if self.higher else self.value <= mark

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "must": self.must,
            "stretch": self.stretch,
            "better": "higher" if self.higher else "lower",
            "holds": self.reaches(self.must),
            "reaches_stretch": self.reaches(self.stretch),
            "parts": self.parts,
        }


class Results:
    """Rows of figures, written to a file after each."""

    def __init__(self, path: Path, about: dict[str, Any], *, seconds: float) -> None:
        self._path = path
        self._until = time.monotonic() + seconds
        self._document: dict[str, Any] = {"about": about, "checks": [], "rows": {}}
        self.write()

    @property
    def left(self) -> float:
        return self._until - time.monotonic()

    def note(self, key: str, value: Any) -> None:
        self._document["about"][key] = value
        self.write()

    def check(self, name: str, error: float, *, holds: bool) -> None:
        self._document["checks"].append({"name": name, "error": error, "holds": holds})
        self.write()

    @property
    def checks_hold(self) -> bool:
        return all(check["holds"] for check in self._document["checks"])

    @property
    def complete(self) -> bool:
        """Whether every row that was asked for has figures."""
        return all("figures" in row for row in self._document["rows"].values())

    def row(self, name: str, measure: Callable[[], list[Figure]], *, needs: float) -> None:
        """Measure a row unless time is up; one that fails is a row that says so."""
        if self.left < needs:
            self._document["rows"][name] = {"skipped": f"{self.left:.0f} s left"}
            print(f"{name}: skipped, {self.left:.0f} s left", flush=True)
            self.write()
            return
        start = time.monotonic()
        try:
            figures = measure()
        except Exception as error:
            traceback.print_exc()
            self._document["rows"][name] = {"failed": f"{type(error).__name__}: {error}"}
        else:
            self._document["rows"][name] = {
                "seconds": round(time.monotonic() - start, 1),
                "figures": [figure.as_json() for figure in figures],
            }
            for figure in figures:
                print(_line(name, figure), flush=True)
        self.write()

    def write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._document, indent=1) + "\n")
        partial.replace(self._path)


def _line(row: str, figure: Figure) -> str:
    mark = {True: "holds", False: "MISSED", None: ""}[figure.reaches(figure.must)]
    wanted = "" if figure.must is None else f" (must {figure.must}, stretch {figure.stretch})"
    return f"{row}: {figure.name}: {figure.value:.3f}{wanted} {mark} {figure.parts}"
