"""What a node says of what is on it, as values."""

from __future__ import annotations

from dataclasses import dataclass

from inference_node.pb.lorapool.v1 import adapters_pb2 as pb
from inference_node.request import Served
from inference_node.residency import (
    GroupUse,
    LoadedVersion,
    PoolUse,
    Tier,
    Unloaded,
    VersionState,
)

_TIERS = {
    pb.TIER_DEVICE: Tier.DEVICE,
    pb.TIER_HOST: Tier.HOST,
    pb.TIER_STORE: Tier.STORE,
}
_STATES = {
    pb.LOAD_STATE_FETCHING: VersionState.FETCHING,
    pb.LOAD_STATE_VERIFIED: VersionState.VERIFIED,
    pb.LOAD_STATE_STAGED: VersionState.STAGED,
    pb.LOAD_STATE_RESIDENT: VersionState.RESIDENT,
    pb.LOAD_STATE_DRAINING: VersionState.DRAINING,
}


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """What was decoded under one adapter; an empty name is the base model."""

    tenant: str
    adapter: str
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a node, and what it has done since it started."""

    running: int
    waiting: int
    generated_tokens: int
    completed: int
    failed: int
    hottest: tuple[AdapterLoad, ...]
    """The adapters with the most tokens, most first."""


@dataclass(frozen=True, slots=True)
class PoolChange:
    """What has changed on a node; everything, the first time."""

    pool: PoolUse
    changed: tuple[LoadedVersion, ...]
    gone: tuple[Served, ...]
    """Versions that are on the node no more; owner and digest count."""
    load: Load


def to_loaded(message: pb.LoadedAdapter) -> LoadedVersion:
    return LoadedVersion(
        served=_served(message.version),
        names=tuple(_served(name) for name in message.names),
        tier=_TIERS[message.tier],
        state=_STATES[message.state],
        pages=tuple(message.pages),
        bytes=message.bytes,
        leases=message.leases,
        pinned=message.pinned,
        idle_seconds=message.idle_seconds,
    )


def to_unloaded(message: pb.UnloadAdapterResponse) -> Unloaded:
    return Unloaded(_served(message.version), message.failed_requests)


def to_pool(message: pb.PoolUse) -> PoolUse:
    return PoolUse(
        groups=tuple(
            GroupUse(
                g.name, g.total, g.free, g.idle, g.held, g.pinned, g.condemned, g.headroom,
                g.page_bytes,
            )
            for g in message.groups
        ),
        resident=message.resident,
        leases=message.leases,
        fetching=message.fetching,
        waiting=message.waiting,
        swaps_waiting=message.swaps_waiting,
        host_versions=message.host_versions,
        host_bytes=message.host_bytes,
        host_budget=message.host_budget,
        stale_seconds=message.stale_seconds,
    )  # fmt: skip


def to_change(message: pb.WatchPoolResponse) -> PoolChange:
    load = message.load
    return PoolChange(
        pool=to_pool(message.pool),
        changed=tuple(to_loaded(each) for each in message.changed),
        gone=tuple(_served(each) for each in message.gone),
        load=Load(
            running=load.running,
            waiting=load.waiting,
            generated_tokens=load.generated_tokens,
            completed=load.completed,
            failed=load.failed,
            hottest=tuple(
                AdapterLoad(each.tenant, each.adapter, each.generated_tokens)
                for each in load.hottest
            ),
        ),
    )


def _served(message: pb.LoadedVersion) -> Served:
    return Served(
        message.tenant, message.adapter, message.label, message.generation, message.digest
    )
