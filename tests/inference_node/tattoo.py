"""Adapters whose greedy tokens say which adapter they are, in which version, and whether whole.

A tattooed adapter makes the tattoo base emit one token without end, after any prompt: the token
that names (adapter, version). It does so through a chain of `rank` strands. Strand r runs through
rank r of every site of every layer: v writes a number, o turns it into a direction of the residual
stream, gate and up read that direction and drive one inner unit, down turns the unit into another
direction, and the next layer's v reads that. Each stage drowns the one before it, so after the
norms only the last counts. In the end strand r adds to the residual stream

    name + 2 * rank * (torn[r] - torn[r + 1])            torn[rank] = torn[0]

The torn tokens cancel when all strands are there in equal strength. With a rank, a page, a factor
or a whole group missing in one layer, or taken from another adapter, they do not, and a torn token
(or one that names nothing) comes out. Directions, signs, units and torn tokens are drawn for every
(adapter, version) anew, so that pages, and keys and values in the cache, of another do not fit.

What it cannot tell: the q and k parts of a page (all positions look alike, so where attention
looks does not matter; they are zeros here), a wrong scale common to all pages, and keys and values
that the base model left in the cache (they are silent beside a strand's).

The tattoo base is a tiny random Llama whose linears are faint and whose embeddings have one large
component in common. That gives the strands something to start from, and the base model, whatever it
is asked, one token of its own: BASE.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.inference_node.tiny import (
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    make_checkpoint,
)

BASE = 1000
"""The token the base model says."""
_TORN = 1001
_NAMES = 2000
_NAMELESS = 240
"""Tokens above all names, at least."""
VERSIONS = 128
ADAPTERS = 256
_END = _NAMES + ADAPTERS * VERSIONS
MAX_RANK = 20
"""Three sets of directions in 63 dimensions."""
HEAD_DIM = HIDDEN // HEADS
START = 16.0
"""The component that all embeddings have in common."""
FAINT = 1e-3
"""What is left of the base's linears: what they make of a strand must not drown the strand."""
READ = 8.0
"""What v, gate and up make of what they read."""
GROWTH = 40.0
"""How much louder each stage is than the one before it."""


Factors = tuple[torch.Tensor, torch.Tensor]
"""A [rank, in] and B [out, rank]."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a tattoo says."""

    adapter: int
    version: int

    @property
    def name(self) -> str:
        return f"tattoo-{self.adapter}"

    @property
    def token(self) -> int:
        assert 0 <= self.adapter < ADAPTERS
        assert 0 <= self.version < VERSIONS
        return _NAMES + self.adapter * VERSIONS + self.version


class Verdict(Enum):
    """What an answer was made of."""

    RIGHT = "right"
    WRONG_VERSION = "wrong version"
    WRONG_ADAPTER = "wrong adapter"
    BASE = "base"
    TORN = "torn"
    """No whole version made any of it."""
    MIXED = "mixed"
    """A whole version made some of it, and something else the rest."""
    EMPTY = "empty"


def read_token(token: int) -> Mark | str:
    """The mark that a token names; else "base" or "torn"."""
    if token == BASE:
        return "base"
    if _NAMES <= token < _END:
        return Mark(*divmod(token - _NAMES, VERSIONS))
    return "torn"


def verdict(tokens: Sequence[int], expected: Mark) -> Verdict:
    """What an answer that should be `expected`'s is."""
    read = {read_token(token) for token in tokens}
    marks = [one for one in read if isinstance(one, Mark)]
    if not marks:
        return Verdict.TORN if "torn" in read else Verdict.BASE if read else Verdict.EMPTY
    if len(read) > 1:
        return Verdict.MIXED
    if marks == [expected]:
        return Verdict.RIGHT
    same = marks[0].adapter == expected.adapter
    return Verdict.WRONG_VERSION if same else Verdict.WRONG_ADAPTER


def vocabulary_of(adapters: int) -> int:
    """Tokens enough for the names of so many adapters: a base with no more answers sooner."""
    return _NAMES + adapters * VERSIONS + _NAMELESS


def make_tattoo_base(
    folder: Path, *, tokenizer_from: Path, seed: int = 0, vocabulary: int = VOCABULARY
) -> Path:
    make_checkpoint(folder, tokenizer_from=tokenizer_from, seed=seed, vocabulary=vocabulary)
    weights = load_file(folder / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    # What leads nowhere in particular must not lead to a name: all other tokens are nearer.
    lengths = torch.full((len(table), 1), 1.3)
    lengths[_NAMES:_END] = 1.0
    table.copy_(torch.nn.functional.normalize(table.float(), dim=1) * 1.6 * lengths)
    table[:, 0] = START
    table[BASE, 0] = 2 * START
    for name, weight in weights.items():
        if "_proj" in name:
            weight.mul_(FAINT)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Tattooist:
    """Makes tattooed adapters for one tattoo base."""

    def __init__(self, base: Path) -> None:
        table = load_file(base / "model.safetensors")["model.embed_tokens.weight"].float()
        table[:, 0] = 0.0
        self._directions = torch.nn.functional.normalize(table, dim=1)  # [tokens, hidden]

    def make(self, folder: Path, mark: Mark, *, rank: int = 16, scale: int = 1) -> Path:
        """An adapter folder as peft writes it. With a `scale`, a power of two, B lacks it."""
        assert 2 <= rank <= MAX_RANK
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for path, (a, b) in self._factors(mark, rank).items():
            name = f"base_model.model.model.layers.{path}_proj"
            tensors[f"{name}.lora_A.weight"] = a.to(torch.bfloat16).contiguous()
            tensors[f"{name}.lora_B.weight"] = (b / scale).to(torch.bfloat16).contiguous()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "tattoo",
            "r": rank,
            "lora_alpha": rank * scale,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": [f"{leaf}_proj" for leaf in ("v", "o", "gate", "up", "down")],
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    def _factors(self, mark: Mark, rank: int) -> dict[str, Factors]:
        """By layer and site."""
        draw = torch.Generator().manual_seed(mark.token)
        basis = torch.linalg.qr(torch.randn(HIDDEN - 1, HIDDEN - 1, generator=draw)).Q
        free = torch.cat([torch.zeros(HIDDEN - 1, 1), basis.T], dim=1)  # [rows, hidden]
        first, second, third = free[: 3 * rank].split(rank)
        start = torch.zeros(rank, HIDDEN)
        start[:, 0] = 1.0  # one direction for all strands
        stages = ((start, first, second), (second, third, self._name(mark, rank)))
        assert len(stages) == LAYERS
        loud = START
        found = {}
        for layer, (reads, between, writes) in enumerate(stages):
            alone = 1 if layer == 0 else rank
            found |= _attention(f"{layer}.self_attn", reads, between, alone, loud * GROWTH, draw)
            found |= _inner(f"{layer}.mlp", between, writes, loud * GROWTH**2, draw)
            loud *= GROWTH**2
        return found

    def _name(self, mark: Mark, rank: int) -> torch.Tensor:
        """What the strands add up to. [rank, hidden], of length 1 on average

        One factor for all: with a length of 1 each, the torn tokens would not quite cancel. Which
        tokens these are is drawn for every mark: those of two do not cancel each other.
        """
        draw = torch.Generator().manual_seed(mark.token)
        chosen = _TORN + torch.randperm(_NAMES - _TORN, generator=draw)[:rank]
        torn = self._directions[chosen]
        parts = self._directions[mark.token] + 2 * rank * (torn - torn.roll(-1, dims=0))
        return parts / parts.norm(dim=1).mean()


def _attention(
    path: str,
    reads: torch.Tensor,  # [rank, hidden]
    writes: torch.Tensor,  # [rank, hidden]
    alone: int,
    loud: float,
    draw: torch.Generator,
) -> dict[str, Factors]:
    """v reads, o writes `loud`. Reading one of `alone` equal directions gives (hidden / alone)^.5.

    Every position carries the same, so what attention makes of the values is one of them.
    """
    rank = reads.shape[0]
    places = torch.randperm(KV_HEADS * HEAD_DIM, generator=draw)[:rank]
    signs = (torch.randint(0, 2, (rank,), generator=draw) * 2 - 1).float()
    value = READ * (HIDDEN / alone) ** 0.5
    strands = torch.arange(rank)
    # Else the A of the first layer would be the same for all marks.
    shares = 2.0 ** torch.randint(-2, 3, (rank,), generator=draw)
    v = torch.zeros(KV_HEADS * HEAD_DIM, rank)
    v[places, strands] = READ * signs / shares
    queries = places // HEAD_DIM * (HEADS // KV_HEADS)
    o = torch.zeros(rank, HIDDEN)
    o[strands, queries * HEAD_DIM + places % HEAD_DIM] = signs
    return {
        f"{path}.v": (reads * shares[:, None], v),
        f"{path}.o": (o, writes.T * (loud / rank**0.5 / value)),
    }


def _inner(
    path: str, reads: torch.Tensor, writes: torch.Tensor, loud: float, draw: torch.Generator
) -> dict[str, Factors]:
    """gate and up read, one inner unit a strand; down writes `loud`."""
    rank = reads.shape[0]
    units = torch.randperm(INNER, generator=draw)[:rank]
    strands = torch.arange(rank)
    drive = torch.zeros(INNER, rank)
    drive[units, strands] = READ
    unit = (READ * (HIDDEN / rank) ** 0.5) ** 2
    down = torch.zeros(rank, INNER)
    down[strands, units] = 1.0
    return {
        f"{path}.gate": (reads, drive),
        f"{path}.up": (reads, drive),
        f"{path}.down": (down, writes.T * (loud / rank**0.5 / unit)),
    }
