"""Bending inputs: bytes anywhere, and JSON so that it stays JSON."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 4, 8, 64, 65, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30),
    *(0.0, -0.0, 0.5, 1e308, float("nan"), float("inf")),
    *("", "a", "A", ".", "..", "../x", "a/b", "a\n", "\0", "é", "\u202e", "x" * 300, "F16", "LORA"),
    *("0" * 64, "f" * 63, "f" * 32, "publish", "fence", "v1", "q_proj", ".*"),
    *([], {}, [0], [0, 0], [1, 2, 3], [[]], [{}], {"a": 1}),
)
_BYTES = (
    *(b"\0", b"\n", b"\xff", b"\x80", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"/", b"."),
    *(b"..", b"@", b"@sha256:", b"\xc3\xa9", b"\\ud800", b"1e999", b"NaN", b"-", b" "),
)


def bend_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few small edits anywhere."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        match rng.randrange(5):
            case 0:
                data = data[:at] + rng.choice(_BYTES) + data[at:]
            case 1:
                data = data[:at] + data[at + rng.randint(1, 8) :]
            case 2:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 3:
                data = data[:at] + data[at : at + rng.randint(1, 32)] + data[at:]
            case _:
                data = data[:at]
    return data


def bend_json(
    data: bytes,
    rng: random.Random,
    *,
    mend: Callable[[Any], None] = lambda value: None,
) -> bytes:
    """One or two edits in the tree; `mend` makes digests fit again, half of the time."""
    try:
        root = [json.loads(data)]
        for _ in range(rng.randint(1, 2)):
            _edit(root, rng)
        if rng.random() < 0.5:
            _mended(root[0], mend)
        text = json.dumps(
            root[0],
            sort_keys=rng.random() < 0.9,
            separators=(",", ":") if rng.random() < 0.9 else (", ", ": "),
            ensure_ascii=rng.random() < 0.1,
        )
    except (ValueError, RecursionError):
        return bend_bytes(data, rng)
    return text.encode("utf-8", "surrogatepass")


def _mended(value: Any, mend: Callable[[Any], None]) -> None:
    # What cannot be mended any more is offered as it is.
    with contextlib.suppress(Exception):
        mend(value)


def _edit(root: list[Any], rng: random.Random) -> None:
    holder, key = _place(root, rng)
    old = holder[key]
    match rng.randrange(7):
        case 0 if holder is not root:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(["", "x", "../x", "format", str(key) + "x"])] = copy.deepcopy(old)
        case 2 if isinstance(holder, list):
            holder.append(copy.deepcopy(old))
        case 3 if type(old) is int:
            holder[key] = old + rng.choice([-1, 1, 8, -(2**40), 2**40])
        case 4 if isinstance(old, str):
            bent = bend_bytes(old.encode("utf-8", "surrogatepass"), rng)
            holder[key] = bent.decode("utf-8", "replace")
        case 5 if isinstance(old, dict):
            old[rng.choice(["a", "extra", "r", "x"])] = copy.deepcopy(rng.choice(ODD))
        case _:
            holder[key] = copy.deepcopy(rng.choice(ODD))


def _place(root: list[Any], rng: random.Random) -> tuple[Any, Any]:
    """A random container and a key in it."""
    holder: Any = root
    key: Any = 0
    while rng.random() < 0.8:
        below = holder[key]
        if isinstance(below, dict) and below:
            holder, key = below, rng.choice(list(below))
        elif isinstance(below, list) and below:
            holder, key = below, rng.randrange(len(below))
        else:
            break
    return holder, key
