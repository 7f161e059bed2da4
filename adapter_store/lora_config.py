"""What adapter_config.json may say, and the little of it that serving needs.

The file comes from whoever trained the adapter, so it is never handed to a library that acts on
it: some of its keys name modules to import or models to download. Here a key is either used,
known to be harmless, or must be empty; everything else is refused by name.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapter_store.errors import InvalidAdapter

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 64 * 1024
MAX_TARGET_BYTES = 32 * 1024
"""Bound on all target names together: they travel in every log record."""
MAX_RANK = 64

_NAME = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")

# Keys that describe how the adapter was trained and change nothing in how it is applied.
_HARMLESS = frozenset(
    {
        "base_model_name_or_path",
        "inference_mode",
        "lora_dropout",
        "peft_version",
        "qalora_group_size",
    }
)

_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (None, True, False, "gaussian"),
    "megatron_core": (None, "megatron.core"),
    "revision": (None, "", "main"),
    "task_type": (None, "CAUSAL_LM"),
}

_WHY: Mapping[str, str] = {
    "alpha_pattern": "train with one lora_alpha for all modules",
    "auto_mapping": 'it names code to import; train with task_type="CAUSAL_LM", or remove the key',
    "bias": 'train with bias="none"',
    "exclude_modules": "list the wanted modules in target_modules instead",
    "fan_in_fan_out": "only linear layers with [out, in] weights are served",
    "init_lora_weights": "this initialisation changes the base weights; convert the adapter to "
    "plain LoRA first",
    "layer_replication": "the adapter needs another base model than the one served",
    "layers_to_transform": "list full module names in target_modules instead",
    "loftq_config": "this initialisation changes the base weights; convert to plain LoRA first",
    "megatron_config": "it names code to import; export the adapter for transformers",
    "megatron_core": "it names code to import; remove the key",
    "modules_to_save": "only LoRA factors are served; train without extra full modules",
    "rank_pattern": "train with one r for all modules",
    "revision": "the base model is named by its fingerprint; remove the key",
    "target_parameters": "only linear modules are served",
    "task_type": "only causal language models are served",
    "trainable_token_indices": "only LoRA factors are served; train without new token embeddings",
    "use_dora": "train with use_dora=False",
}


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """How the factors are applied: y += scale * B (A x), in every targeted module."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    """Module names or their last components, sorted."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def allow_listed(self) -> dict[str, Any]:
        """The part of the config that is content: equal adapters give equal values."""
        alpha = int(self.alpha) if float(self.alpha).is_integer() else self.alpha
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": alpha,
            "use_rslora": self.use_rslora,
            "target_modules": list(self.target_modules),
        }


def parse_config(body: bytes) -> LoraSpec:
    """Read the bytes of adapter_config.json. Raises InvalidAdapter naming the key at fault."""
    if len(body) > MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{CONFIG_FILE} of {len(body)} bytes is over {MAX_CONFIG_BYTES}")
    return spec_of(strict_json(body, CONFIG_FILE))


def spec_of(config: Any) -> LoraSpec:
    """Check a decoded config, whole or allow-listed. Raises InvalidAdapter."""
    if not isinstance(config, Mapping):
        raise InvalidAdapter(f"{CONFIG_FILE} is not a JSON object")
    used = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules"}
    for key, value in config.items():
        if key not in used and key not in _HARMLESS:
            _check_unused(key, value)
    if config.get("peft_type") != "LORA":
        raise InvalidAdapter(f"peft_type is {_shown(config.get('peft_type'))}, not 'LORA'")
    return LoraSpec(
        rank=_rank(config.get("r")),
        alpha=_alpha(config.get("lora_alpha")),
        use_rslora=_flag("use_rslora", config.get("use_rslora", False)),
        target_modules=_target_modules(config.get("target_modules")),
    )


def strict_json(body: bytes, what: str) -> Any:
    """Decode UTF-8 JSON without duplicate keys or NaN. Raises InvalidAdapter naming `what`."""
    try:
        return json.loads(body.decode(), object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{what} is not strict JSON: {error}") from error


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_unused(key: str, value: Any) -> None:
    if key in _ALLOWED:
        fits = any(type(value) is type(one) and value == one for one in _ALLOWED[key])
    else:
        fits = value is None or value is False or value in ("", [], {})
    if not fits:
        raise InvalidAdapter(
            f"{_shown(key)} is {_shown(value)}, which is not supported",
            hint=_WHY.get(key, "this feature is not supported; export the adapter as plain LoRA"),
        )


def _rank(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise InvalidAdapter(f"r is {_shown(value)}, not an integer from 1 to {MAX_RANK}")
    return value


def _alpha(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < 2**53 or not math.isfinite(value):
        raise InvalidAdapter(f"lora_alpha is {_shown(value)}, not a finite number above 0")
    return float(value)


def _flag(key: str, value: Any) -> bool:
    if type(value) is not bool:
        raise InvalidAdapter(f"{key} is {_shown(value)}, not true or false")
    return value


def _target_modules(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidAdapter(
            f"target_modules is {_shown(value)}, not a list of names",
            hint='name the modules, e.g. ["q_proj", "v_proj"]; a string is a pattern in PEFT',
        )
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidAdapter(f"target_modules names {_shown(name)}, which is no module name")
    if len(set(value)) != len(value):
        raise InvalidAdapter("target_modules names a module twice")
    if sum(map(len, value)) > MAX_TARGET_BYTES:
        raise InvalidAdapter(
            f"the names in target_modules are over {MAX_TARGET_BYTES} bytes together",
            hint='use the shared last part of the names, e.g. "q_proj"',
        )
    return tuple(sorted(value))


def _shown(value: Any) -> str:
    # reprlib looks neither deep nor far: a hostile value costs no recursion and no megabytes.
    text = reprlib.repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:77]}..."
