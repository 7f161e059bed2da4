"""The change of B A * scale, against the products formed in full."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adapter_store import weight_change as under_test
from adapter_store.lora_config import parse_config
from adapter_store.validate import AdapterTensors, check_content
from adapter_store.weight_change import Factors, difference, product_norm, weight_change
from tests.adapter_store.adapter_files import CARD, config, header_of, pack, pack_header, tensors


def content(weights: bytes, **changes: object) -> AdapterTensors:
    body = json.dumps(config(**changes)).encode()
    files = {"adapter_config.json": body, "adapter_model.safetensors": weights}
    return check_content(files, config=parse_config(body).allow_listed(), card_modules=CARD.modules)


def dense(content: AdapterTensors, module: str) -> np.ndarray:
    """scale * B @ A in full, zeros where the adapter has no such module."""
    if module not in content.modules:
        out, width = CARD.modules[module]
        return np.zeros((out, width))
    a, b = content.a(module), content.b(module)
    if content.dtype == "BF16":
        a, b = ((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b))
    return content.spec.scale * (b.astype(np.float64) @ a.astype(np.float64))


def bfloat16(arrays: dict[str, np.ndarray]) -> bytes:
    bits = {name: (x.view(np.uint32) >> 16).astype(np.uint16) for name, x in arrays.items()}
    data = b"".join(x.tobytes() for x in bits.values())
    return pack_header(header_of(bits, dtype="BF16"), data)


BEFORE = content(pack(tensors(seed=1)))
AFTER: dict[str, AdapterTensors] = {
    "other values": content(pack(tensors(seed=2))),
    "another rank": content(pack(tensors(seed=2, rank=6)), r=6),
    "a smaller rank": content(pack(tensors(seed=2, rank=1)), r=1),
    "another alpha": content(pack(tensors(seed=1)), lora_alpha=8),
    "rank-stabilised": content(pack(tensors(seed=1)), use_rslora=True),
    "other modules": content(
        pack(tensors(seed=3, leaves=("q_proj", "k_proj"))), target_modules=["q_proj", "k_proj"]
    ),
    "bfloat16": content(bfloat16(tensors(seed=2))),
    "float16": content(pack({name: x.astype(np.float16) for name, x in tensors(seed=2).items()})),
}


def wrong(found: AdapterTensors) -> list[str]:
    """Modules whose norms are not those of the products formed in full."""
    told = weight_change(BEFORE, found)
    bad = []
    for one in (*told.common, *told.added, *told.removed):
        old, new = dense(BEFORE, one.module), dense(found, one.module)
        norms = [float(np.linalg.norm(x)) for x in (old, new, new - old)]
        if not np.allclose([one.before, one.after, one.change], norms, rtol=1e-12, atol=0):
            bad.append(one.module)
    return bad


@pytest.mark.parametrize("how", AFTER)
def test_norms_are_those_of_the_products_formed_in_full(how: str) -> None:
    assert wrong(AFTER[how]) == []


def test_a_forgotten_scale_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded bug."""
    monkeypatch.setattr(
        under_test,
        "_scaled",
        lambda content, module: Factors(
            content.b(module).astype(np.float64), content.a(module).astype(np.float64)
        ),
    )
    assert len(wrong(AFTER["another alpha"])) == 4


def test_modules_are_sorted_by_how_much_they_changed_and_the_total_is_of_all() -> None:
    told = weight_change(BEFORE, AFTER["other modules"])
    shares = [one.relative for one in told.common]
    assert shares == sorted(shares, key=lambda share: -(share or 0.0))
    assert {one.module.rsplit(".", 1)[1] for one in told.added} == {"k_proj"}
    assert {one.module.rsplit(".", 1)[1] for one in told.removed} == {"v_proj"}
    assert all(one.relative is None for one in told.added)
    assert all(one.relative == 1.0 for one in told.removed)
    every = [dense(AFTER["other modules"], m) - dense(BEFORE, m) for m in CARD.modules]
    assert told.total.change == pytest.approx(np.sqrt(sum(np.sum(x**2) for x in every)))


def test_equal_content_has_changed_by_exactly_nothing() -> None:
    told = weight_change(BEFORE, content(pack(tensors(seed=1))))
    assert [one.change for one in told.common] == [0.0] * 4
    assert told.total.relative == 0.0


@pytest.mark.parametrize("step", [1e-6, 1e-9, 1e-12])
def test_a_small_change_keeps_its_digits(step: float) -> None:
    random = np.random.default_rng(0)
    b, a = random.standard_normal((300, 8)), random.standard_normal((8, 200))
    nudge = random.standard_normal(b.shape)
    moved = product_norm(difference(Factors(b, a), Factors(b + step * nudge, a)))
    assert moved == pytest.approx(step * float(np.linalg.norm(nudge @ a)), rel=1e-3)


def test_the_same_product_from_other_factors_has_hardly_changed() -> None:
    random = np.random.default_rng(0)
    b, a = random.standard_normal((300, 8)), random.standard_normal((8, 200))
    turn = np.linalg.qr(random.standard_normal((8, 8)))[0]
    same = Factors(b @ turn, turn.T @ a)
    assert product_norm(difference(Factors(b, a), same)) < 1e-12 * product_norm(same)
