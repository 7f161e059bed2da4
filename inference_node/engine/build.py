"""Puts an engine together from its settings and a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from adapter_store.reader import Reader
from adapter_store.record import BaseCard
from inference_node.adapters.loader import Loader
from inference_node.adapters.pool import AdapterPool
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.watcher import Hints, Watcher
from inference_node.adapters.workers import background
from inference_node.config import EngineConfig
from inference_node.engine.admission import Admission
from inference_node.engine.census import GroupSize
from inference_node.engine.fairness import Fairness
from inference_node.engine.inbox import Inbox
from inference_node.engine.kv_blocks import BlockAllocator
from inference_node.engine.loop import EngineLoop
from inference_node.engine.prefix import PrefixNames
from inference_node.engine.runner import Runner, leave_the_cores
from inference_node.engine.scheduler import Scheduler
from inference_node.engine.sequence import Sequence
from inference_node.errors import BadConfiguration, NodeError
from inference_node.kernels.backend import Backend, NoTriton, choose
from inference_node.kernels.lora import ModuleMap
from inference_node.kernels.native import NoCompiler
from inference_node.kernels.stopwatch import seconds_on_card
from inference_node.model.checkpoint import (
    Base,
    checkpoint_folder,
    fingerprint,
    load_base,
    read_settings,
)
from inference_node.model.decoder import Decoder
from inference_node.model.default_base import default_cache_dir
from inference_node.model.graphs import CudaGraphs
from inference_node.model.trace import trace
from inference_node.quotas import QuotaTable
from inference_node.request import ModelInfo, PoolStatus
from inference_node.text import Tokenizer
from inference_node.tracing import OFF, Tracing


def base_card(config: EngineConfig) -> BaseCard:
    """What a publisher needs to know of the base; reads the checkpoint without loading it.

    Raises BaseModelUnavailable or UnsupportedModel.
    """
    folder = checkpoint_folder(config.base_model)
    settings = read_settings(folder)
    return BaseCard(
        fingerprint=fingerprint(folder),
        name=folder.name,
        architecture=settings.architectures[0],
        modules=trace(settings).modules.modules(),
        max_rank=config.max_rank,
    )


def _scheduler(config: EngineConfig, blocks: BlockAllocator, fingerprint: str) -> Scheduler:
    fairness = Fairness(
        weights=config.tenant_weights,
        lag_tokens=config.fair_lag_tokens,
        aging_steps=config.priority_aging_steps,
    )
    prefixes = PrefixNames(fingerprint, block_tokens=blocks.block_tokens)
    return Scheduler(
        blocks,
        max_rows=config.max_rows,
        step_tokens=config.step_tokens,
        fairness=fairness,
        prefixes=prefixes if config.prefix_cache else None,
    )


def _backend(config: EngineConfig, base: Base) -> Backend:
    try:
        return choose(config.kernels, device=base.device, folder=default_cache_dir() / "kernels")
    except (NoCompiler, NoTriton) as error:
        raise BadConfiguration(f"kernels={config.kernels}: {error}") from error


def _shares(config: EngineConfig, modules: ModuleMap) -> tuple[float, ...]:
    try:
        return modules.by_linear(config.pool_shares, default=1.0)
    except KeyError as error:
        known = ", ".join(
            tail.rsplit(".", 1)[-1] for group in modules.groups for tail in group.tails
        )
        raise BadConfiguration(
            f"pool_shares names linears that the base does not have: {error.args[0]}",
            hint=f"LORAPOOL_POOL_SHARES may name {known}",
        ) from None


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded base that an engine can be put around; one engine at a time."""

    decoder: Decoder
    tokenizer: Tokenizer


def load_model(config: EngineConfig) -> Model:
    """Load the base and choose its kernels.

    Raises BaseModelUnavailable, UnsupportedModel or BadConfiguration.
    """
    base = load_base(config)
    decoder = Decoder(base, linears=config.linears, backend=_backend(config, base))
    if config.resident_bytes:
        decoder.write_out(budget=config.resident_bytes, timings=default_cache_dir() / "timings")
    return Model(decoder, Tokenizer(str(checkpoint_folder(config.base_model))))


def build_engine(
    config: EngineConfig,
    *,
    reader: Reader,
    hints: Hints | None = None,
    quotas: Callable[[], QuotaTable] = QuotaTable,
    clock: Callable[[], float] = time.monotonic,
    tracing: Tracing = OFF,
) -> EngineLoop:
    """Load the base, fix the pool and the KV cache, wire the threads; not started yet.

    Raises BaseModelUnavailable, UnsupportedModel or BadConfiguration.
    """
    leave_the_cores()
    return assemble(
        load_model(config),
        config,
        reader=reader,
        hints=hints,
        quotas=quotas,
        clock=clock,
        tracing=tracing,
    )


def assemble(
    model: Model,
    config: EngineConfig,
    *,
    reader: Reader,
    hints: Hints | None = None,
    quotas: Callable[[], QuotaTable] = QuotaTable,
    clock: Callable[[], float] = time.monotonic,
    executor: Callable[[int, str], Executor] = background,
    tracing: Tracing = OFF,
) -> EngineLoop:
    """An engine around `model`, with a pool and a KV cache of its own.

    The engine that had the model before must have ended. `executor` makes the loader's workers.
    """
    decoder, base = model.decoder, model.decoder.base
    blocks = BlockAllocator(
        config.kv_tokens // config.block_tokens, block_tokens=config.block_tokens
    )
    max_context = min(base.max_context, blocks.total * blocks.block_tokens)
    decoder.allocate_cache(blocks=blocks.total, block_tokens=blocks.block_tokens)
    pool = AdapterPool(
        decoder.module_map,
        pool_bytes=config.pool_bytes,
        dtype=base.dtype,
        device=base.device,
        shares=_shares(config, decoder.module_map),
    )
    decoder.bind_pool(pool.groups)
    keep = config.headroom_pages
    slots = SlotTable(
        pool.allocator, headroom=None if keep is None else (keep,) * len(pool.allocator.total)
    )
    inbox = Inbox()
    loader = Loader(
        reader,
        modules=decoder.module_map,
        pool=pool,
        base_fingerprint=base.fingerprint,
        dtype=base.dtype,
        host_bytes=config.host_bytes,
        max_rank=config.max_rank,
        threads=config.fetch_threads,
        post=inbox.post,
        clock=clock,
        executor=executor,
        tracing=tracing,
    )
    watcher = Watcher(
        loader,
        hints,
        poll_seconds=config.poll_seconds,
        poll_seconds_without_hints=config.poll_seconds_without_hints,
        clock=clock,
    )

    def admission(
        ready: Callable[[Sequence], None], fail: Callable[[Sequence, NodeError], None]
    ) -> Admission:
        return Admission(
            slots,
            pool,
            loader,
            watcher,
            ready=ready,
            fail=fail,
            clock=clock,
            max_staleness=config.max_staleness,
            refuse_stale_after=config.refuse_stale_after,
            page_wait=config.page_wait_seconds,
            quotas=quotas,
        )

    def describe(status: PoolStatus, running: int, waiting: int) -> ModelInfo:
        return ModelInfo(
            name=base.name,
            architecture=base.architecture,
            base_fingerprint=base.fingerprint,
            device=str(base.device),
            kernel=decoder.kernel,
            base_bytes=decoder.base_bytes,
            base_bytes_bf16=decoder.base_bytes_bf16,
            max_context=max_context,
            max_rank=config.max_rank,
            groups=tuple(group.name for group in decoder.module_map.groups),
            pool=status,
            running=running,
            waiting=waiting,
        )

    card = BaseCard(
        fingerprint=base.fingerprint,
        name=base.name,
        architecture=base.architecture,
        modules=decoder.module_map.modules(),
        max_rank=config.max_rank,
    )
    runner = Runner(decoder, pool, block_tokens=blocks.block_tokens)
    if decoder.backend.captures:
        runner.capture(
            max_rows=config.max_rows,
            max_context=max_context,
            max_rank=config.max_rank,
            blocks=blocks.total,
            record=CudaGraphs(base.device),
            seconds=seconds_on_card,
        )
    return EngineLoop(
        card=card,
        inbox=inbox,
        runner=runner,
        scheduler=_scheduler(config, blocks, base.fingerprint),
        slots=slots,
        loader=loader,
        watcher=watcher,
        admission=admission,
        tokenizer=model.tokenizer,
        describe=describe,
        max_context=max_context,
        max_queue=config.max_queue,
        run_ahead=config.run_ahead,
        groups=[
            GroupSize(group.name, page_bytes)
            for group, page_bytes in zip(
                decoder.module_map.groups, pool.group_page_bytes, strict=True
            )
        ],
        clock=clock,
    )
