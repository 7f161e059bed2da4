"""Where the Triton kernels run in tests, and how near they must come."""

from __future__ import annotations

import pytest
import torch

from tests.triton_mode import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}
"""Of a row's norm: sums in another order, and one rounding; the interpreter rounds downwards."""


def assert_close_rows(found: torch.Tensor, expected: torch.Tensor, *, roundings: int = 1) -> None:
    error = (found.float() - expected.float()).flatten(1).norm(dim=1)
    limit = roundings * TOLERANCE[expected.dtype] * expected.float().flatten(1).norm(dim=1)
    assert (error <= limit).all(), (error / limit).max()


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch memory comes full of NaN, as it may on a card."""
    original = torch.Tensor.new_empty

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        made: torch.Tensor = original(*args, **kwargs)  # type: ignore[arg-type]
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
