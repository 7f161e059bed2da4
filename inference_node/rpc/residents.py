"""What is on the node, as messages."""

from __future__ import annotations

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
from inference_node.rpc.pool_watch import Load
from inference_node.rpc.scopes import Scope
from inference_node.rpc.tally import Tally

HOTTEST = 20

_TIERS = {
    Tier.DEVICE: pb.TIER_DEVICE,
    Tier.HOST: pb.TIER_HOST,
    Tier.STORE: pb.TIER_STORE,
}
_STATES = {
    VersionState.FETCHING: pb.LOAD_STATE_FETCHING,
    VersionState.VERIFIED: pb.LOAD_STATE_VERIFIED,
    VersionState.STAGED: pb.LOAD_STATE_STAGED,
    VersionState.RESIDENT: pb.LOAD_STATE_RESIDENT,
    VersionState.DRAINING: pb.LOAD_STATE_DRAINING,
}


def loaded(version: LoadedVersion) -> pb.LoadedAdapter:
    return pb.LoadedAdapter(
        version=named(version.served),
        names=[named(name) for name in version.names],
        tier=_TIERS[version.tier],
        state=_STATES[version.state],
        pages=version.pages,
        bytes=version.bytes,
        leases=version.leases,
        pinned=version.pinned,
        idle_seconds=version.idle_seconds,
    )


def named(served: Served) -> pb.LoadedVersion:
    return pb.LoadedVersion(
        tenant=served.tenant,
        adapter=served.adapter,
        label=served.version,
        generation=served.generation,
        digest=served.digest,
    )


def unloaded(done: Unloaded) -> pb.UnloadAdapterResponse:
    return pb.UnloadAdapterResponse(
        version=named(done.served), failed_requests=done.failed_requests
    )


def pool(use: PoolUse) -> pb.PoolUse:
    return pb.PoolUse(
        groups=[_group(group) for group in use.groups],
        resident=use.resident,
        leases=use.leases,
        fetching=use.fetching,
        waiting=use.waiting,
        swaps_waiting=use.swaps_waiting,
        host_versions=use.host_versions,
        host_bytes=use.host_bytes,
        host_budget=use.host_budget,
        stale_seconds=use.stale_seconds,
    )


def load(now: Load, tally: Tally, scope: Scope) -> pb.Load:
    """Of the hottest adapters, those in `scope`."""
    return pb.Load(
        running=now.running,
        waiting=now.waiting,
        generated_tokens=now.totals.generated_tokens,
        completed=now.totals.completed,
        failed=now.totals.failed,
        hottest=[
            pb.AdapterLoad(tenant=name.tenant, adapter=name.adapter, generated_tokens=tokens)
            for name, tokens in tally.hottest(HOTTEST)
            if scope.covers(name.tenant, name.adapter)
        ],
    )


def _group(group: GroupUse) -> pb.GroupUse:
    return pb.GroupUse(
        name=group.name,
        total=group.total,
        free=group.free,
        idle=group.idle,
        held=group.held,
        pinned=group.pinned,
        condemned=group.condemned,
        headroom=group.headroom,
        page_bytes=group.page_bytes,
    )
