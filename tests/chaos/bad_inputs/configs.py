"""What an adapter_config.json may not ask for, and what its refusal names."""

from __future__ import annotations

import json
from typing import Any

from adapter_store.errors import InvalidAdapter
from tests.adapter_store.adapter_files import config
from tests.chaos.bad_inputs.case import BadInput, bad_folder
from tests.chaos.bad_inputs.material import config_body, config_with

CHANGES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("another method", {"peft_type": "IA3"}, "peft_type"),
    ("no method", {"peft_type": None}, "peft_type"),
    ("method in lower case", {"peft_type": "lora"}, "peft_type"),
    ("rank 0", {"r": 0}, "r is 0"),
    ("rank 65", {"r": 65}, "r is 65"),
    ("rank negative", {"r": -4}, "r is -4"),
    ("rank a float", {"r": 4.0}, "r is 4.0"),
    ("rank a bool", {"r": True}, "r is True"),
    ("rank text", {"r": "4"}, "r is '4'"),
    ("rank missing", {"r": None}, "r is None"),
    ("alpha 0", {"lora_alpha": 0}, "lora_alpha"),
    ("alpha negative", {"lora_alpha": -16}, "lora_alpha"),
    ("alpha of 400 digits", {"lora_alpha": 10**400}, "lora_alpha"),
    ("alpha a bool", {"lora_alpha": True}, "lora_alpha"),
    ("alpha text", {"lora_alpha": "16"}, "lora_alpha"),
    ("alpha that scales all to nothing", {"lora_alpha": 1e-300}, "does not change"),
    ("rslora a number", {"use_rslora": 1}, "use_rslora"),
    ("targets a pattern", {"target_modules": ".*_proj"}, "target_modules"),
    ("targets empty", {"target_modules": []}, "target_modules"),
    ("targets missing", {"target_modules": None}, "target_modules"),
    ("a target twice", {"target_modules": ["q_proj", "q_proj"]}, "target_modules"),
    ("a target with a pattern", {"target_modules": ["q_.*"]}, "target_modules"),
    ("a target that is a path", {"target_modules": ["../q_proj"]}, "target_modules"),
    ("a target that is a number", {"target_modules": [1]}, "target_modules"),
    ("3,000 targets", {"target_modules": [f"m{i:011d}" for i in range(3000)]}, "target_modules"),
    ("rank pattern of an expression", {"rank_pattern": {"q_.*": 8}}, "rank_pattern"),
    ("rank pattern from the start", {"rank_pattern": {"^model.layers.0": 8}}, "rank_pattern"),
    ("rank pattern of rank 0", {"rank_pattern": {"q_proj": 0}}, "rank_pattern of 'q_proj' is 0"),
    ("rank pattern of rank 65", {"rank_pattern": {"q_proj": 65}}, "rank_pattern"),
    ("rank pattern a list", {"rank_pattern": [8]}, "rank_pattern"),
    ("rank pattern of 1,025 names", {"rank_pattern": {f"m{i}": 8 for i in range(1025)}}, "1024"),
    ("rank pattern of a long name", {"rank_pattern": {"m" * 257: 8}}, "rank_pattern"),
    ("alpha pattern of 0", {"alpha_pattern": {"q_proj": 0}}, "alpha_pattern of 'q_proj' is 0"),
    ("alpha pattern of text", {"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern"),
    ("alpha pattern of an expression", {"alpha_pattern": {".*": 8}}, "alpha_pattern"),
    ("DoRA", {"use_dora": True}, "use_dora"),
    ("modules to save", {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ("bias all", {"bias": "all"}, "bias"),
    ("bias lora_only", {"bias": "lora_only"}, "bias"),
    ("LoRA bias", {"lora_bias": True}, "lora_bias"),
    ("auto mapping to code",
     {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}, "auto_mapping"),
    ("megatron core", {"megatron_core": "os"}, "megatron_core"),
    ("megatron config", {"megatron_config": {"x": 1}}, "megatron_config"),
    ("init pissa", {"init_lora_weights": "pissa"}, "init_lora_weights"),
    ("init olora", {"init_lora_weights": "olora"}, "init_lora_weights"),
    ("init loftq", {"init_lora_weights": "loftq"}, "init_lora_weights"),
    ("LoftQ", {"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
    ("a revision", {"revision": "refs/pr/1"}, "revision"),
    ("a layer below 0", {"layers_to_transform": [-1]}, "layers_to_transform"),
    ("a layer that is text", {"layers_to_transform": ["0"]}, "layers_to_transform"),
    ("layers of all linears", {"layers_to_transform": [0], "target_modules": "all-linear"},
     "layers_to_transform"),
    ("layers pattern", {"layers_pattern": "h"}, "layers_pattern"),
    ("layer replication", {"layer_replication": [[0, 2]]}, "layer_replication"),
    ("excluded by an expression", {"exclude_modules": "v_.*"}, "exclude_modules"),
    ("excluded by a name of none", {"exclude_modules": ["v_.*"]}, "exclude_modules"),
    ("fan in, fan out", {"fan_in_fan_out": True}, "fan_in_fan_out"),
    ("trainable tokens", {"trainable_token_indices": [1]}, "trainable_token_indices"),
    ("target parameters", {"target_parameters": ["experts.w"]}, "target_parameters"),
    ("another task", {"task_type": "SEQ_CLS"}, "task_type"),
    ("a switch nobody knows", {"use_future_feature": True}, "use_future_feature"),
    ("a number nobody knows", {"future": 0}, "future"),
    ("code to run", {"auto_map": {"AutoModel": "hub--x"}}, "auto_map"),
)  # fmt: skip

TEXT = json.dumps(config())
BODIES: tuple[tuple[str, bytes, str], ...] = (
    ("empty", b"", "not strict JSON"),
    ("a list", b"[]", "not a JSON object"),
    ("null", b"null", "not a JSON object"),
    ("cut", TEXT[:-1].encode(), "not strict JSON"),
    ("not UTF-8", b"\xff\xfe" + TEXT.encode(), "not strict JSON"),
    ("UTF-16", TEXT.encode("utf-16"), "not strict JSON"),
    ("a byte order mark", b"\xef\xbb\xbf" + TEXT.encode(), "not strict JSON"),
    ("rank twice", TEXT.replace('"r": 4', '"r": 4, "r": 8').encode(), "twice"),
    ("a nested key twice", TEXT.replace("{}", '{"a": 1, "a": 1}', 1).encode(), "twice"),
    ("rank NaN", TEXT.replace('"r": 4', '"r": NaN').encode(), "NaN is not JSON"),
    ("alpha NaN", TEXT.replace('alpha": 16', 'alpha": NaN').encode(), "NaN is not JSON"),
    ("alpha Infinity", TEXT.replace('alpha": 16', 'alpha": Infinity').encode(), "is not JSON"),
    ("alpha 1e999", TEXT.replace('alpha": 16', 'alpha": 1e999').encode(), "lora_alpha"),
    ("a number of 5,000 digits", b'{"r":' + b"9" * 5000 + b"}", "not strict JSON"),
    ("60,000 lists deep", b"[" * 60_000, "not strict JSON"),
    ("a list 500 deep", (TEXT[:-1] + ',"x":' + "[" * 500 + "]" * 500 + "}").encode(), "'x'"),
    ("over 64 KiB", TEXT.encode() + b" " * 65_536, "is over 65536"),
    ("over 1 MiB", TEXT.encode() + b" " * 2**20, "is over 65536"),
)  # fmt: skip

CONFIGS: tuple[BadInput, ...] = (
    *(bad_folder("config", what, InvalidAdapter, says, config_with(**changes))
      for what, changes, says in CHANGES),
    *(bad_folder("config", what, InvalidAdapter, says, config_body(body))
      for what, body, says in BODIES),
)  # fmt: skip
