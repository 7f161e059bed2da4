"""The engine's settings as one frozen value; `cli/settings.py` reads environment and flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from inference_node.errors import BadConfiguration


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes are fixed at start: nothing grows afterwards, so nothing fragments."""

    base_model: str
    """A transformers checkpoint folder or model id."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    linears: str = "auto"
    """`nf4`: bitsandbytes' kernel. `dense`: the same 4-bit values dequantised once. `auto`: nf4."""
    kernels: str = "auto"
    """`fused`: in Triton, for CUDA. `native`: in C, for a CPU, compiled at the first start.
    `reference`: in torch. `auto`: the first two where Triton or a C compiler is."""
    dtype: str = "auto"
    """Compute dtype: `auto`, `float32` or `bfloat16`."""
    pool_bytes: int = 256 * 2**20
    """Device memory for adapters."""
    pool_shares: Mapping[str, float] = field(default_factory=dict)
    """How many pages the groups of linears have, in proportion, by the name of one linear of the
    group (`down_proj`); 1 where none is named."""
    resident_bytes: int = 0
    """On CUDA: device memory for base weights that are kept in bfloat16 too, where a measurement at
    the first start says that it is faster."""
    host_bytes: int = 512 * 2**20
    """Host memory for verified adapters that are not, or no longer, on the device."""
    kv_tokens: int = 16_384
    """Tokens of KV cache shared by all running requests."""
    block_tokens: int = 16
    run_ahead: bool = True
    """Where steps are captured: launch the next one before the tokens of the last are read."""
    prefix_cache: bool = True
    """Compute the beginning that requests of one tenant to one adapter version share only once."""
    max_rows: int = 64
    """Requests decoded in one step."""
    step_tokens: int = 512
    """Tokens in one step, prompt chunks included: bounds the wait a long prompt inflicts."""
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    """Shares of tenants that compete; 1 for a tenant that is not named."""
    fair_lag_tokens: int = 4096
    """How far a waiting tenant or adapter may fall behind one that runs before it takes a row from
    it. A prompt token counts 1, a generated one 2."""
    priority_aging_steps: int = 64
    """A priority class that waits so many steps rises by one."""
    max_context: int = 2048
    max_queue: int = 1024
    """Requests in progress. One tenant may have 8 times as many as there are places left."""
    max_rank: int = 64
    fetch_threads: int = 4
    poll_seconds: float = 30.0
    """How often a resident adapter's log is checked while the hint stream is healthy."""
    poll_seconds_without_hints: float = 5.0
    headroom_pages: int | None = None
    """Pages of each module group left to the next version of an adapter that is served; None: as
    many as the largest version so far."""
    page_wait_seconds: float = 1.0
    """For versions that wait longer for pages that requests hold, others make way, by turns."""
    max_staleness: float = 60.0
    """A name checked against the store longer ago than this is checked again at admission."""
    refuse_stale_after: float | None = None
    """Refuse what the store could not confirm for so many seconds; None: residents serve however
    long it is away."""

    def __post_init__(self) -> None:
        for name in (
            "pool_bytes",
            "kv_tokens",
            "block_tokens",
            "max_rows",
            "step_tokens",
            "fair_lag_tokens",
            "priority_aging_steps",
        ):
            if getattr(self, name) < 1:
                raise BadConfiguration(f"{name} must be at least 1")
        if not all(0 < weight < math.inf for weight in self.tenant_weights.values()):
            raise BadConfiguration("tenant_weights must be above 0")
        if not all(0 < share < math.inf for share in self.pool_shares.values()):
            raise BadConfiguration("pool_shares must be above 0")
        if self.headroom_pages is not None and self.headroom_pages < 0:
            raise BadConfiguration("headroom_pages must not be negative")
        if self.refuse_stale_after is not None and self.refuse_stale_after < 0:
            raise BadConfiguration("refuse_stale_after must not be negative")
        if self.page_wait_seconds < 0:
            raise BadConfiguration("page_wait_seconds must not be negative")
        if self.kv_tokens < self.block_tokens:
            raise BadConfiguration("kv_tokens must be at least block_tokens, or no request fits")
        if self.step_tokens < self.max_rows:
            raise BadConfiguration("step_tokens must be at least max_rows, or decode would starve")
        if self.device not in {"auto", "cpu", "cuda"}:
            raise BadConfiguration(f"device {self.device!r} is none of auto, cpu, cuda")
        if self.linears not in {"auto", "nf4", "dense"}:
            raise BadConfiguration(f"linears {self.linears!r} is none of auto, nf4, dense")
        if self.kernels not in {"auto", "fused", "native", "reference"}:
            raise BadConfiguration(
                f"kernels {self.kernels!r} is none of auto, fused, native, reference"
            )
        if self.dtype not in {"auto", "float32", "bfloat16"}:
            raise BadConfiguration(f"dtype {self.dtype!r} is none of auto, float32, bfloat16")
        if not 1 <= self.max_rank <= 64:
            raise BadConfiguration("max_rank must be 1 to 64")
