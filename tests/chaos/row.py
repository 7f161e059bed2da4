"""What a row found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row's result; `cases` is the figure that the row stands for."""

    id: str
    cases: int
    unit: str
    """What is counted in `cases`, in the plural."""
    violations: Sequence[str]
    """Every broken promise, in words that name its case and seed."""
    controls: Mapping[str, bool]
    """Each seeded bug, and whether this row noticed it."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often each kind of fault was injected."""
    seeds: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What was measured beside the count."""
    notes: str = ""

    @property
    def missed(self) -> list[str]:
        """The controls that went unnoticed."""
        return [name for name, caught in self.controls.items() if not caught]

    @property
    def holds(self) -> bool:
        return not self.violations and not self.missed and self.cases > 0

    def line(self) -> str:
        """Cases, faults injected, violations, controls caught."""
        caught = len(self.controls) - len(self.missed)
        faults = ", ".join(f"{kind} {count:,}" for kind, count in self.faults.items())
        return (
            f"{self.id:4} {self.cases:>9,} {self.unit:24} {sum(self.faults.values()):>7,} faults  "
            f"{len(self.violations)} violations  {caught} of {len(self.controls)} controls caught"
            + (f"  ({faults})" if faults else "")
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "cases": self.cases,
            "unit": self.unit,
            "violations": len(self.violations),
            "violation_texts": list(self.violations[:_SHOWN]),
            "controls": len(self.controls),
            "controls_caught": len(self.controls) - len(self.missed),
            "controls_missed": self.missed,
            "faults": dict(self.faults),
            "seeds": self.seeds,
            "figures": dict(self.figures),
            "notes": self.notes,
        }
