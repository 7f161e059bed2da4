"""The few small adapters a simulation publishes: little enough that content often comes again."""

from __future__ import annotations

from functools import cache

from adapter_store.lora_config import CONFIG_FILE, LoraSpec
from adapter_store.record import version_digest
from adapter_store.tensor_file import WEIGHTS_FILE
from adapter_store.upload import cut
from adapter_store.validate import LocalAdapter

TENANT = "acme"
ADAPTERS = ("ant", "bee", "cat")
UNKNOWN = "yak"
BASE = "ba5e" * 16
CONTENTS = 4
SPEC = LoraSpec(rank=4, alpha=8, use_rslora=False, target_modules=("q_proj",))
CARD = {"model.layers.0.self_attn.q_proj": (8, 8)}
"""What the base of every node can adapt."""


@cache
def content(number: int) -> LocalAdapter:
    """One config chunk and one weights chunk; two contents share each config."""
    files = {CONFIG_FILE: b"config %d" % (number // 2), WEIGHTS_FILE: b"weights %d" % number}
    return LocalAdapter(SPEC, BASE, files, ())


@cache
def vdig(number: int) -> str:
    local = content(number)
    return version_digest(
        base=BASE,
        config=SPEC.allow_listed(),
        files=[(file.name, file.size, file.sha256) for file in cut(local.files)],
    )


@cache
def weights_by_vdig() -> dict[str, bytes]:
    return {vdig(n): content(n).files[WEIGHTS_FILE] for n in range(CONTENTS)}
