"""The C kernels compute what the torch references beside their contracts do, in place."""

from __future__ import annotations

import ctypes
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from adapter_store.memory import MemoryStore
from adapter_store.reader import Reader
from inference_node.config import EngineConfig
from inference_node.engine.build import build_engine
from inference_node.errors import BadConfiguration
from inference_node.kernels.backend import Backend, choose
from inference_node.kernels.greedy import likeliest
from inference_node.kernels.lora import (
    TILE_ROWS,
    GroupPool,
    GroupShape,
    LoraPlan,
    RowPages,
    SlotPages,
    expand_add_rows,
    shrink_rows,
)
from inference_node.kernels.native import Library, NoCompiler, build, in_panels, load
from inference_node.kernels.native.structures import Step
from inference_node.kernels.paged_attention import (
    AttentionPlan,
    Chunk,
    decode_attention,
    paged_attention,
)
from inference_node.model.layers import StepLora

CPU = torch.device("cpu")
SHAPES = (GroupShape(24, (16, 8, 8)), GroupShape(576, (1536, 1536)), GroupShape(40, (520,)))
DTYPES = (torch.float32, torch.bfloat16)
PAGES, LAYERS, LAYER = 40, 3, 1
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}
"""Of a row's norm: sums in another order, and one rounding of the result."""


def assert_close_rows(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found.float() - expected.float()).flatten(1).norm(dim=1)
    limit = TOLERANCE[expected.dtype] * expected.float().flatten(1).norm(dim=1)
    assert (error <= limit).all(), (error / limit).max()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    try:
        return load(tmp_path_factory.mktemp("kernels"))
    except NoCompiler as error:
        pytest.skip(str(error))


def pool_of(shape: GroupShape, dtype: torch.dtype, *, readable: Sequence[int]) -> GroupPool:
    """Random pages in one layer; whatever no row may read is NaN."""
    torch.manual_seed(shape.in_features)
    a = torch.full((PAGES, LAYERS, *shape.a_page), torch.nan, dtype=dtype)
    b = torch.full((PAGES, LAYERS, *shape.b_page), torch.nan, dtype=dtype)
    for page in readable:
        a[page, LAYER] = torch.randn(shape.a_page) / 4
        b[page, LAYER] = torch.randn(shape.b_page) / 4
    return GroupPool(shape, a, b)


def mixed_slots() -> list[SlotPages | None]:
    """Ranks 1 to 64 side by side on scattered pages, and rows of the base between them."""
    pages = random.Random(7).sample(range(1, PAGES), 19)
    slots: list[SlotPages | None] = []
    for stamp, count in enumerate((1, 0, 2, 8, 0, 3, 1, 4)):
        own, pages = tuple(pages[:count]), pages[count:]
        slots.append(SlotPages((own,), 0.5 + stamp, stamp) if count else None)
    return slots


def rows_of(slots: Sequence[SlotPages | None], *, each: int = 1) -> RowPages:
    segments = [(index * each, each, slot) for index, slot in enumerate(slots)]
    plan = LoraPlan.build(segments, groups=1, device=CPU, dtype=torch.float32, in_place=True)
    assert plan is not None
    group = plan.groups[0]
    assert group is not None
    assert group.single is not None
    assert group.blocks == ()
    return group.single


def readable(slots: Sequence[SlotPages | None]) -> list[int]:
    return [page for slot in slots if slot is not None for page in slot.pages[0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("each", [1, 3, 7, 2 * TILE_ROWS + 1])
def test_rows_of_mixed_ranks_read_their_own_pages_and_no_other(
    library: Library, shape: GroupShape, dtype: torch.dtype, each: int
) -> None:
    slots = mixed_slots()
    rows, pool = rows_of(slots, each=each), pool_of(shape, dtype, readable=readable(slots))
    count = len(slots) * each
    x = torch.randn(count, shape.in_features).to(dtype)
    expected, found = (torch.randn(count, shape.out_total).to(dtype) for _ in "ab")
    found.copy_(expected)

    h = shrink_rows(x, pool, LAYER, rows)
    expand_add_rows(expected, h, pool, LAYER, rows)
    fast = library.shrink_rows(x, pool, LAYER, rows)
    assert_close_rows(fast, h)
    library.expand_add_rows(found, fast, pool, LAYER, rows)
    assert_close_rows(found, expected)


@pytest.mark.parametrize("fault", ["page", "scale", "row"])
def test_control_a_route_that_is_off_by_one_is_seen(library: Library, fault: str) -> None:
    slots = [SlotPages(((page,),), page / 4, page) for page in range(1, 9)]
    rows, pool = rows_of(slots), pool_of(SHAPES[0], torch.float32, readable=readable(slots))
    x = torch.randn(len(slots), SHAPES[0].in_features)
    right = library.shrink_rows(x, pool, LAYER, rows)
    moved = {name: getattr(rows, name) for name in ("first", "row", "page", "scale", "tile")}
    moved[fault] = moved[fault].roll(1)
    wrong = library.shrink_rows(x, pool, LAYER, RowPages(**moved, widest=rows.widest))
    assert not torch.allclose(right, wrong, atol=1e-2)


def test_rows_that_read_pages_in_place_and_rows_through_blocks_come_to_the_same_answer(
    library: Library,
) -> None:
    shape, slots = SHAPES[0], mixed_slots()
    lengths = [1, 1, 2, 1, 7, 5, 1, TILE_ROWS + 1]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    segments = list(zip(starts, lengths, slots, strict=True))
    pool = pool_of(shape, torch.float32, readable=readable(slots))
    x = torch.randn(sum(lengths), shape.in_features)
    found = []
    for backend in (choose("reference", device=CPU, folder=Path()), _native(library)):
        step = StepLora(backend)
        step.pools = (pool,)
        step.begin(
            LoraPlan.build(
                segments,
                groups=1,
                device=CPU,
                dtype=torch.float32,
                in_place=backend.rows is not None,
            )
        )
        y = torch.zeros(sum(lengths), shape.out_total)
        step.add(y, x, 0, LAYER)
        found.append(y)
    assert found[0].isfinite().all()
    assert_close_rows(found[1], found[0])


def _native(library: Library) -> Backend:
    return Backend.native(library)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 16), (8, 1, 128), (6, 2, 80), (2, 1, 256)]
)
def test_decode_attention_is_the_references_for_every_shape_of_heads(
    library: Library, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> None:
    contexts, block = [1, 15, 16, 17, 100], 16
    plan, caches = _cache(contexts, kv_heads, dim, block, dtype)
    q = torch.randn(len(contexts), heads, dim).to(dtype)
    found = library.decode_attention(q, *caches, plan, dim**-0.5)
    expected = decode_attention(q, *caches, plan, dim**-0.5)
    assert_close_rows(found, expected)


def test_what_lies_past_a_context_in_its_last_block_reaches_nobody(library: Library) -> None:
    contexts, block = [3, 18], 16
    plan, (k, v) = _cache(contexts, 2, 16, block, torch.float32)
    q = torch.randn(2, 4, 16)
    clean = library.decode_attention(q, k, v, plan, 0.25)
    for row, context in enumerate(contexts):
        last = int(plan.decode_blocks[row, (context - 1) // block])
        k[last, context % block :] = torch.nan
        v[last, context % block :] = torch.inf
    k[0] = v[0] = torch.nan
    assert torch.equal(library.decode_attention(q, k, v, plan, 0.25), clean)


def test_a_value_that_is_not_finite_shows_in_its_own_row_and_in_no_other(library: Library) -> None:
    plan, (k, v) = _cache([20, 20], 2, 16, 16, torch.float32)
    q = torch.randn(2, 4, 16)
    clean = library.decode_attention(q, k, v, plan, 0.25)
    k[int(plan.decode_blocks[0, 0]), 5] = torch.nan
    found = library.decode_attention(q, k, v, plan, 0.25)
    assert found[0].isnan().all()
    assert torch.equal(found[1], clean[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_short_prompt_run_row_by_row_comes_to_what_it_does_on_its_own(
    library: Library, dtype: torch.dtype
) -> None:
    block, kv_heads, dim = 16, 3, 64
    _, caches = _cache([40, 9, 70], kv_heads, dim, block, dtype)
    chunks = [Chunk((1, 2, 3), 39, 1), Chunk((4,), 0, 9), Chunk((5, 6, 7, 8, 9), 33, 37)]
    q = torch.randn(47, 3 * kv_heads, dim).to(dtype)
    found, expected = (
        paged_attention(
            q,
            *caches,
            AttentionPlan.build(chunks, block_tokens=block, device=CPU, by_row=by_row),
            scale=dim**-0.5,
            decode=decode,
        )
        for by_row, decode in ((70, library.decode_attention), (1, decode_attention))
    )
    assert_close_rows(found, expected)


def test_chunks_that_run_row_by_row_must_come_first() -> None:
    chunks = [Chunk((1, 2), 0, 20), Chunk((3,), 0, 9)]
    with pytest.raises(ValueError, match="must come first"):
        AttentionPlan.build(chunks, block_tokens=16, device=CPU, by_row=10)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 16, 17, 40])
@pytest.mark.parametrize(("out", "width"), [(16, 32), (304, 98), (1024, 576)])
def test_the_output_embedding_is_torchs_product(
    library: Library, rows: int, out: int, width: int
) -> None:
    if not library.multiplies_nf4:
        pytest.skip("the C product needs AVX512-BF16")
    weight, x = torch.randn(out, width).bfloat16(), torch.randn(rows, width).bfloat16()
    panels = in_panels(weight)
    found = library.dense_linear(x, panels)
    assert_close_rows(found, (x.double() @ weight.double().T).bfloat16())
    assert torch.equal(found[-1:], library.dense_linear(x[-1:].clone(), panels))
    with pytest.raises(ValueError, match="in panels"):
        library.dense_linear(x, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 33, 500])
def test_the_likeliest_token_is_the_first_of_equals(
    library: Library, dtype: torch.dtype, width: int
) -> None:
    torch.manual_seed(width)
    # Few values, so that most rows have equals; below zero, so that nothing is won by default.
    logits = (torch.randint(0, 9, (40, width)) - 20).to(dtype)
    assert torch.equal(library.likeliest(logits), likeliest(logits))
    assert torch.equal(likeliest(logits), logits.float().argmax(dim=-1))
    for flipped in (logits.flip(0), logits[:1], logits[:0]):
        assert torch.equal(library.likeliest(flipped.contiguous()), likeliest(flipped))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_no_likeliest_token(
    library: Library, dtype: torch.dtype, bad: float
) -> None:
    for place in (0, 17, 35):
        logits = torch.ones(3, 36, dtype=dtype)
        logits[1, place] = bad
        for one in (library.likeliest, likeliest):
            assert one(logits).tolist() == [0, -1, 0]


def test_shapes_and_types_that_do_not_fit_are_refused_before_a_pointer_is_used(
    library: Library,
) -> None:
    slots = [SlotPages(((1,),), 1.0, 1)]
    rows, pool = rows_of(slots), pool_of(SHAPES[0], torch.float32, readable=[1])
    x, y = torch.zeros(1, 24), torch.zeros(1, 32)
    h = library.shrink_rows(x, pool, LAYER, rows)
    for bad in (torch.zeros(1, 25), torch.zeros(24), x.double(), torch.zeros(24, 1).T[:, ::2]):
        with pytest.raises(ValueError, match=r"rows are|dtypes"):
            library.shrink_rows(bad, pool, LAYER, rows)
    with pytest.raises(ValueError, match="h is"):
        library.expand_add_rows(y, h[:, :1], pool, LAYER, rows)
    plan, caches = _cache([4], 1, 16, 16, torch.float32)
    with pytest.raises(ValueError, match="dtypes"):
        library.decode_attention(torch.zeros(1, 1, 16).bfloat16(), *caches, plan, 1.0)
    wide, caches = _cache([4], 1, 512, 16, torch.float32)
    with pytest.raises(ValueError, match="more than fit"):
        library.decode_attention(torch.zeros(1, 1, 512), *caches, wide, 1.0)


def test_a_library_is_compiled_once_and_found_again(library: Library, tmp_path: Path) -> None:
    first = build(tmp_path)
    before = first.stat().st_mtime_ns
    assert build(tmp_path) == first
    assert first.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_without_a_compiler_the_torch_kernels_serve_and_the_banner_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    backend = choose("auto", device=CPU, folder=tmp_path)
    assert backend.rows is None
    assert "no C compiler: no-such-compiler is not on PATH" in backend.name
    with pytest.raises(NoCompiler):
        choose("native", device=CPU, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = shutil.which("false")
    assert false is not None
    monkeypatch.setenv("CC", false)
    with pytest.raises(NoCompiler, match="does not compile"):
        build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_native_kernels_asked_for_and_not_to_be_had_are_a_configuration_error(
    tiny_config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BadConfiguration, match="no-such-compiler"):
        build_engine(replace(tiny_config, kernels="native"), reader=Reader(MemoryStore()))


def _cache(
    contexts: Sequence[int], kv_heads: int, dim: int, block: int, dtype: torch.dtype
) -> tuple[AttentionPlan, tuple[torch.Tensor, torch.Tensor]]:
    """A cache of random keys and values, every sequence's blocks scattered over it."""
    torch.manual_seed(dim)
    needed = [-(-context // block) for context in contexts]
    free = random.Random(dim).sample(range(1, sum(needed) + 4), sum(needed))
    chunks = []
    for context, count in zip(contexts, needed, strict=True):
        table, free = tuple(free[:count]), free[count:]
        chunks.append(Chunk(table, context - 1, 1))
    shape = (sum(needed) + 4, block, kv_heads, dim)
    k, v = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    k[0] = v[0] = 0
    return AttentionPlan.build(chunks, block_tokens=block, device=CPU), (k, v)


def apart(library: Library, rows: Sequence[tuple[Sequence[int], int]], *, threads: int) -> bool:
    """What `model.h` says of rows of (blocks, context), each of which writes its last place."""
    size, width = 4, max(len(table) for table, _ in rows)
    table = torch.tensor([[*blocks, *[0] * (width - len(blocks))] for blocks, _ in rows])
    context = torch.tensor([length for _, length in rows])
    slots = torch.tensor(
        [blocks[(n - 1) // size] * size + (n - 1) % size for blocks, n in rows], dtype=torch.int64
    )
    step = Step(
        rows=len(rows),
        slots=slots.data_ptr(),
        table=table.data_ptr(),
        context=context.data_ptr(),
        table_width=width,
        block_tokens=size,
    )
    call = library._object.rows_are_apart
    call.argtypes, call.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_int
    return bool(call(ctypes.byref(step), threads))


def test_rows_wait_for_each_other_where_one_reads_what_another_writes(library: Library) -> None:
    if not library.multiplies_nf4:
        pytest.skip("whole steps need AVX512-BF16")
    own = [([1, 2], 6), ([3], 4), ([4, 5], 8), ([6], 1)]
    shared = [([1, 2], 6), ([1, 3], 7), ([4, 5], 8), ([6], 1)]
    prompt = [([1, 2], 4), ([1, 2], 5), ([1, 2], 6), ([6], 1)]
    assert apart(library, own, threads=2)
    assert apart(library, shared, threads=2), "a full block is written by nobody"
    assert not apart(library, prompt, threads=2)
    assert not apart(library, own, threads=3), "few rows are shared in parts"
    assert not apart(library, [([n], 2) for n in range(1, 66)], threads=2)


def test_large_pages_hold_what_they_are_given(library: Library) -> None:
    generator = torch.Generator().manual_seed(5)
    given = [
        torch.randint(0, 255, (size,), generator=generator, dtype=torch.uint8)
        for size in (1, 63, 40 << 20, 31 << 20, 2 << 20, 5)
    ]
    given.append(torch.randn(3, 16, 2, generator=generator).to(torch.bfloat16).transpose(0, 1))
    kept = [library.keep(tensor) for tensor in given]
    for before, after in zip(given, kept, strict=True):
        assert torch.equal(before, after)
        assert after.dtype == before.dtype
        assert after.is_contiguous()
        assert after.data_ptr() % 64 == 0
    spans = sorted((one.data_ptr(), one.data_ptr() + one.nbytes) for one in kept)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
