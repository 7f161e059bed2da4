"""How far two adapters are apart: the change of each module's product, without forming it.

A module adds `scale * B @ A` to its weight, `[out, in]` and mostly too large to hold for every
module at once. Its Frobenius norm needs only small matrices: with thin QR factorisations
`B = Qb Rb` and `A.T = Qa Ra`, `|B A| = |Rb Ra.T|`, which is `[r, r]`. The difference of two
products is one product of twice the rank,

    s2 B2 A2 - s1 B1 A1  =  [s2 B2 - s1 B1, s1 B1] @ [A2; A2 - A1]

written with the factors' own differences, so that equal factors give exactly 0 and a small change
keeps its digits. R factors instead of Gram matrices keep them also where the two terms cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_store.tensor_file import Array
from adapter_store.validate import AdapterTensors

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """Frobenius norms of one module's product, and of the difference of the two."""

    module: str
    before: float
    after: float
    change: float

    @property
    def relative(self) -> float | None:
        """The change as a share of what was there; None when nothing was there."""
        return self.change / self.before if self.before else None


@dataclass(frozen=True, slots=True)
class WeightChange:
    """Every module that either adapter has; the one that changed most comes first."""

    common: tuple[ModuleChange, ...]
    added: tuple[ModuleChange, ...]
    removed: tuple[ModuleChange, ...]

    @property
    def total(self) -> ModuleChange:
        """All modules as one long vector."""
        every = (*self.common, *self.added, *self.removed)
        return ModuleChange(
            "",
            math.hypot(*(one.before for one in every)),
            math.hypot(*(one.after for one in every)),
            math.hypot(*(one.change for one in every)),
        )


def weight_change(before: AdapterTensors, after: AdapterTensors) -> WeightChange:
    """Compare two checked adapters module by module."""
    changes = [
        module_change(
            module,
            _scaled(before, module) if module in before.modules else None,
            _scaled(after, module) if module in after.modules else None,
        )
        for module in dict.fromkeys((*before.modules, *after.modules))
    ]
    common = set(before.modules).intersection(after.modules)
    changes.sort(key=lambda one: (-(one.relative or 0.0), -one.change, one.module))
    return WeightChange(
        common=tuple(c for c in changes if c.module in common),
        added=tuple(c for c in changes if c.module not in before.modules),
        removed=tuple(c for c in changes if c.module not in after.modules),
    )


@dataclass(frozen=True, slots=True)
class Factors:
    """A product `b @ a` in double precision, the scale folded into `b`."""

    b: Doubles
    """[out, r]"""
    a: Doubles
    """[r, in]"""


def module_change(module: str, before: Factors | None, after: Factors | None) -> ModuleChange:
    """Norms of `before`, `after` and `after - before`; None stands for a product of zeros."""
    old = product_norm(before) if before else 0.0
    new = product_norm(after) if after else 0.0
    moved = product_norm(difference(before, after)) if before and after else old + new
    return ModuleChange(module, old, new, moved)


def product_norm(factors: Factors) -> float:
    """`|b @ a|` in the Frobenius norm."""
    left: Doubles = np.linalg.qr(factors.b, mode="r")  # type: ignore[assignment]
    right: Doubles = np.linalg.qr(factors.a.T, mode="r")  # type: ignore[assignment]
    return float(np.linalg.norm(left @ right.T))


def difference(before: Factors, after: Factors) -> Factors:
    """`after - before` as one product of twice the larger rank."""
    rank = max(before.b.shape[1], after.b.shape[1])
    b1, a1 = _padded(before, rank)
    b2, a2 = _padded(after, rank)
    return Factors(np.hstack((b2 - b1, b1)), np.vstack((a2, a2 - a1)))


def _padded(factors: Factors, rank: int) -> tuple[Doubles, Doubles]:
    """The same product with zeros up to `rank`."""
    more = rank - factors.b.shape[1]
    return np.pad(factors.b, ((0, 0), (0, more))), np.pad(factors.a, ((0, more), (0, 0)))


def _scaled(content: AdapterTensors, module: str) -> Factors:
    return Factors(
        content.spec.scale_of(module) * _doubles(content.b(module), content.dtype),
        _doubles(content.a(module), content.dtype),
    )


def _doubles(array: Array, dtype: str) -> Doubles:
    if dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)
