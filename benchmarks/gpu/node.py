"""What a row measures: a base with random 4-bit weights, pages of random adapters, and steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.gpu.sizes import Size
from inference_node.adapters.pool import AdapterPool
from inference_node.kernels.backend import Backend
from inference_node.kernels.lora import PAGE_RANKS, GroupPool, ModuleMap, SlotPages
from inference_node.kernels.quant4 import GemmLinear, stacked
from inference_node.kernels.stopwatch import seconds_on_card
from inference_node.model.batch import Decoded
from inference_node.model.checkpoint import ATTENTION, Base
from inference_node.model.decoder import Decoder
from inference_node.model.graphs import CudaGraphs, DecodeGraphs, Record, Replay, Step
from inference_node.model.layer_trial import choose_layers
from inference_node.model.layers import LoraLinear
from inference_node.model.static_batch import DecodeRow, StaticSizes
from inference_node.model.trace import trace

BLOCK_TOKENS = 16
WIDEST = 8
DTYPE = torch.bfloat16


def random_model(
    size: Size, device: torch.device, *, attention: str, dtype: torch.dtype = DTYPE
) -> Any:
    """A causal LM whose linears are NF4, made on the device without a checkpoint."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            size.config, dtype=dtype, attn_implementation=attention
        )
    torch.manual_seed(0)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "layers." in path:
            parent, _, name = path.rpartition(".")
            made = _random_linear(module.in_features, module.out_features, device)
            setattr(model.get_submodule(parent), name, made)
    for path, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            owner, _, name = path.rpartition(".")
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
            value.fill_(1.0) if parameter.ndim == 1 else value.normal_(0, 0.02)
            setattr(model.get_submodule(owner), name, nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    decoder = model.get_decoder()
    with torch.device(device):
        decoder.rotary_emb = type(decoder.rotary_emb)(config=size.config)
    return model.eval().requires_grad_(False)


def _random_linear(in_features: int, out_features: int, device: torch.device) -> Linear4bit:
    weight = torch.randn(out_features, in_features, dtype=DTYPE, device=device)
    weight *= in_features**-0.5
    codes, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    linear = Linear4bit(
        in_features,
        out_features,
        bias=False,
        compute_dtype=DTYPE,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    linear.weight = Params4bit(
        codes, requires_grad=False, quant_state=state, bnb_quantized=True, module=linear
    )
    linear.quant_state = state
    return linear.eval()


def pools_of(
    modules: ModuleMap,
    pages: Sequence[int],
    device: torch.device,
    *,
    dtype: torch.dtype = DTYPE,
) -> tuple[GroupPool, ...]:
    """`pages[g]` pages of random factors in group g, beside the null page."""
    pools = []
    for group, count in zip(modules.groups, pages, strict=True):
        shape = group.shape
        a = torch.zeros((count + 1, modules.layers, *shape.a_page), dtype=dtype, device=device)
        b = torch.zeros((count + 1, modules.layers, *shape.b_page), dtype=dtype, device=device)
        for page in range(1, count + 1):
            a[page].normal_(0, shape.in_features**-0.5)
            b[page].normal_(0, 0.02)
        pools.append(GroupPool(shape, a, b))
    return tuple(pools)


def random_pool(node: Node, pages: int) -> AdapterPool:
    """The engine's own pool, so many random pages in every group."""
    elements = sum(g.shape.page_elements(node.modules.layers) for g in node.modules.groups)
    pool = AdapterPool(
        node.modules,
        pool_bytes=pages * elements * DTYPE.itemsize,
        dtype=DTYPE,
        device=node.device,
    )
    for group in pool.groups:
        for tensor in (group.a, group.b):
            tensor[1:].normal_(0, 0.02)
    return pool


def adapters(ranks: Sequence[int], groups: Sequence[bool], *, pages: int = 0) -> list[SlotPages]:
    """One adapter of each rank on pages of its own, in the groups that are true.

    `pages` gives each so many pages instead, as a pool that pads to its largest rank would.
    """
    made, following = [], 1
    for stamp, rank in enumerate(ranks):
        count = pages or -(-rank // PAGE_RANKS)
        own = tuple(range(following, following + count))
        following += count
        made.append(SlotPages(tuple(own if has else () for has in groups), 1.0, stamp))
    return made


class Node:
    """One decoder over a KV cache that holds `rows` sequences of the size's context."""

    def __init__(
        self, size: Size, backend: Backend, device: torch.device, *, rows: int, bandwidth: float
    ) -> None:
        """`bandwidth` is what a copy on the device reaches, in bytes read and written a second."""
        self.size, self.device, self.rows, self.bandwidth = size, device, rows, bandwidth
        model = random_model(size, device, attention=ATTENTION)
        self.originals = {
            path: module for path, module in model.named_modules() if isinstance(module, Linear4bit)
        }
        traced = trace(copy.deepcopy(size.config))
        base = Base(
            model=model,
            name=size.name,
            architecture=type(model).__name__,
            fingerprint="random",
            device=device,
            dtype=DTYPE,
            max_context=size.context,
            traced=traced,
        )
        # Off CUDA "nf4" repacks weights for the processor: take the operator by hand instead.
        cuda = device.type == "cuda"
        self.decoder = Decoder(base, backend=backend, linears="nf4" if cuda else "dense")
        self.modules = self.decoder.module_map
        for shared, originals in [] if cuda else self.products():
            shared.base = GemmLinear(stacked(originals))
        per_row = -(-size.context // BLOCK_TOKENS)
        self.sizes = StaticSizes(
            groups=len(self.modules.groups),
            widest=WIDEST,
            blocks=per_row,
            block_tokens=BLOCK_TOKENS,
            spare_block=rows * per_row + 1,
        )
        self.decoder.allocate_cache(blocks=rows * per_row, block_tokens=BLOCK_TOKENS)
        self.short = False
        """Whether layers run in few launches; `choose` says."""
        self.refill()
        self.forget()

    @property
    def record(self) -> Record:
        """How steps are captured here."""
        return CudaGraphs(self.device) if self.device.type == "cuda" else rerun

    def choose(self) -> None:
        """Run layers as the engine would, from now on."""
        cuda = self.device.type == "cuda"
        choose_layers(
            self.decoder,
            self.sizes,
            max_rows=max(self.size.rows),
            record=self.record,
            seconds=seconds_on_card if cuda else lambda replay: 1.0,
        )
        self.short = self.decoder.is_short
        self.refill()

    def refill(self) -> None:
        """Random keys and values: arithmetic on zeros can be faster."""
        for cache in self.decoder.caches:
            cache.normal_()

    def forget(self) -> None:
        """Drop every captured step."""
        self.graphs = DecodeGraphs(self.decoder.forward, self.record)

    def products(self) -> list[tuple[Any, list[Any]]]:
        """For every group of every layer: what serves it, and bitsandbytes' own modules."""
        found = []
        for layer in range(self.modules.layers):
            for group in self.modules.groups:
                paths = [self.modules.path(layer, tail) for tail in group.tails]
                first: LoraLinear = self.decoder.base.model.get_submodule(paths[0])
                found.append((first.group, [self.originals[path] for path in paths]))
        return found

    def by_module(self, originals: Sequence[Linear4bit]) -> list[nn.Module]:
        """bitsandbytes' own modules, as they are called by transformers.

        Off CUDA one call of theirs would repack the weights for the processor.
        """
        if self.device.type == "cuda":
            return list(originals)
        return [GemmLinear(linear) for linear in originals]

    def bind(self, pools: tuple[GroupPool, ...]) -> None:
        """Serve from these pages; forgets what was captured over the pages of before."""
        self.forget()
        self.decoder.bind_pool(pools)

    def capture(self, *rows: int) -> None:
        """Raises RuntimeError when a step cannot be captured."""
        self.graphs.capture(rows, self.sizes, device=self.device)
        if self.graphs.count < 2 * len(rows):
            raise RuntimeError("a decode step could not be captured; the log says why")

    def step(self, slots: Sequence[SlotPages | None]) -> list[DecodeRow]:
        """A row for each, at the last token of its context; sequences lie scattered."""
        per_row, last = self.sizes.blocks, self.size.context - 1
        return [
            DecodeRow(
                (7 * row) % self.size.config.vocab_size,
                last,
                [1 + (row + self.rows * block) for block in range(per_row)],
                slot,
            )
            for row, slot in enumerate(slots)
        ]

    def replay(self, slots: Sequence[SlotPages | None]) -> Callable[[], None]:
        """The captured step over these rows, its inputs already on the device."""
        if self.graphs.run(self.step(slots)) is None:
            raise RuntimeError(f"no captured step of {len(slots)} rows")
        held = self.graphs.held(len(slots), lora=any(slots))
        inputs = held.step.on_device.clone()

        def run() -> None:
            held.step.on_device.copy_(inputs)
            held.replay()

        return run

    @property
    def linear_bytes(self) -> int:
        """Of the 4-bit weights of a step, their scales among them."""
        weights = [one.in_features * one.out_features for one in self.originals.values()]
        return sum(count // 2 + count // 64 * 4 for count in weights)

    def milliseconds(self, size: int) -> float:
        """What so many bytes take at the rate of a copy."""
        return size / self.bandwidth * 1e3

    def floor_ms(self, slots: Sequence[SlotPages | None]) -> float:
        """What one step over these rows takes if it only reads what it must."""
        return self.milliseconds(self.floor_bytes(slots))

    def floor_bytes(self, slots: Sequence[SlotPages | None]) -> int:
        """Bytes that one step must read: weights, keys and values, and each adapter once."""
        total = self.linear_bytes
        head = self.decoder.base.model.get_output_embeddings().weight
        total += head.numel() * head.element_size()
        config = self.size.config
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        token = 2 * config.num_key_value_heads * head_dim * config.num_hidden_layers * 2
        total += token * self.size.context * len(slots)
        return total + adapter_bytes(self.modules, slots)


def adapter_bytes(modules: ModuleMap, slots: Sequence[SlotPages | None]) -> int:
    """Bytes of the distinct adapters among these."""
    total = 0
    for slot in {slot.stamp: slot for slot in slots if slot is not None}.values():
        for group, pages in zip(modules.groups, slot.pages, strict=True):
            total += len(pages) * group.shape.page_elements(modules.layers) * DTYPE.itemsize
    return total


def rerun(step: Step) -> tuple[Replay, Decoded]:
    """Where there is no card: the step, computed again with every run."""
    out = step()

    @torch.inference_mode()
    def replay() -> None:
        again = step()
        out.logits.copy_(again.logits)
        out.best.copy_(again.best)

    return replay, out
