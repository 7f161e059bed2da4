"""Every series that a node has: its name, its labels, its meaning. docs/metrics.md is made of this.

Names never change their meaning. Units are in the names: seconds, bytes; what is counted is a
number. A label's values are few and known, but for those that name a tenant or an adapter: of
these at most LORAPOOL_METRICS_ADAPTERS have series of their own, and `(other)` is all the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

OTHER = "(other)"
"""Adapters without series of their own; no name of a tenant or an adapter looks so."""
BASE = "(base)"
"""The base model, where a series names an adapter."""


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Series:
    """One metric; a histogram is several series by Prometheus' own rules."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Series:
    return Series(name, Kind.COUNTER, help, labels)


def _gauge(name: str, help: str, *labels: str) -> Series:
    return Series(name, Kind.GAUGE, help, labels)


def _histogram(name: str, help: str, *labels: str) -> Series:
    return Series(name, Kind.HISTOGRAM, help, labels)


# Requests, as callers see them.
REQUESTS = _counter(
    "lorapool_requests_total",
    "Requests to generate that ended, by outcome (completed, cancelled, expired, refused, failed) "
    "and reason: that of the error, or STOP, STOP_SEQUENCE or LENGTH.",
    "outcome",
    "reason",
)
REQUEST_SECONDS = _histogram(
    "lorapool_request_seconds", "From a request's arrival to its end, by outcome.", "outcome"
)
RPCS = _counter(
    "lorapool_rpcs_total", "Calls that ended, by gRPC method and status code.", "method", "code"
)

# Requests, as the engine sees them.
IN_PROGRESS = _gauge(
    "lorapool_requests_in_progress",
    "Accepted requests that have not ended: resolving (their reference is looked up), loading "
    "(their adapter is), waiting (for a row or for KV blocks) or running.",
    "phase",
)
IN_PROGRESS_LIMIT = _gauge(
    "lorapool_requests_in_progress_limit", "So many are accepted; more are refused QUEUE_FULL."
)
QUEUE_OLDEST = _gauge(
    "lorapool_queue_oldest_seconds",
    "Age of the accepted request that has waited longest for its first step; 0 when none waits.",
)
QUEUE = _histogram(
    "lorapool_queue_seconds", "From acceptance to a request's first step, loading included."
)
ADAPTER_WAIT = _histogram(
    "lorapool_adapter_wait_seconds",
    "From acceptance until a request held its adapter's version: next to nothing when resident.",
)
FIRST_TOKEN = _histogram(
    "lorapool_time_to_first_token_seconds", "From acceptance to a request's first token."
)
GAP = _histogram(
    "lorapool_inter_token_seconds",
    "Between two tokens of one request; adapters says whether any was being loaded meanwhile "
    "(loading, quiet).",
    "adapters",
)
STALL = _counter(
    "lorapool_load_stall_seconds_total",
    "Spent on adapters between two steps while requests had to wait: each of them waited so long.",
)
STEP = _histogram("lorapool_step_seconds", "One forward pass over all running requests.")
PROMPT_TOKENS = _counter(
    "lorapool_prompt_tokens_total", "Prompt tokens of requests that reached their first step."
)
CACHED_TOKENS = _counter(
    "lorapool_prompt_cached_tokens_total", "Of those: not computed, for the cache had them."
)
GENERATED_TOKENS = _counter("lorapool_generated_tokens_total", "Tokens generated.")
PREEMPTIONS = _counter(
    "lorapool_preemptions_total", "Running requests that gave up their KV blocks and started over."
)
KV_BLOCKS = _gauge(
    "lorapool_kv_blocks",
    "Blocks of the KV cache: held by requests, cached (free, content may be used again), free.",
    "state",
)

# By adapter and version. What a canary is judged by.
VERSION_REQUESTS = _counter(
    "lorapool_version_requests_total",
    "Requests that ended, by the version that served them and outcome.",
    "tenant",
    "adapter",
    "version",
    "generation",
    "outcome",
)
VERSION_PROMPT_TOKENS = _counter(
    "lorapool_version_prompt_tokens_total",
    "Prompt tokens of those requests.",
    "tenant",
    "adapter",
    "version",
    "generation",
)
VERSION_GENERATED_TOKENS = _counter(
    "lorapool_version_generated_tokens_total",
    "Tokens that those requests were answered with.",
    "tenant",
    "adapter",
    "version",
    "generation",
)
VERSION_SECONDS = _histogram(
    "lorapool_version_request_seconds",
    "From arrival to end, of completed requests, by the version that served them.",
    "tenant",
    "adapter",
    "version",
    "generation",
)
VERSION_FIRST_TOKEN = _histogram(
    "lorapool_version_time_to_first_token_seconds",
    "From arrival to the first token, by the version that served it.",
    "tenant",
    "adapter",
    "version",
    "generation",
)
VERSION_PER_TOKEN = _histogram(
    "lorapool_version_time_per_token_seconds",
    "Decoding time over tokens after the first, of completed requests, by version.",
    "tenant",
    "adapter",
    "version",
    "generation",
)

# What is where.
PAGES = _gauge(
    "lorapool_pool_pages",
    "Pages of the adapter pool by module group: free, idle (evictable at once), held (by "
    "requests, or being filled or drained), pinned, condemned (out of use until a restart).",
    "group",
    "state",
)
PAGE_BYTES = _gauge("lorapool_pool_page_bytes", "Size of one page, by module group.", "group")
HEADROOM = _gauge(
    "lorapool_pool_headroom_pages",
    "Of free and idle pages: kept for next versions of adapters that are served.",
    "group",
)
LEASES = _gauge("lorapool_pool_leases", "Requests that hold a version.")
VERSIONS = _gauge(
    "lorapool_versions",
    "Adapter versions on this node, each in the nearest tier that has it (device, host, store) "
    "and its state there.",
    "tier",
    "state",
)
WAITING_VERSIONS = _gauge(
    "lorapool_versions_waiting",
    "Versions on the host that wait for pages: swap (their name is served meanwhile) or newcomer.",
    "kind",
)
VERSION_LOADED = _gauge(
    "lorapool_version_loaded",
    "1 for a version that is on this node, by the nearest tier that has it; (other) counts those "
    "that are not named.",
    "tenant",
    "adapter",
    "version",
    "generation",
    "digest",
    "tier",
)
GENERATION = _gauge(
    "lorapool_adapter_generation",
    "Generation that an adapter's bare name means on this node; nodes that differ are skewed.",
    "tenant",
    "adapter",
)
HOST_BYTES = _gauge("lorapool_host_bytes", "Verified adapters kept on the host.")
HOST_LIMIT = _gauge("lorapool_host_limit_bytes", "What they may take.")

# Loading.
LOADING = _gauge(
    "lorapool_loads_in_progress", "Versions being fetched, checked or copied, or queued for it."
)
LOOKUPS = _counter(
    "lorapool_adapter_lookups_total",
    "References looked up in the store's log: FOUND, or the reason why not.",
    "outcome",
)
LOADS = _counter(
    "lorapool_adapter_loads_total",
    "Versions that became resident, by where their weights were before: store or host.",
    "source",
)
REFUSALS = _counter(
    "lorapool_adapter_refusals_total",
    "Versions that could not be loaded, by reason; once for each try, however many waited.",
    "reason",
)
RECORDS_REFUSED = _counter(
    "lorapool_records_refused_total", "Records of the store that no trusted key signed."
)
FETCHED = _counter(
    "lorapool_adapter_fetched_bytes_total",
    "Files of adapters, every digest checked, from the store or the disk cache.",
)
LOAD_STAGE = _histogram(
    "lorapool_adapter_load_stage_seconds",
    "Parts of a load: resolve (look-up in the log), fetch (files and their digests), verify "
    "(contents checked, pages laid out on the host), stage (waiting for pages), promote (copying "
    "until requests can have it).",
    "stage",
)
LOAD = _histogram(
    "lorapool_adapter_load_seconds",
    "From the decision to load a version until requests could have it, resolve not included.",
)
SWAPS = _counter("lorapool_swaps_total", "Served names that went on to another version.")
EVICTIONS = _counter(
    "lorapool_evictions_total", "Versions that made room for others, by tier.", "tier"
)
MADE_WAY = _counter(
    "lorapool_versions_made_way_total",
    "Versions taken off running requests because others had waited too long for pages.",
)
WITHDRAWALS = _counter(
    "lorapool_withdrawals_total", "Times that what a name served was no longer to be believed."
)

# The store, and news of it.
STALENESS = _gauge(
    "lorapool_staleness_seconds",
    "The longest that a served name has gone without the store's word that it means this version.",
)
STORE_AWAY = _gauge(
    "lorapool_store_away", "1 while the store, having failed a few times in a row, is left alone."
)
HINTS_HEALTHY = _gauge(
    "lorapool_hints_healthy", "1 while news comes through Redis; absent on nodes without."
)

# The node.
NODE = _gauge(
    "lorapool_node_info",
    "1; what this node is.",
    "version",
    "base",
    "base_fingerprint",
    "device",
    "kernel",
)
ENGINE_UP = _gauge("lorapool_engine_up", "1 while the engine can serve.")
DRAINING = _gauge("lorapool_draining", "1 once the node was told to leave.")
READ_SECONDS = _gauge(
    "lorapool_scrape_engine_seconds",
    "This scrape waited so long for the engine to come between two steps; absent, as all that the "
    "engine knows, when it did not answer.",
)

AUDIT_LOST = _counter(
    "lorapool_audit_lost_lines_total",
    "Lines of the audit file that could not be written; absent on nodes without one.",
)

# What routers scrape: vLLM's names and meanings.
VLLM_RUNNING = _gauge("vllm:num_requests_running", "Requests in the running batch.", "model_name")
VLLM_WAITING = _gauge("vllm:num_requests_waiting", "Requests waiting to be run.", "model_name")
VLLM_KV = _gauge("vllm:kv_cache_usage_perc", "Share of KV blocks held; 1 is all.", "model_name")
VLLM_CACHE = _gauge(
    "vllm:cache_config_info", "1; the size of the KV cache.", "block_size", "num_gpu_blocks"
)
VLLM_LORA = _gauge(
    "vllm:lora_requests_info",
    "Adapters with requests running and waiting; the value is the time of the scrape, in seconds "
    "since 1970.",
    "max_lora",
    "running_lora_adapters",
    "waiting_lora_adapters",
)
VLLM_LOADED = _gauge(
    "vllm:lora_adapter_loaded",
    "1 for an adapter whose bare name is served from the device (level gpu), and for a version "
    "that the host keeps (cpu); of the host's the most recent alone.",
    "adapter_name",
    "level",
    "pinned",
    "rank",
)
VLLM_ON_GPU = _gauge("vllm:num_gpu_loaded_lora_adapters", "Versions on the device.")
VLLM_ON_CPU = _gauge("vllm:num_cpu_loaded_lora_adapters", "Versions on the host alone.")
VLLM_MOST = _gauge(
    "vllm:max_gpu_lora_adapters",
    "So many versions as large as the present ones are on average fit the device.",
)
VLLM_LOAD = _histogram(
    "vllm:lora_adapter_load_seconds",
    "Loading by transition: load (from the store to the host) and activate (to the device).",
    "transition",
)

SERIES: tuple[Series, ...] = tuple(one for one in globals().values() if isinstance(one, Series))
"""All of them, in the order in which they stand here."""
