"""Whether a folder or downloaded files are a LoRA adapter that a given base model can serve.

The same checks run where an adapter is published and where it is loaded, without torch. What
passes is exact: every declared module present with both factors, nothing besides, all values
finite, and at least one module changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from adapter_store.errors import Incompatible, InvalidAdapter
from adapter_store.lora_config import (
    ALL_LINEAR,
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    LoraSpec,
    layer_of,
    name_endings,
    parse_config,
    spec_of,
)
from adapter_store.record import BaseCard
from adapter_store.tensor_file import (
    CONVERT_HINT,
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    PROBE_BYTES,
    WEIGHTS_FILE,
    Array,
    TensorSlot,
    header_end,
    parse_header,
    peak,
    read_layout,
    view,
)

MAX_ADAPTER_BYTES = 512 * 1024 * 1024
MAX_MAGNITUDE = 65504.0
"""The largest float16: nothing accepted turns into Inf when a node computes in float16."""

SMALLEST_PRODUCT = 2.0**-126
"""The smallest normal float32: below it B A changes nothing."""

_PREFIX = "base_model.model."
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".zip", ".tar", ".tgz", ".tar.gz")


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """Checked content. The arrays are views of the bytes they came in; BF16 is uint16 bits."""

    spec: LoraSpec
    dtype: str
    """F16, BF16 or F32, the same for every tensor."""
    modules: tuple[str, ...]
    """Full module names of the base, in file order."""
    tensors: Mapping[str, Array]
    """By the name in the file."""

    def a(self, module: str) -> Array:
        """[r, in_features]"""
        return self.tensors[f"{_PREFIX}{module}.lora_A.weight"]

    def b(self, module: str) -> Array:
        """[out_features, r]"""
        return self.tensors[f"{_PREFIX}{module}.lora_B.weight"]


@dataclass(frozen=True, slots=True)
class LocalAdapter:
    """A folder that passed every check, read into memory."""

    spec: LoraSpec
    base: str
    """Fingerprint of the base model it was checked against."""
    files: Mapping[str, bytes]
    """What is published, byte for byte."""
    ignored: tuple[str, ...]
    """Other names in the folder; they are not published."""


def read_adapter_dir(directory: Path, *, card: BaseCard) -> LocalAdapter:
    """Read and check an adapter as PEFT's save_pretrained leaves it.

    Raises InvalidAdapter when it is none that can be served, Incompatible when it does not fit
    the base model of `card`, OSError when the folder cannot be read.
    """
    if not directory.is_dir():
        hint = CONVERT_HINT if directory.name.endswith(_PICKLE_SUFFIXES) else ""
        raise InvalidAdapter(
            f"{directory} is not a folder",
            hint=hint or f"name the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}",
        )
    names = sorted(entry.name for entry in directory.iterdir())
    wanted = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: MAX_ADAPTER_BYTES}
    for name in wanted:
        if name not in names:
            pickled = any(other.endswith(_PICKLE_SUFFIXES) for other in names)
            hint = CONVERT_HINT if pickled and name == WEIGHTS_FILE else ""
            raise InvalidAdapter(f"{directory} holds no {name}", hint=hint)
    with _open_plain(directory / CONFIG_FILE, MAX_CONFIG_BYTES) as file:
        config = file.read(MAX_CONFIG_BYTES)
    spec = parse_config(config)
    _check_ranks_allowed(spec, card)
    files = {CONFIG_FILE: config, WEIGHTS_FILE: _read_weights(directory, spec, card.modules)}
    check_content(files, config=spec.allow_listed(), card_modules=card.modules)
    return LocalAdapter(
        spec, card.fingerprint, files, tuple(name for name in names if name not in wanted)
    )


def check_sizes(
    sizes: Mapping[str, int],
    *,
    config: Mapping[str, Any],
    card_modules: Mapping[str, tuple[int, int]],
) -> None:
    """Check what a record declares, by file name, before any of it is fetched.

    Raises InvalidAdapter when such files cannot be this adapter, Incompatible when its config
    does not fit the base.
    """
    _check_files(sizes)
    spec = spec_of(config)
    values = sum(
        spec.rank_of(module) * sum(card_modules[module]) for module in _targeted(spec, card_modules)
    )
    most = values * max(DTYPE_BYTES.values()) + 8 + MAX_HEADER_BYTES
    if not values * min(DTYPE_BYTES.values()) < sizes[WEIGHTS_FILE] <= most:
        raise InvalidAdapter(
            f"{WEIGHTS_FILE} of {sizes[WEIGHTS_FILE]} bytes cannot hold {values} values"
        )


def check_content(
    files: Mapping[str, bytes],
    *,
    config: Mapping[str, Any],
    card_modules: Mapping[str, tuple[int, int]],
) -> AdapterTensors:
    """Check the files of one version against its allow-listed config and the base's modules.

    `card_modules` gives (out_features, in_features) by full module name. Raises InvalidAdapter
    or Incompatible; never copies a tensor.
    """
    _check_files({name: len(body) for name, body in files.items()})
    spec = spec_of(config)
    if dict(config) != spec.allow_listed():
        raise InvalidAdapter("the version's config holds more than what is content")
    if parse_config(files[CONFIG_FILE]) != spec:
        raise InvalidAdapter(f"{CONFIG_FILE} does not say what the version's config says")
    body = files[WEIGHTS_FILE]
    layout = read_layout(body)
    _check_layout(layout, spec, card_modules)
    tensors = {name: view(body, slot) for name, slot in layout.items()}
    dtype = next(iter(layout.values())).dtype
    ordered = tuple(
        name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        for name in layout
        if name.endswith(".lora_A.weight")
    )
    checked = AdapterTensors(spec, dtype, ordered, tensors)
    _check_values(checked)
    return checked


def _check_files(sizes: Mapping[str, int]) -> None:
    if set(sizes) != {CONFIG_FILE, WEIGHTS_FILE}:
        raise InvalidAdapter(f"files are {sorted(sizes)}, not {[CONFIG_FILE, WEIGHTS_FILE]}")
    total = sum(sizes.values())
    if total > MAX_ADAPTER_BYTES or sizes[CONFIG_FILE] > MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{total} bytes are over {MAX_ADAPTER_BYTES}")


@contextmanager
def _open_plain(path: Path, limit: int) -> Iterator[BinaryIO]:
    """A regular file of at most `limit` bytes, never through a link."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise InvalidAdapter(f"{path} is a link", hint="copy the folder with: cp -rL <from> <to>")
    _check_plain(path, found, limit)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        _check_plain(path, os.fstat(descriptor), limit)
        yield file


def _check_plain(path: Path, found: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise InvalidAdapter(f"{path} is not a regular file")
    if found.st_size > limit:
        raise InvalidAdapter(f"{path} of {found.st_size} bytes is over {limit}")


def _read_weights(
    directory: Path, spec: LoraSpec, card_modules: Mapping[str, tuple[int, int]]
) -> bytes:
    """The whole file, once its header promises exactly what this adapter needs."""
    with _open_plain(directory / WEIGHTS_FILE, MAX_ADAPTER_BYTES) as file:
        size = os.fstat(file.fileno()).st_size
        probe = file.read(PROBE_BYTES)
        end = header_end(probe, size)
        head = (probe + file.read(max(0, end - len(probe))))[:end]
        _check_layout(parse_header(head, size), spec, card_modules)
        file.seek(0)
        return file.read(size)


def _check_ranks_allowed(spec: LoraSpec, card: BaseCard) -> None:
    rank = largest_rank(spec, card.modules)
    if rank > card.max_rank:
        raise Incompatible(
            f"rank {rank} is over the base's limit of {card.max_rank}",
            hint=f"train with r up to {card.max_rank}",
        )


def largest_rank(spec: LoraSpec, card_modules: Mapping[str, tuple[int, int]]) -> int:
    """Of the modules the adapter targets. Raises Incompatible when it targets none."""
    return max(spec.rank_of(module) for module in _targeted(spec, card_modules))


def _targeted(spec: LoraSpec, card_modules: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """The modules that PEFT would adapt. Raises Incompatible for a target that names none."""
    chosen = tuple(module for module in card_modules if spec.targets(module))
    _check_targets(spec, card_modules)
    if spec.layers and (absent := set(spec.layers) - {layer_of(each) for each in card_modules}):
        raise Incompatible(
            f"the base model has no layer {min(absent)}",
            hint="layers_to_transform numbers them from 0",
        )
    if not chosen:
        raise Incompatible(
            "the adapter targets no module of the base model",
            hint="exclude_modules leaves nothing of target_modules",
        )
    return chosen


def _check_targets(spec: LoraSpec, card_modules: Mapping[str, tuple[int, int]]) -> None:
    idle = set(spec.target_modules) - {ALL_LINEAR}
    for module in card_modules:
        idle -= name_endings(module)
    if idle:
        leaves = sorted({module.rsplit(".", 1)[-1] for module in card_modules})
        raise Incompatible(
            f"the base model has no adaptable module named {min(idle)!r}",
            hint=f"it has: {', '.join(leaves)}",
        )


def _check_layout(
    layout: Mapping[str, TensorSlot], spec: LoraSpec, card_modules: Mapping[str, tuple[int, int]]
) -> None:
    modules = _targeted(spec, card_modules)
    _check_names(set(layout), modules)
    for module in modules:
        _check_shapes(module, layout, spec, card_modules[module])


def _check_names(found: set[str], modules: tuple[str, ...]) -> None:
    expected = {
        f"{_PREFIX}{module}.{factor}.weight"
        for module in modules
        for factor in ("lora_A", "lora_B")
    }
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing:
        raise Incompatible(
            f"{len(missing)} of {len(expected)} tensors are missing, first {missing[0]}",
            hint="target_modules and the base model ask for them; is this the right base model?",
        )
    if extra:
        raise Incompatible(
            f"{len(extra)} tensors belong to no declared module, first {ascii(extra[0])[:160]}",
            hint="target_modules must name every module that the file adapts, and no other",
        )


def _check_shapes(
    module: str, layout: Mapping[str, TensorSlot], spec: LoraSpec, size: tuple[int, int]
) -> None:
    out_features, in_features = size
    rank = spec.rank_of(module)
    expected = {"lora_A": (rank, in_features), "lora_B": (out_features, rank)}
    for factor, shape in expected.items():
        name = f"{_PREFIX}{module}.{factor}.weight"
        if layout[name].shape != shape:
            raise Incompatible(
                f"{name} is {list(layout[name].shape)}, not {list(shape)}",
                hint="the base model's sizes and the config's r and rank_pattern decide the shape",
            )


def _check_values(content: AdapterTensors) -> None:
    """Finite, bounded even with the scale folded into B, and not a no-op as a whole."""
    idle = 0
    for module in content.modules:
        peaks, scale = [], content.spec.scale_of(module)
        for factor, array in (("lora_A", content.a(module)), ("lora_B", content.b(module))):
            top = peak(array, content.dtype)
            if not top.finite:
                raise InvalidAdapter(f"{module}.{factor} holds NaN or infinite values")
            bound = MAX_MAGNITUDE / max(1.0, scale if factor == "lora_B" else 1.0)
            if top.value > bound:
                raise InvalidAdapter(
                    f"{module}.{factor} holds {top.value:g}, over the limit of {bound:g}"
                )
            peaks.append(top.value)
        idle += peaks[0] * peaks[1] * scale < SMALLEST_PRODUCT
    count = len(content.modules)
    if idle == count:
        raise InvalidAdapter(
            f"the adapter does not change {count} of its {count} declared modules",
            hint="all its products B A are zero; was it saved before training?",
        )
