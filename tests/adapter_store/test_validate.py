"""What may enter the store, and what a node will not load even if it did."""

from __future__ import annotations

import json
import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_store.errors import Incompatible, InvalidAdapter
from adapter_store.lora_config import parse_config, spec_of
from adapter_store.memory import MemoryStore
from adapter_store.tensor_file import read_layout
from adapter_store.validate import check_content, check_sizes, read_adapter_dir
from tests.adapter_store.adapter_files import (
    CARD,
    config,
    header_of,
    pack,
    pack_header,
    tensors,
    write_adapter,
)
from tests.chaos.bad_inputs.case import BadInput
from tests.chaos.bad_inputs.configs import CONFIGS
from tests.chaos.bad_inputs.containers import CONTAINERS
from tests.chaos.bad_inputs.judge import judge
from tests.chaos.bad_inputs.semantics import SEMANTICS

GOOD = pack(tensors())
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def check(weights: bytes, **changes: Any) -> object:
    body = json.dumps(config(**changes)).encode()
    files = {"adapter_config.json": body, "adapter_model.safetensors": weights}
    listed = parse_config(body).allow_listed()
    return check_content(files, config=listed, card_modules=CARD.modules)


def changed(**edits: np.ndarray | None) -> bytes:
    """GOOD with tensors replaced or (None) left out, by `<module leaf>_<factor>`."""
    arrays = tensors()
    for edit, array in edits.items():
        leaf, factor = edit.rsplit("_", 1)
        name = f"base_model.model.model.layers.0.self_attn.{leaf}.lora_{factor}.weight"
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array
    return pack(arrays)


def with_first(value: float) -> bytes:
    arrays = tensors()
    arrays[FIRST][0, 0] = value
    return pack(arrays)


def with_header(edit: Callable[[dict[str, Any]], None]) -> bytes:
    arrays = tensors()
    header = header_of(arrays)
    edit(header)
    return pack_header(header, b"".join(a.tobytes() for a in arrays.values()))


def test_a_peft_adapter_passes_with_its_spec_and_views(tmp_path: Path) -> None:
    local = read_adapter_dir(write_adapter(tmp_path / "a"), card=CARD)

    assert local.ignored == ("README.md",)
    assert sorted(local.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert local.base == CARD.fingerprint
    assert local.spec.scale == 4.0
    assert local.spec.allow_listed() == {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 16,
        "use_rslora": False,
        "target_modules": ["q_proj", "v_proj"],
    }
    checked = check_content(
        local.files, config=local.spec.allow_listed(), card_modules=CARD.modules
    )
    expected = tensors()
    assert len(checked.modules) == 4
    assert set(checked.tensors) == set(expected)
    for name, array in checked.tensors.items():
        np.testing.assert_array_equal(array, expected[name])
        assert not array.flags.owndata
        assert not array.flags.writeable
    np.testing.assert_array_equal(checked.a("model.layers.0.self_attn.q_proj"), expected[FIRST])


def test_bfloat16_comes_as_its_bits() -> None:
    arrays = {name: (a.view(np.uint32) >> 16).astype(np.uint16) for name, a in tensors().items()}
    body = json.dumps(config()).encode()
    checked = check_content(
        {"adapter_config.json": body, "adapter_model.safetensors": pack(arrays)},
        config=parse_config(body).allow_listed(),
        card_modules=CARD.modules,
    )
    assert checked.dtype == "BF16"
    np.testing.assert_array_equal(checked.tensors[FIRST], arrays[FIRST])


def test_the_scale_follows_rslora_and_alpha_is_normalised() -> None:
    spec = parse_config(json.dumps(config(use_rslora=True, lora_alpha=16.0)).encode())
    assert spec.scale == 8.0
    assert json.dumps(spec.allow_listed()["lora_alpha"]) == "16"
    half = parse_config(json.dumps(config(lora_alpha=0.5)).encode())
    assert half.allow_listed()["lora_alpha"] == 0.5


def test_patterns_layers_and_exclusions_are_content_and_read_back_the_same() -> None:
    asked = config(
        rank_pattern={"1.self_attn.q_proj": 2, "q_proj": 8},
        alpha_pattern={"v_proj": 3.0, "0.self_attn.q_proj": 0.5},
        layers_to_transform=1,
        exclude_modules=["v_proj"],
    )
    spec = parse_config(json.dumps(asked).encode())
    listed = spec.allow_listed()
    assert listed["rank_pattern"] == [["1.self_attn.q_proj", 2], ["q_proj", 8]]
    assert listed["alpha_pattern"] == [["0.self_attn.q_proj", 0.5], ["v_proj", 3]]
    assert (listed["layers_to_transform"], listed["exclude_modules"]) == ([1], ["v_proj"])
    assert spec_of(json.loads(json.dumps(listed, sort_keys=True))) == spec


def test_the_name_that_fits_first_counts_whatever_the_record_sorts() -> None:
    longest = parse_config(json.dumps(config(rank_pattern={"x.q": 2, "q": 8})).encode())
    shadowed = parse_config(json.dumps(config(rank_pattern={"q": 8, "x.q": 2})).encode())
    for spec, rank in ((longest, 2), (shadowed, 8)):
        again = spec_of(spec.allow_listed())
        assert [each.rank_of("l.0.x.q") for each in (spec, again)] == [rank, rank]
        assert [each.rank_of("l.0.y.q") for each in (spec, again)] == [8, 8]
        assert [each.rank_of("l.0.xx.r") for each in (spec, again)] == [4, 4]


def test_a_rank_pattern_decides_shapes_and_sizes() -> None:
    arrays = {**tensors(leaves=("q_proj",), rank=2), **tensors(leaves=("v_proj",))}
    body = json.dumps(config(rank_pattern={"q_proj": 2})).encode()
    listed = parse_config(body).allow_listed()
    files = {"adapter_config.json": body, "adapter_model.safetensors": pack(arrays)}
    check_content(files, config=listed, card_modules=CARD.modules)
    values = 2 * 2 * (16 + 8) + 2 * 4 * (8 + 8)
    sizes = {"adapter_config.json": len(body), "adapter_model.safetensors": 2 * values + 9}
    check_sizes(sizes, config=listed, card_modules=CARD.modules)
    sizes["adapter_model.safetensors"] = 2 * values
    with pytest.raises(InvalidAdapter, match=f"cannot hold {values} values"):
        check_sizes(sizes, config=listed, card_modules=CARD.modules)
    with pytest.raises(Incompatible, match="not"):
        check(GOOD, rank_pattern={"q_proj": 2})


def test_an_alpha_pattern_bounds_the_values_it_scales() -> None:
    check(GOOD, alpha_pattern={"q_proj": 4})
    with pytest.raises(InvalidAdapter, match=r"q_proj\.lora_B holds"):
        check(GOOD, alpha_pattern={"q_proj": 2**40})


def test_all_linear_means_every_module_of_the_card() -> None:
    with pytest.raises(Incompatible, match="4 of 12 tensors are missing"):
        check(GOOD, target_modules="all-linear")
    check(pack(tensors(leaves=("q_proj", "k_proj", "v_proj"))), target_modules="all-linear")
    check(GOOD, target_modules="all-linear", exclude_modules=["k_proj"])


def test_layers_the_base_lacks_and_exclusions_of_all_are_incompatible() -> None:
    half = {name: array for name, array in tensors().items() if ".layers.1." in name}
    check(pack(half), layers_to_transform=[1])
    with pytest.raises(Incompatible, match="no layer 2"):
        check(pack(half), layers_to_transform=[1, 2])
    with pytest.raises(Incompatible, match="targets no module"):
        check(GOOD, exclude_modules=["q_proj", "v_proj"])


def test_where_the_model_was_loaded_from_is_not_content() -> None:
    one = parse_config(json.dumps(config(base_model_name_or_path="/a", lora_dropout=0)).encode())
    two = parse_config(json.dumps(config(base_model_name_or_path="/b")).encode())
    assert one == two


@pytest.mark.parametrize(
    "case", [*CONTAINERS, *SEMANTICS, *CONFIGS], ids=lambda case: f"{case.group}: {case.what}"
)
def test_a_folder_that_cannot_be_served_is_refused_as_its_table_says(
    case: BadInput, tmp_path: Path
) -> None:
    assert judge(case, MemoryStore(), tmp_path, adapter="tone").wrong == ()


def test_a_target_the_base_lacks_is_incompatible_and_says_what_there_is() -> None:
    with pytest.raises(Incompatible, match="c_attn") as caught:
        check(GOOD, target_modules=["c_attn"])
    assert "q_proj" in caught.value.hint


def test_targets_match_whole_name_components_only() -> None:
    with pytest.raises(Incompatible, match="'proj'"):
        check(GOOD, target_modules=["proj"])


def test_one_idle_module_among_changed_ones_is_served() -> None:
    check(changed(q_proj_B=np.zeros((16, 4), np.float32)))


def test_a_no_op_adapter_is_refused_with_its_count() -> None:
    with pytest.raises(InvalidAdapter, match="does not change 4 of its 4 declared modules"):
        check(pack({n: a * 0 if "lora_B" in n else a for n, a in tensors().items()}))


def test_an_adapter_scaled_down_to_nothing_is_refused() -> None:
    with pytest.raises(InvalidAdapter, match="does not change"):
        check(GOOD, lora_alpha=1e-300)


def test_a_versions_config_holds_nothing_but_content() -> None:
    body = json.dumps(config()).encode()
    files = {"adapter_config.json": body, "adapter_model.safetensors": GOOD}
    listed = {**parse_config(body).allow_listed(), "base_model_name_or_path": "tiny"}
    with pytest.raises(InvalidAdapter, match="more than what is content"):
        check_content(files, config=listed, card_modules=CARD.modules)


@pytest.mark.parametrize(
    "sizes",
    [
        {"adapter_config.json": 100},
        {"adapter_config.json": 70_000, "adapter_model.safetensors": len(GOOD)},
        {"adapter_config.json": 100, "adapter_model.safetensors": 300},
        {"adapter_config.json": 100, "adapter_model.safetensors": 400 * 2**20},
        {"adapter_config.json": 100, "adapter_model.safetensors": 2**40},
    ],
)
def test_declared_sizes_that_cannot_be_this_adapter_are_refused(sizes: dict[str, int]) -> None:
    listed = parse_config(json.dumps(config()).encode()).allow_listed()
    with pytest.raises(InvalidAdapter):
        check_sizes(sizes, config=listed, card_modules=CARD.modules)
    check_sizes(
        {"adapter_config.json": 100, "adapter_model.safetensors": len(GOOD)},
        config=listed,
        card_modules=CARD.modules,
    )


def test_a_config_nested_to_the_limit_of_json_is_refused_with_a_typed_error() -> None:
    for depth in range(600, 1000):
        body = json.dumps(config())[:-1] + ',"x":' + "[" * depth + "]" * depth + "}"
        with pytest.raises(InvalidAdapter):
            parse_config(body.encode())


def test_a_large_sparse_file_is_refused_by_its_header_and_never_read(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    os.truncate(folder / "adapter_model.safetensors", 512 * 1024 * 1024)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidAdapter, match="bytes trail"):
            read_adapter_dir(folder, card=CARD)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_the_scale_cannot_push_accepted_values_past_float16() -> None:
    big = changed(q_proj_B=np.full((16, 4), 60_000, np.float32))
    check(big, lora_alpha=4)
    with pytest.raises(InvalidAdapter, match="over the limit"):
        check(big, lora_alpha=16)


def test_a_node_refuses_files_that_differ_from_the_versions_config() -> None:
    body = json.dumps(config(lora_alpha=32)).encode()
    with pytest.raises(InvalidAdapter, match="does not say"):
        check_content(
            {"adapter_config.json": body, "adapter_model.safetensors": GOOD},
            config=parse_config(json.dumps(config()).encode()).allow_listed(),
            card_modules=CARD.modules,
        )


def test_a_rank_over_the_bases_limit_is_incompatible(tmp_path: Path) -> None:
    card = type(CARD)(
        fingerprint=CARD.fingerprint, name="t", architecture="T", modules=CARD.modules, max_rank=2
    )
    with pytest.raises(Incompatible, match="rank 4"):
        read_adapter_dir(write_adapter(tmp_path / "a"), card=card)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    for path in (folder, folder / "adapter_model.bin"):
        with pytest.raises(InvalidAdapter) as caught:
            read_adapter_dir(path, card=CARD)
        assert "safe_serialization" in caught.value.hint


def test_links_devices_and_oversize_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_adapter(tmp_path / "target")

    linked = write_adapter(tmp_path / "linked")
    (linked / "adapter_model.safetensors").unlink()
    (linked / "adapter_model.safetensors").symlink_to(target / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapter, match="is a link"):
        read_adapter_dir(linked, card=CARD)

    piped = write_adapter(tmp_path / "piped")
    (piped / "adapter_config.json").unlink()
    os.mkfifo(piped / "adapter_config.json")
    with pytest.raises(InvalidAdapter, match="not a regular file"):
        read_adapter_dir(piped, card=CARD)

    for number, name in enumerate(("adapter_config.json", "adapter_model.safetensors")):
        nested = write_adapter(tmp_path / f"nested{number}")
        (nested / name).unlink()
        (nested / name).mkdir()
        with pytest.raises(InvalidAdapter, match="not a regular file"):
            read_adapter_dir(nested, card=CARD)

    bound = write_adapter(tmp_path / "bound")
    (bound / "adapter_config.json").unlink()
    monkeypatch.chdir(bound)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("adapter_config.json")
    with pytest.raises(InvalidAdapter, match="not a regular file"):
        read_adapter_dir(bound, card=CARD)

    large = write_adapter(tmp_path / "large")
    os.truncate(large / "adapter_model.safetensors", 512 * 1024 * 1024 + 1)
    with pytest.raises(InvalidAdapter, match="is over"):
        read_adapter_dir(large, card=CARD)


def test_what_a_missing_file_is_called_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json"):
        read_adapter_dir(tmp_path, card=CARD)
    with pytest.raises(InvalidAdapter, match="not a folder"):
        read_adapter_dir(tmp_path / "absent", card=CARD)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_file_is_refused_typed_or_read_alike_by_safetensors(data: st.DataObject) -> None:
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, 1200))] = data.draw(st.integers(0, 255))
    cut = bytes(body[: data.draw(st.integers(0, len(body))) or None])
    try:
        layout = read_layout(cut)
    except InvalidAdapter:
        return
    theirs = dict(safetensors.deserialize(cut))  # type: ignore[no-untyped-call]
    assert {n: list(s.shape) for n, s in layout.items()} == {
        n: t["shape"] for n, t in theirs.items()
    }
