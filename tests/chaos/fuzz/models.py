"""What may be accepted, said a second time: small, and sharing nothing with the product.

Each takes an input that was accepted and what it was read as; the answer is an objection, or
nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import safetensors

ID = re.compile(r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\Z")
DIGEST = re.compile(r"^[0-9a-f]{64}\Z")
USED = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules"}
USED |= {"rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules"}
FREE = {"base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version"}
FREE |= {"qalora_group_size"}
INERT = (None, False, "", [], {})
FIXED = {
    "bias": ("none",),
    "init_lora_weights": (None, True, False, "gaussian"),
    "megatron_core": (None, "megatron.core"),
    "revision": (None, "", "main"),
    "task_type": (None, "CAUSAL_LM"),
}


def is_id(text: object) -> bool:
    return isinstance(text, str) and bool(ID.match(text)) and ".." not in text


def is_digest(text: object) -> bool:
    return isinstance(text, str) and bool(DIGEST.match(text))


def has_twins(text: str) -> bool:
    """Whether any object in it has a key twice."""
    found = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        found = found or len({key for key, _ in pairs}) != len(pairs)
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    return found


def header(body: bytes, layout: Any) -> str | None:
    """What we accept, the safetensors library reads, and finds the same in it."""
    length = int.from_bytes(body[:8], "little")
    if has_twins(body[8 : 8 + length].decode()):
        return "a key appears twice"
    try:
        theirs = dict(safetensors.deserialize(body))  # type: ignore[no-untyped-call]
    except Exception as error:
        return f"safetensors refuses it: {error}"
    ours = {name: (slot.dtype, list(slot.shape), slot.nbytes) for name, slot in layout.items()}
    found = {n: (t["dtype"], t["shape"], len(t["data"])) for n, t in theirs.items()}
    if ours != found:
        return f"safetensors reads {found}, we read {ours}"
    return None if len({dtype for dtype, _, _ in ours.values()}) == 1 else "several types"


def config(body: bytes, spec: Any) -> str | None:
    value = json.loads(body)
    if has_twins(body.decode()) or value["peft_type"] != "LORA":
        return "not one LoRA"
    if type(value["r"]) is not int or not 1 <= value["r"] <= 64:
        return f"r is {value['r']!r}"
    if type(value["lora_alpha"]) not in (int, float) or not 0 < value["lora_alpha"] < 1e17:
        return f"lora_alpha is {value['lora_alpha']!r}"
    targets = value["target_modules"]
    if targets == "all-linear":
        targets = ["all-linear"]
    elif type(targets) is not list or not all(
        re.fullmatch(r"[\w.]+", t, re.ASCII) for t in targets
    ):
        return f"target_modules is {targets!r}"
    if (spec.rank, sorted(targets)) != (value["r"], list(spec.target_modules)):
        return "the spec says something else"
    for key, names in (
        ("layers_to_transform", spec.layers),
        ("exclude_modules", spec.exclude_modules),
    ):
        one = value.get(key)
        if sorted({one} if type(one) is int else set(one or [])) != list(names):
            return f"the spec says something else of {key}"
    for key, top in (("rank_pattern", 64), ("alpha_pattern", 1e17)):
        said = dict(getattr(spec, key))
        asked = dict(value.get(key) or {})
        if not said.items() <= asked.items() or not all(0 < said[name] <= top for name in said):
            return f"the spec says something else of {key}"
        for name in asked.keys() - said.keys():
            if not any(name.endswith(f".{other}") for other in said):
                return f"{name} of {key} is forgotten"
    for key in value.keys() - USED - FREE:
        if not any(type(value[key]) is type(one) and value[key] == one
                   for one in FIXED.get(key, INERT)):  # fmt: skip
            return f"{key} is {value[key]!r}"
    return None


def record(body: bytes, read: Any) -> str | None:
    value = json.loads(body)
    if (
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        != body
    ):
        return "not canonical"
    if read.encode() != body:
        return "it is written differently"
    if not is_id(value["tenant"]) or not is_id(value["adapter"]):
        return "an id breaks the grammar"
    if not re.fullmatch("[0-9a-f]{32}", value["txid"]) or not 1 <= value["gen"] < 2**63:
        return "no transaction or generation"
    if not is_digest(value["parent"]) and (value["gen"], value["parent"]) != (1, ""):
        return "no parent"
    if not all(is_id(e["label"]) and is_digest(e["vdig"]) for e in value["versions"]):
        return "the index names no version"
    arms = [arm["version"] for arm in value["split"]]
    return next(
        (fault for v in (value["active"], value["staged"], *arms) if v and (fault := _version(v))),
        None,
    )


def _version(value: dict[str, Any]) -> str | None:
    files = [[f["name"], f["size"], f["sha256"]] for f in value["files"]]
    content = {"base": value["base"], "config": value["config"], "files": sorted(files)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if hashlib.sha256(text.encode()).hexdigest() != value["vdig"]:
        return "the digest does not cover the content"
    if not is_id(value["label"]) or not is_digest(value["base"]):
        return "a label or base breaks the grammar"
    names = [file["name"] for file in value["files"]]
    if len(set(names)) != len(names) or not all(re.fullmatch(r"[A-Za-z0-9._-]+", n) for n in names):
        return "a file's name"
    chunks = [chunk for file in value["files"] for chunk in file["chunks"]]
    sizes = [(c["offset"], c["length"]) for c in chunks] + [(f["size"], 0) for f in value["files"]]
    if not all(type(n) is int and n >= 0 for pair in sizes for n in pair):
        return "a size"
    return None if all(is_digest(c["sha256"]) for c in chunks) else "a chunk's digest"


def name(text: str) -> bool:
    """Whether the text is a reference, by the letter of the specification."""
    adapter, at, selector = text.partition("@")
    if not is_id(adapter):
        return False
    return (
        not at
        or is_digest(selector.removeprefix("sha256:")) & selector.startswith("sha256:")
        or is_id(selector)
    )


def note(body: bytes, read: Any) -> str | None:
    """Intents and plans are written one way only; of a card the sizes matter."""
    value = json.loads(body)
    if "modules" in value:
        sizes = [size for pair in value["modules"].values() for size in pair]
        fits = is_digest(value["fingerprint"]) and read.max_rank >= 1
        return None if fits and all(type(s) is int and s > 0 for s in sizes) else "no base card"
    if read.encode() != body:
        return "it is written differently"
    if "slot" not in value:
        return None
    if not is_id(value["adapter"]) or not all(map(is_digest, value["digests"])):
        return "an intent breaks the grammar"
    return None if type(value["slot"]) is int and 1 <= value["slot"] < 2**63 else "no slot"


def request(read: Any, *, context: int, vocabulary: int) -> str | None:
    sampling, stopping = read.sampling, read.stopping
    if not is_id(read.tenant) or (read.adapter and not name(read.adapter)):
        return "an id breaks the grammar"
    if not 0 < len(read.prompt) < context or not all(0 <= t < vocabulary for t in read.prompt):
        return "the prompt is no prompt"
    if not (0 <= sampling.temperature <= 2 and 0 < sampling.top_p <= 1 and sampling.top_k >= 0):
        return "the sampling is out of bounds"
    if not 0 <= stopping.min_new_tokens <= stopping.max_new_tokens:
        return "min_new_tokens is over max_new_tokens"
    if len(stopping.stop) > 8 or not all(0 < len(s.encode()) <= 256 for s in stopping.stop):
        return "stop texts"
    if not all(0 <= t < vocabulary for t in stopping.stop_token_ids):
        return "stop tokens"
    return None if re.fullmatch("[!-~]{1,64}", read.request_id) else "the request's id"
