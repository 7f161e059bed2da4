"""Every measured system as one interface: prompts and adapters in, an `Answer` out."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu.llamacpp import LlamaServer, server_program, server_version
from benchmarks.cpu.vllm_peer import ENVIRONMENT, PRELOADED
from benchmarks.cpu.wire import Worker, WorkerFailed
from inference_node.model.default_base import GGUF_MEMBER, default_cache_dir, fetch_gguf
from inference_node.openmp import wait_briefly

AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Load:
    """`requests` at once, request i on adapter i modulo `adapters`; 0 adapters: the base."""

    name: str
    requests: int
    adapters: int
    prefix: str = "a"
    pages: int = 0
    """8-rank pages of all its adapters together."""

    def names(self) -> list[str]:
        if not self.adapters:
            return [""] * self.requests
        return [f"{self.prefix}{index % self.adapters}" for index in range(self.requests)]


LOADS = {
    load.name: load
    for load in (
        *(Load(f"distinct{n}", n, n, pages=n) for n in (1, 4, 16, 64)),
        *(Load(f"base{n}", n, 0) for n in (1, 4, 16, 64)),
        Load("mixed16", 16, 16, prefix="m", pages=4 * (1 + 2 + 4 + 8)),
        *(Load(f"over{n}", AT_ONCE, n, pages=n) for n in (1, 4)),
        Load("over32", 32, 32, pages=32),
    )
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What every request of every system is like."""

    prompt: int
    new: int

    def prompts(self, count: int, *, seed: int) -> list[list[int]]:
        """Random token ids, the same for everybody and never repeated."""
        drawn = random.Random(seed)
        return [[drawn.randrange(100, 40_000) for _ in range(self.prompt)] for _ in range(count)]


def tokens_a_second(answer: dict[str, Any], *, requests: int, new: int) -> float:
    """Of all requests together. Raises WorkerFailed when an answer has not the asked length."""
    if answer["lengths"] != [new] * requests:
        raise WorkerFailed(f"answers of {sorted(set(answer['lengths']))} tokens, {new} were asked")
    return requests * new / float(answer["seconds"])


class Systems:
    """Processes of the systems that are there, and why the others are not."""

    def __init__(self, base: Path, scratch: Path, *, threads: int) -> None:
        self.base, self.scratch, self._threads = base, scratch, threads
        self.skipped: dict[str, str] = {}
        self.versions: dict[str, Any] = {}
        self.running: dict[str, Any] = {}
        self._stack = ExitStack()

    @contextmanager
    def open(self) -> Iterator[Systems]:
        with self._stack:
            yield self

    def ours(self, name: str, *, pool_adapters: int, host_adapters: int) -> Worker:
        settings = {"pool_adapters": pool_adapters, "host_adapters": host_adapters}
        env = dict(os.environ)
        wait_briefly(env)
        return self._worker(
            name, sys.executable, "ours", {"base": str(self.base), **settings}, env=env
        )

    def folder(self, adapter: str) -> str:
        """Where a peer finds an adapter; empty for none."""
        return str(self.scratch / "adapters" / adapter) if adapter else ""

    def rates(self) -> dict[str, float]:
        worker = self._worker("rates", sys.executable, "rates", {})
        found: dict[str, float] = worker.ask("rates")
        worker.close()
        return found

    def start_peft(self, folders: Sequence[str]) -> None:
        settings = {"base": str(self.base), "folders": list(folders)}
        self.running["peft"] = self._worker("peft", sys.executable, "peft_peer", settings)

    def start_vllm(self, name: str, *, max_loras: int, max_len: int) -> None:
        """Without VLLM_PYTHON, or when it does not start, the system is skipped."""
        python = os.environ.get("VLLM_PYTHON")
        if not python:
            self.skipped[name] = "VLLM_PYTHON names no interpreter that has vLLM"
            return
        library = Path(python).parent.parent / "lib"
        found = [str(library / name) for name in PRELOADED if (library / name).exists()]
        system = Path("/usr/lib/x86_64-linux-gnu") / PRELOADED[0]
        if system.exists() and str(library / PRELOADED[0]) not in found:
            found.insert(0, str(system))
        settings = {"base": str(self.base), "max_loras": max_loras, "at_once": AT_ONCE}
        env = {**ENVIRONMENT, "LD_PRELOAD": ":".join(found)}
        try:
            worker = self._worker(
                name, python, "vllm_peer", {**settings, "max_len": max_len}, env=env
            )
        except WorkerFailed as error:
            self.skipped[name] = f"vLLM did not start: {error}"
            return
        self.running[name] = worker
        preloaded = [Path(one).name for one in found]
        settings["base"] = self.base.name
        self.versions[name] = {**worker.facts, **settings, "preloaded": preloaded}

    def start_llamacpp(self) -> None:
        """Without a server program, or when it does not start, the system is skipped."""
        program = server_program()
        if program is None:
            self.skipped["llamacpp"] = "no llama-server on PATH, and LLAMA_SERVER names none"
            return
        try:
            server = LlamaServer(
                program, gguf(), threads=self._threads, log=self.scratch / "llamacpp.log"
            )
        except (WorkerFailed, OSError) as error:
            self.skipped["llamacpp"] = str(error)
            return
        self._stack.callback(server.close)
        self.running["llamacpp"] = server
        self.versions["llamacpp"] = {"version": server_version(program), "weights": "Q4_1"}

    def _worker(
        self,
        name: str,
        python: str,
        module: str,
        settings: dict[str, Any],
        *,
        env: dict[str, str] | None = None,
    ) -> Worker:
        argv = [python, "-m", f"benchmarks.cpu.{module}", json.dumps(settings)]
        worker = Worker(argv, env=env, log=self.scratch / f"{name}.log")
        self._stack.callback(worker.close)
        return worker


def gguf() -> Path:
    """The default base's own GGUF file, kept in the cache folder. Raises BaseModelUnavailable."""
    kept = default_cache_dir() / Path(GGUF_MEMBER).name
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            fetch_gguf(Path(scratch)).rename(kept)
    return kept
