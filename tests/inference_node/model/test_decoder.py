"""The paged decoder computes what transformers' own forward pass computes, for every layout of
projections, with adapters as if they were merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
)

from adapter_store.lora_config import parse_config
from adapter_store.validate import AdapterTensors, check_content
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Resident, VersionKey
from inference_node.adapters.weights import host_adapter
from inference_node.config import EngineConfig
from inference_node.kernels.lora import LoraPlan
from inference_node.kernels.paged_attention import AttentionPlan, Chunk
from inference_node.kernels.quant4 import dequantise
from inference_node.model.batch import ForwardBatch
from inference_node.model.checkpoint import load_base
from inference_node.model.decoder import Decoder
from inference_node.model.trace import trace
from tests.inference_node.tiny import make_adapter

CPU = torch.device("cpu")
BLOCK, BLOCKS, VOCABULARY = 4, 40, 96
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "phi3": Phi3Config(**SIZES),
}
GROUPS = {
    "llama": ("q_proj+k_proj+v_proj", "o_proj", "gate_proj+up_proj", "down_proj"),
    "qwen2": ("q_proj+k_proj+v_proj", "o_proj", "gate_proj+up_proj", "down_proj"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
}
WIDTHS = {
    "llama": ((64, (64, 32, 32)), (64, (64,)), (64, (128, 128)), (128, (64,))),
    "qwen2": ((64, (64, 32, 32)), (64, (64,)), (64, (128, 128)), (128, (64,))),
    "phi3": ((64, (128,)), (64, (64,)), (64, (256,)), (128, (64,))),
}


@dataclass
class Bench:
    """A decoder under test and the plain model it must agree with."""

    folder: Path
    decoder: Decoder
    plain: Any
    tables: dict[str, list[int]] = field(default_factory=dict)
    past: dict[str, list[int]] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)

    def restart(self) -> None:
        """Empty cache, no sequences."""
        self.decoder.allocate_cache(blocks=BLOCKS, block_tokens=BLOCK)
        self.tables, self.past = {}, {}
        self.free = list(range(1, BLOCKS + 1))

    def step(
        self,
        work: Sequence[tuple[str, int]],
        *,
        pool: AdapterPool | None = None,
        leases: Mapping[str, Resident] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Feed the next tokens of some sequences; their logits, a row a token."""
        chunks, segments = [], []
        ids: list[int] = []
        positions: list[int] = []
        for name, length in work:
            table, past = self.tables.setdefault(name, []), self.past.setdefault(name, [])
            start = len(past)
            while len(table) * BLOCK < start + length:
                table.append(self.free.pop())
            chunks.append(Chunk(tuple(table), start, length))
            held = (leases or {}).get(name)
            routed = pool.routing(held) if pool is not None and held is not None else None
            segments.append((len(ids), length, routed))
            positions += range(start, start + length)
            ids += [token_of(name, place) for place in range(start, start + length)]
            past += ids[-length:]
        groups = len(self.decoder.module_map.groups)
        logits = self.decoder.forward(
            ForwardBatch(
                token_ids=torch.tensor(ids),
                positions=torch.tensor(positions),
                attention=AttentionPlan.build(chunks, block_tokens=BLOCK, device=CPU),
                lora=LoraPlan.build(segments, groups=groups, device=CPU, dtype=torch.float32),
                logit_rows=torch.arange(len(ids)),
            )
        )
        assert logits.dtype is torch.float32
        rows = logits.split([length for _, length in work])
        return {name: found for (name, _), found in zip(work, rows, strict=True)}

    @torch.inference_mode()
    def expected(self, name: str, rows: int) -> torch.Tensor:
        """The plain model's logits of the last `rows` tokens of a sequence read at once."""
        ids = torch.tensor([self.past[name]])
        logits: torch.Tensor = self.plain(input_ids=ids, use_cache=False).logits
        return logits[0, -rows:]

    def compare(self, found: Mapping[str, torch.Tensor]) -> None:
        for name, logits in found.items():
            expected = self.expected(name, logits.shape[0])
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def token_of(name: str, place: int) -> int:
    return 3 + (ord(name[0]) * 31 + place * place * 7 + place) % (VOCABULARY - 3)


def build(folder: Path, config: PretrainedConfig) -> Bench:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    settings = EngineConfig(base_model=str(folder), dtype="float32", linears="dense")
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    base = load_base(settings)
    for path, module in base.model.named_modules():
        if hasattr(module, "quant_storage"):
            weight = dequantise(module, dtype=torch.float32)
            plain.get_submodule(path).load_state_dict({"weight": weight}, strict=False)
    bench = Bench(folder, Decoder(base, linears="dense"), plain.eval())
    bench.restart()
    return bench


@pytest.fixture(scope="module", params=list(CONFIGS))
def shared_bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return build(tmp_path_factory.mktemp("base") / request.param, CONFIGS[request.param])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny operands: threads would cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    shared_bench.restart()
    return shared_bench


@pytest.mark.parametrize("name", list(CONFIGS))
def test_linears_that_read_one_tensor_are_one_group_in_the_order_they_run(name: str) -> None:
    traced = trace(CONFIGS[name]).modules
    assert traced.head == "model.layers."
    assert traced.layers == 2
    assert tuple(group.name for group in traced.groups) == GROUPS[name]
    found = tuple((g.shape.in_features, g.shape.out_features) for g in traced.groups)
    assert found == WIDTHS[name]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_linear_of_every_layer_and_no_other_can_be_adapted(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    linears = {
        path: (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in path
    }
    assert trace(CONFIGS[name]).modules.modules() == linears


def test_a_quantised_configuration_traces_like_the_plain_one(bench: Bench) -> None:
    quantised = bench.decoder.base.model.config
    assert quantised.quantization_config is not None
    assert trace(quantised) == trace(bench.plain.config) == bench.decoder.base.traced


def test_a_whole_prompt_gives_transformers_own_logits(bench: Bench) -> None:
    bench.compare(bench.step([("a", 11)]))


def test_prompts_chunks_and_single_tokens_mixed_give_transformers_own_logits(bench: Bench) -> None:
    steps: list[list[tuple[str, int]]] = [
        [("a", 6)],
        [("a", 1), ("b", 9)],
        [("a", 1), ("b", 4), ("c", 2)],
        [("b", 1), ("a", 1), ("c", 7)],
        [("d", 1), ("c", 1), ("b", 1), ("a", 1)],
        [("a", 1), ("d", 5)],
    ]
    for work in steps:
        bench.compare(bench.step(work))


def test_logits_come_only_for_the_rows_asked_for(bench: Bench) -> None:
    whole = bench.step([("a", 9)])["a"]
    bench.restart()
    batch = ForwardBatch(
        token_ids=torch.tensor([token_of("a", place) for place in range(9)]),
        positions=torch.arange(9),
        attention=AttentionPlan.build([Chunk((1, 2, 3), 0, 9)], block_tokens=BLOCK, device=CPU),
        lora=None,
        logit_rows=torch.tensor([8, 2]),
    )
    torch.testing.assert_close(bench.decoder.forward(batch), whole[[8, 2]], rtol=1e-5, atol=1e-5)


def test_control_two_sequences_on_one_block_are_seen(bench: Bench) -> None:
    bench.step([("a", 6)])
    bench.step([("b", 7)])
    bench.tables["b"][0] = bench.tables["a"][0]
    with pytest.raises(AssertionError):
        bench.compare(bench.step([("a", 1), ("b", 1)]))


def test_control_positions_off_by_one_are_seen(bench: Bench) -> None:
    bench.step([("a", 6)])
    bench.past["a"].insert(3, 3)
    with pytest.raises(AssertionError):
        bench.compare(bench.step([("a", 1)]))


def checked(folder: Path, decoder: Decoder) -> AdapterTensors:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = parse_config(files["adapter_config.json"]).allow_listed()
    return check_content(files, config=config, card_modules=decoder.module_map.modules())


def dense(found: AdapterTensors, module: str) -> torch.Tensor:
    """scale * B A of one module."""
    a, b = (
        torch.tensor(array).view(torch.bfloat16).float()
        for array in (found.a(module), found.b(module))
    )
    return found.spec.scale * (b @ a)


def test_rows_with_adapters_give_the_logits_of_the_model_with_the_adapter_merged(
    bench: Bench, tmp_path: Path
) -> None:
    decoder = bench.decoder
    modules = decoder.module_map.modules()
    leaves = {path.rsplit(".", 1)[-1] for path in modules}
    targets = {"a": sorted(leaves), "b": ["o_proj", "down_proj"], "c": sorted(leaves)[:1]}
    pool = AdapterPool(decoder.module_map, pool_bytes=2**22, dtype=torch.float32, device=CPU)
    decoder.bind_pool(pool.groups)
    slots = SlotTable(pool.allocator)
    leases, contents = {}, {}
    for rank, (name, chosen) in zip((5, 12, 33), targets.items(), strict=True):
        folder = make_adapter(
            tmp_path / name, modules, rank=rank, targets=chosen, seed=rank, strength=0.05
        )
        contents[name] = checked(folder, decoder)
        host = host_adapter(contents[name], decoder.module_map, dtype=torch.float32)
        staged = slots.stage(VersionKey("t", name), wanted=host.pages, scale=host.scale)
        pool.claim(staged)
        pool.write(staged, host)
        slots.activate(staged)
        leases[name] = slots.lease(staged.key)
    bench.step([("a", 5), ("b", 6), ("base", 4), ("c", 20)], pool=pool, leases=leases)
    work = [("a", 1), ("base", 1), ("c", 1), ("b", 3)]
    found = bench.step(work, pool=pool, leases=leases)
    unadapted = {name: bench.expected(name, rows.shape[0]) for name, rows in found.items()}
    torch.testing.assert_close(found["base"], unadapted["base"], rtol=1e-4, atol=1e-4)
    for name, content in contents.items():
        assert (found[name] - unadapted[name]).abs().max() > 0.01
        unmerged = {key: value.clone() for key, value in bench.plain.state_dict().items()}
        for module in content.modules:
            bench.plain.get_submodule(module).weight.data += dense(content, module)
        merged = bench.expected(name, found[name].shape[0])
        bench.plain.load_state_dict(unmerged)
        torch.testing.assert_close(found[name], merged, rtol=1e-3, atol=1e-3)


def test_blocks_that_held_values_that_are_not_finite_are_clean_after_they_are_zeroed(
    bench: Bench,
) -> None:
    bench.step([("a", 6)])
    bench.tables["a"].reverse()
    for cache in (*bench.decoder._cache.k, *bench.decoder._cache.v):
        cache[bench.tables["a"]] = torch.nan
    bench.decoder.zero_blocks(bench.tables["a"])
    bench.free += bench.tables.pop("a")
    bench.compare(bench.step([("b", 1)]))
    bench.compare(bench.step([("b", 1), ("c", 3)]))


def test_a_forward_pass_leaves_no_routing_behind(bench: Bench) -> None:
    bench.step([("a", 3)])
    assert bench.decoder._cache.plan is None
    assert bench.decoder._step._plan is None


def test_a_forward_pass_that_fails_leaves_no_routing_behind(bench: Bench) -> None:
    bad = ForwardBatch(
        token_ids=torch.tensor([VOCABULARY + 1]),
        positions=torch.tensor([0]),
        attention=AttentionPlan.build([Chunk((1,), 0, 1)], block_tokens=BLOCK, device=CPU),
        lora=None,
        logit_rows=torch.tensor([0]),
    )
    with pytest.raises(IndexError):
        bench.decoder.forward(bad)
    assert bench.decoder._cache.plan is None
    bench.compare(bench.step([("a", 3)]))


def test_a_4_bit_base_says_how_much_smaller_it_is(bench: Bench) -> None:
    settings = EngineConfig(base_model=str(bench.folder), dtype="float32")
    decoder = Decoder(load_base(settings), linears="nf4")
    parameters = sum(p.numel() for p in bench.plain.parameters())
    assert decoder.base_bytes_bf16 == 2 * parameters
    assert decoder.base_bytes < bench.decoder.base_bytes
    assert "float32" in decoder.kernel
