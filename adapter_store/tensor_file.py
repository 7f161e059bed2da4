"""Walk a safetensors header without trusting it, and view its tensors without copying them.

The format: 8 bytes of little-endian header length, a JSON header, then the tensors' bytes. The
safetensors library accepts files that a shared store should not: duplicate keys, unknown fields,
megabytes of metadata, names that are paths, and headers that take seconds to parse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter_store.errors import InvalidAdapter
from adapter_store.lora_config import strict_json

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_HEADER_BYTES = 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
MAX_TENSORS = 4096
PROBE_BYTES = 512
"""Enough of a file to tell its format and the length of its header."""
DTYPE_BYTES = {"F16": 2, "BF16": 2, "F32": 4}

CONVERT_HINT = (
    "only safetensors is served. On a machine where you trust this file, load it with PEFT and "
    "save it again: model.save_pretrained(folder, safe_serialization=True)"
)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies in the file."""

    name: str
    dtype: str
    shape: tuple[int, int]
    start: int
    """First byte, counted from the start of the file."""

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest magnitude in a tensor."""

    finite: bool
    value: float


def read_layout(body: bytes) -> dict[str, TensorSlot]:
    """Every tensor's place, by name, in file order. Raises InvalidAdapter on any irregularity."""
    end = header_end(body[:PROBE_BYTES], len(body))
    return parse_header(body[:end], len(body))


def header_end(probe: bytes, size: int) -> int:
    """Where the tensors of a file of `size` bytes begin, from its first PROBE_BYTES.

    Raises InvalidAdapter when it is of another format or its header cannot be.
    """
    _refuse_other_formats(probe)
    length = int.from_bytes(probe[:8], "little")
    if size < 8 or length > size - 8:
        if probe[:1] == b"\x80":
            raise InvalidAdapter(
                f"{WEIGHTS_FILE} is a Python pickle, not safetensors", hint=CONVERT_HINT
            )
        raise InvalidAdapter(f"{WEIGHTS_FILE} is cut short: its header does not fit in the file")
    if length > MAX_HEADER_BYTES:
        raise InvalidAdapter(f"header of {length} bytes is over {MAX_HEADER_BYTES}")
    if length % 8:
        raise InvalidAdapter("header is not padded to 8 bytes", hint="save it again with PEFT")
    return 8 + length


def parse_header(head: bytes, size: int) -> dict[str, TensorSlot]:
    """The layout of a file of `size` bytes from what comes before its tensors. Reads no tensor."""
    # Parsing is slow per object and entry, so a megabyte of either is refused by counting them.
    most = 4 * MAX_TENSORS + MAX_METADATA_BYTES
    if head.count(b"{") > most or head.count(b":") > most:
        raise InvalidAdapter(f"header with far more than {MAX_TENSORS} tensors")
    header = strict_json(head[8:], "safetensors header")
    if not isinstance(header, dict):
        raise InvalidAdapter("safetensors header is not a JSON object")
    _check_metadata(header.pop("__metadata__", {}))
    if not 0 < len(header) <= MAX_TENSORS:
        raise InvalidAdapter(f"{len(header)} tensors, not 1 to {MAX_TENSORS}")
    slots = [_slot(name, entry, len(head)) for name, entry in header.items()]
    slots.sort(key=lambda slot: slot.start)
    _check_gapless(slots, len(head), size)
    return {slot.name: slot for slot in slots}


def view(body: bytes, slot: TensorSlot) -> Array:
    """A read-only [rows, columns] view; BF16, which numpy lacks, comes as its uint16 bits."""
    dtype = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}[slot.dtype]
    flat: Array = np.frombuffer(body, dtype, slot.shape[0] * slot.shape[1], slot.start)
    return flat.reshape(slot.shape)


def peak(array: Array, dtype: str) -> Peak:
    """Largest |x|, in one pass over the bits.

    Without its sign bit an IEEE number grows with its bits, and Inf and NaN come last, so the
    largest bit pattern answers for finiteness, magnitude and all-zero together.
    """
    bits = array.view(f"<u{DTYPE_BYTES[dtype]}")
    sign, inf = {"F16": (15, 0x7C00), "BF16": (15, 0x7F80), "F32": (31, 0x7F80_0000)}[dtype]
    most = int(np.bitwise_and(bits, (1 << sign) - 1).max())
    if most >= inf:
        return Peak(finite=False, value=float("inf"))
    if dtype == "F16":
        return Peak(finite=True, value=float(np.uint16(most).view(np.float16)))
    word = most << 16 if dtype == "BF16" else most
    return Peak(finite=True, value=float(np.uint32(word).view(np.float32)))


def _refuse_other_formats(body: bytes) -> None:
    magics = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "gzip", b"GGUF": "a GGUF file"}
    found = next((what for magic, what in magics.items() if body.startswith(magic)), "")
    if body[257:262] == b"ustar":
        found = "a tar archive"
    if found:
        raise InvalidAdapter(f"{WEIGHTS_FILE} is {found}, not safetensors", hint=CONVERT_HINT)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidAdapter("__metadata__ is not a map of strings")
    size = sum(len(key) + len(value) for key, value in metadata.items())
    if size > MAX_METADATA_BYTES:
        raise InvalidAdapter(f"metadata of {size} characters is over {MAX_METADATA_BYTES}")


def _slot(name: str, entry: Any, data_start: int) -> TensorSlot:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidAdapter(f"tensor {_short(name)} has missing or unknown fields")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise InvalidAdapter(
            f"tensor {_short(name)} is not of type {', '.join(DTYPE_BYTES)}",
            hint="save the adapter in float32, float16 or bfloat16",
        )
    if not _naturals(shape) or not _naturals(offsets) or 0 in shape:
        raise InvalidAdapter(f"tensor {_short(name)} has no proper 2-D shape or offsets")
    slot = TensorSlot(name, dtype, (shape[0], shape[1]), data_start + offsets[0])
    if offsets[1] - offsets[0] != slot.nbytes:
        raise InvalidAdapter(f"tensor {_short(name)}: its shape and its offsets disagree")
    return slot


def _naturals(value: Any) -> bool:
    """Two integers that a file of this size could mean."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(x) is int and 0 <= x < 2**48 for x in value)
    )


def _check_gapless(slots: list[TensorSlot], start: int, end: int) -> None:
    for slot in slots:
        if slot.start != start:
            raise InvalidAdapter(f"tensor {_short(slot.name)} overlaps another or leaves a hole")
        start += slot.nbytes
    if start != end:
        raise InvalidAdapter(f"tensors end at byte {start} of {end}: cut short, or bytes trail")
    if len({slot.dtype for slot in slots}) != 1:
        raise InvalidAdapter("tensors of several types", hint="save all of them in one type")


def _short(name: str) -> str:
    text = ascii(name)
    return text if len(text) <= 160 else f"{text[:157]}..."
