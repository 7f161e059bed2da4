"""The series of vLLM that routers scrape, filled with what they mean here.

Names and meanings: vLLM's own, and the model server protocol of the Gateway API's inference
extension. An adapter of the default tenant has its own name, another tenant's is `tenant/adapter`.
"""

from __future__ import annotations

from adapter_store.layout import DEFAULT_TENANT
from inference_node.readings import Readings
from inference_node.request import ModelInfo
from inference_node.residency import LoadedVersion, PoolUse, Tier
from inference_node.telemetry import series
from inference_node.telemetry.page import Page

MOST_NAMES = 200
"""In one label."""
PAGE_RANKS = 8


def write(page: Page, readings: Readings, info: ModelInfo, *, wall_clock: float) -> None:
    requests, kv = readings.requests, readings.kv
    waiting = requests.resolving + requests.loading + requests.waiting
    page.put(series.VLLM_RUNNING, requests.running, info.name)
    page.put(series.VLLM_WAITING, waiting, info.name)
    page.put(series.VLLM_KV, kv.held / kv.total, info.name)
    page.put(series.VLLM_CACHE, 1, str(kv.block_tokens), str(kv.total))
    most = capacity(readings.pool, on_device(readings))
    page.put(
        series.VLLM_LORA,
        wall_clock,
        str(most),
        _names(requests.running_adapters),
        _names(requests.waiting_adapters),
    )
    for (name, level), version in _loaded(readings.listed).items():
        pages = max(version.pages, default=0)
        rank = str(pages * PAGE_RANKS) if pages else ""
        page.put(series.VLLM_LOADED, 1, name, level, str(version.pinned).lower(), rank)
    page.put(series.VLLM_ON_GPU, on_device(readings))
    on_host = sum(n for (tier, _), n in readings.versions.items() if tier is Tier.HOST)
    page.put(series.VLLM_ON_CPU, on_host)
    page.put(series.VLLM_MOST, most)
    page.spread(series.VLLM_LOAD, readings.loading.fetch, "load")
    page.spread(series.VLLM_LOAD, readings.loading.promote, "activate")


def on_device(readings: Readings) -> int:
    return sum(n for (tier, _), n in readings.versions.items() if tier is Tier.DEVICE)


def capacity(pool: PoolUse, versions: int) -> int:
    """How many versions of the present ones' size fit the pool; there are no slots to count."""
    most = []
    for group in pool.groups:
        taken = group.total - group.free - group.condemned
        each = max(1.0, taken / versions) if versions else 1.0
        most.append(int((group.total - group.condemned) / each))
    return min(most, default=0)


def _loaded(listed: tuple[LoadedVersion, ...]) -> dict[tuple[str, str], LoadedVersion]:
    """By name and level; what the device serves is not told of the host too."""
    found: dict[tuple[str, str], LoadedVersion] = {}
    for version in listed:
        for name in version.names:
            found.setdefault((_name(name.tenant, name.adapter), "gpu"), version)
    for version in listed:
        kept = _name(version.served.tenant, version.served.adapter)
        if version.tier is Tier.HOST and (kept, "gpu") not in found:
            found.setdefault((kept, "cpu"), version)
    return found


def _names(adapters: tuple[tuple[str, str], ...]) -> str:
    return ",".join(_name(*adapter) for adapter in adapters[:MOST_NAMES])


def _name(tenant: str, adapter: str) -> str:
    return adapter if tenant == DEFAULT_TENANT else f"{tenant}/{adapter}"
