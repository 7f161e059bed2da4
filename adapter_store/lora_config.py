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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeVar

from adapter_store.errors import InvalidAdapter

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 64 * 1024
MAX_TARGET_BYTES = 32 * 1024
"""Bound on all target names together: they travel in every log record."""
MAX_RANK = 64
MAX_LAYER = 9_999
MAX_PATTERN = 1_024
"""Names in one pattern: each is looked at for every module."""
MAX_PATTERN_NAME = 256
ALL_LINEAR = "all-linear"

T = TypeVar("T")
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

_USED = frozenset(
    {
        "alpha_pattern",
        "exclude_modules",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
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
    "auto_mapping": 'it names code to import; train with task_type="CAUSAL_LM", or remove the key',
    "bias": 'train with bias="none"',
    "fan_in_fan_out": "only linear layers with [out, in] weights are served",
    "init_lora_weights": "this initialisation changes the base weights; convert the adapter to "
    "plain LoRA first",
    "layer_replication": "the adapter needs another base model than the one served",
    "layers_pattern": "layers are counted under the list named `layers`; remove the key, or list "
    "full module names in target_modules",
    "lora_bias": "train with lora_bias=False; a bias fits no page",
    "loftq_config": "this initialisation changes the base weights; convert to plain LoRA first",
    "megatron_config": "it names code to import; export the adapter for transformers",
    "megatron_core": "it names code to import; remove the key",
    "modules_to_save": "only LoRA factors are served; train without extra full modules",
    "revision": "the base model is named by its fingerprint; remove the key",
    "target_parameters": "only linear modules are served",
    "task_type": "only causal language models are served",
    "trainable_token_indices": "only LoRA factors are served; train without new token embeddings",
    "use_dora": "DoRA rescales the base's own weights, which many adapters share; train with "
    "use_dora=False",
}


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """How the factors are applied: y += scale * B (A x), in every targeted module."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    """Module names or their last components, sorted; ALL_LINEAR alone stands for every one."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Other ranks by name or last components, sorted; the longest name that fits counts."""
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    layers: tuple[int, ...] = ()
    """Numbers of the layers adapted, sorted; empty for all."""
    exclude_modules: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """Of the modules that no pattern names."""
        return self._scale(self.alpha, self.rank)

    def rank_of(self, module: str) -> int:
        return _longest(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        alpha = _longest(self.alpha_pattern, module, self.alpha)
        return self._scale(alpha, self.rank_of(module))

    def targets(self, module: str) -> bool:
        """Whether PEFT adapts this linear."""
        if self.layers and layer_of(module) not in self.layers:
            return False
        endings = name_endings(module)
        if not endings.isdisjoint(self.exclude_modules):
            return False
        every = self.target_modules == (ALL_LINEAR,)
        return every or not endings.isdisjoint(self.target_modules)

    def allow_listed(self) -> dict[str, Any]:
        """The part of the config that is content: equal adapters give equal values."""
        every = self.target_modules == (ALL_LINEAR,)
        rarely = {
            "rank_pattern": [list(pair) for pair in self.rank_pattern],
            "alpha_pattern": [[name, _plain(alpha)] for name, alpha in self.alpha_pattern],
            "layers_to_transform": list(self.layers),
            "exclude_modules": list(self.exclude_modules),
        }
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": _plain(self.alpha),
            "use_rslora": self.use_rslora,
            "target_modules": ALL_LINEAR if every else list(self.target_modules),
            **{key: value for key, value in rarely.items() if value},
        }

    def _scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def parse_config(body: bytes) -> LoraSpec:
    """Read the bytes of adapter_config.json. Raises InvalidAdapter naming the key at fault."""
    if len(body) > MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{CONFIG_FILE} of {len(body)} bytes is over {MAX_CONFIG_BYTES}")
    return spec_of(strict_json(body, CONFIG_FILE))


def spec_of(config: Any) -> LoraSpec:
    """Check a decoded config, whole or allow-listed. Raises InvalidAdapter."""
    if not isinstance(config, Mapping):
        raise InvalidAdapter(f"{CONFIG_FILE} is not a JSON object")
    for key, value in config.items():
        if key not in _USED and key not in _HARMLESS:
            _check_unused(key, value)
    if config.get("peft_type") != "LORA":
        raise InvalidAdapter(f"peft_type is {_shown(config.get('peft_type'))}, not 'LORA'")
    spec = LoraSpec(
        rank=_rank(config.get("r")),
        alpha=_alpha(config.get("lora_alpha")),
        use_rslora=_flag("use_rslora", config.get("use_rslora", False)),
        target_modules=_target_modules(config.get("target_modules")),
        rank_pattern=_pattern("rank_pattern", config.get("rank_pattern"), _rank),
        alpha_pattern=_pattern("alpha_pattern", config.get("alpha_pattern"), _alpha),
        layers=_layers(config.get("layers_to_transform")),
        exclude_modules=_excluded(config.get("exclude_modules")),
    )
    if spec.layers and spec.target_modules == (ALL_LINEAR,):
        raise InvalidAdapter(
            f"layers_to_transform does not go with target_modules {ALL_LINEAR!r}, in PEFT neither",
            hint="list the modules in target_modules",
        )
    return spec


def strict_json(body: bytes, what: str) -> Any:
    """Decode UTF-8 JSON without duplicate keys or NaN. Raises InvalidAdapter naming `what`."""
    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=_no_twins,
            parse_constant=_no_constant,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{what} is not strict JSON: {error}") from error


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _integer(text: str) -> int:
    # Other readers take -0 for a floating point number.
    if text == "-0":
        raise ValueError("-0 is no integer")
    return int(text)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_unused(key: str, value: Any) -> None:
    if key in _ALLOWED:
        fits = any(type(value) is type(one) and value == one for one in _ALLOWED[key])
    else:
        fits = _is_empty(value)
    if not fits:
        raise InvalidAdapter(
            f"{_shown(key)} is {_shown(value)}, which is not supported",
            hint=_WHY.get(key, "this feature is not supported; export the adapter as plain LoRA"),
        )


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _rank(value: Any, key: str = "r") -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise InvalidAdapter(f"{key} is {_shown(value)}, not an integer from 1 to {MAX_RANK}")
    return value


def _alpha(value: Any, key: str = "lora_alpha") -> float:
    if type(value) not in (int, float) or not 0 < value < 2**53 or not math.isfinite(value):
        raise InvalidAdapter(f"{key} is {_shown(value)}, not a finite number above 0")
    return float(value)


def _flag(key: str, value: Any) -> bool:
    if type(value) is not bool:
        raise InvalidAdapter(f"{key} is {_shown(value)}, not true or false")
    return value


def _target_modules(value: Any) -> tuple[str, ...]:
    if value == ALL_LINEAR:
        return (ALL_LINEAR,)
    if not isinstance(value, list) or not value:
        raise InvalidAdapter(
            f"target_modules is {_shown(value)}, not a list of names",
            hint='name the modules, e.g. ["q_proj", "v_proj"]; a string is a pattern in PEFT',
        )
    return _names("target_modules", value)


def _excluded(value: Any) -> tuple[str, ...]:
    if _is_empty(value):
        return ()
    if not isinstance(value, list):
        raise InvalidAdapter(
            f"exclude_modules is {_shown(value)}, not a list of names",
            hint="list the wanted modules in target_modules instead; a string is a pattern in PEFT",
        )
    return _names("exclude_modules", value)


def _names(key: str, value: list[Any]) -> tuple[str, ...]:
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidAdapter(f"{key} names {_shown(name)}, which is no module name")
    if len(set(value)) != len(value):
        raise InvalidAdapter(f"{key} names a module twice")
    if sum(map(len, value)) > MAX_TARGET_BYTES:
        raise InvalidAdapter(
            f"the names in {key} are over {MAX_TARGET_BYTES} bytes together",
            hint='use the shared last part of the names, e.g. "q_proj"',
        )
    return tuple(sorted(value))


def _pattern(key: str, value: Any, check: Callable[[Any, str], T]) -> tuple[tuple[str, T], ...]:
    """Values by name, sorted. A file has an object, of which PEFT takes the first name that fits;
    a record has the pairs left when those never reached are gone, where the longest name counts.
    """
    if _is_empty(value):
        return ()
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in pairs
    ):
        raise InvalidAdapter(f"{key} is {_shown(value)}, not an object of names and numbers")
    if len(pairs) > MAX_PATTERN:
        raise InvalidAdapter(f"{key} has {len(pairs)} names, over {MAX_PATTERN}")
    found: dict[str, T] = {}
    for name, each in pairs:
        if len(name) > MAX_PATTERN_NAME or not _NAME.fullmatch(name):
            raise InvalidAdapter(
                f"{key} names {_shown(name)}, which is no module name",
                hint="write module names or their last components; other patterns are not served",
            )
        checked = check(each, f"{key} of {_shown(name)}")
        reached = pairs is value or not any(_ends_in(name, earlier) for earlier in found)
        if reached:
            found[name] = checked
    return tuple(sorted(found.items()))


def _layers(value: Any) -> tuple[int, ...]:
    numbers = [] if _is_empty(value) else [value] if type(value) is int else value
    if not isinstance(numbers, list) or any(
        type(number) is not int or not 0 <= number <= MAX_LAYER for number in numbers
    ):
        raise InvalidAdapter(
            f"layers_to_transform is {_shown(value)}, not a list of layer numbers",
            hint="number the layers from 0, or remove the key to adapt them all",
        )
    return tuple(sorted(set(numbers)))


def _ends_in(module: str, name: str) -> bool:
    """Whether `name` is the module's or its last components, whole ones only."""
    return module == name or module.endswith(f".{name}")


def _longest(pattern: tuple[tuple[str, T], ...], module: str, otherwise: T) -> T:
    fitting = [(len(name), value) for name, value in pattern if _ends_in(module, name)]
    return max(fitting, key=itemgetter(0))[1] if fitting else otherwise


def name_endings(module: str) -> frozenset[str]:
    """The name and every run of its last components."""
    parts = module.split(".")
    return frozenset(".".join(parts[start:]) for start in range(len(parts)))


def layer_of(module: str) -> int | None:
    """The first whole number in the path, as PEFT counts layers."""
    return next((int(part) for part in module.split(".") if part.isdecimal()), None)


def _plain(alpha: float) -> int | float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _shown(value: Any) -> str:
    # reprlib looks neither deep nor far: a hostile value costs no recursion and no megabytes.
    text = reprlib.repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:77]}..."
