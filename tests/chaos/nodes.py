"""Node processes, from outside: started over a store, asked, and killed in the end."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_store.record import BaseCard
from adapter_store.settings import Endpoints
from adapter_store.validate import LocalAdapter, read_adapter_dir
from tests.chaos.bench import ROOT, child_environment

START_S = 240.0
ANSWER_S = 60.0


class ChaosNode:
    """One process of `tests.chaos.node`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {0: Future()}
        self._ready = self._waiting[0]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def wait_ready(self) -> None:
        self._ready.result(START_S)

    def until(self, name: str, gen: int) -> Future[dict[str, Any]]:
        """Resolves once a request for `name` was served `gen` or newer: at which monotonic time."""
        return self._tell(until=name, gen=gen)

    def ask(self, name: str, *, min_generation: int) -> dict[str, Any]:
        """`gen` that was served, or the `error` by name."""
        return self._tell(ask=name, min_generation=min_generation).result(ANSWER_S)

    def answered(self) -> int:
        """How many requests have been answered."""
        return int(self._counted()["answered"])

    def regressions(self) -> list[str]:
        """Answers older than what had been answered before."""
        return list(self._counted()["regressions"])

    def kill(self) -> None:
        """SIGKILL; whoever still waits for an answer gets EOFError."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._stdin.close()
        self._stdout.close()

    def _counted(self) -> dict[str, Any]:
        return self._tell(count=True).result(ANSWER_S)

    def _tell(self, **command: Any) -> Future[dict[str, Any]]:
        number, answer = next(self._ids), Future[dict[str, Any]]()
        self._waiting[number] = answer
        self._stdin.write(json.dumps({"id": number, **command}) + "\n")
        self._stdin.flush()
        return answer

    def _listen(self) -> None:
        for line in self._stdout:
            said = json.loads(line)
            self._waiting.pop(said["id"]).set_result(said)
        for waiting in self._waiting.values():
            waiting.set_exception(EOFError("the node ended"))


@dataclass(frozen=True, slots=True)
class Place:
    """What a node is given: the services, or without Redis to poll; a bug of `tests.chaos.node`."""

    endpoints: Endpoints
    bug: str = ""


@contextlib.contextmanager
def running_nodes(checkpoint: Path, places: Sequence[Place]) -> Iterator[list[ChaosNode]]:
    """A node at each of `places`, all ready."""
    with contextlib.ExitStack() as running:
        nodes = [running.enter_context(_node(checkpoint, place)) for place in places]
        for node in nodes:
            node.wait_ready()
        yield nodes


@contextlib.contextmanager
def _node(checkpoint: Path, place: Place) -> Iterator[ChaosNode]:
    command = [sys.executable, "-m", "tests.chaos.node", str(checkpoint)]
    process = subprocess.Popen(
        [*command, "--bug", place.bug] if place.bug else command,
        cwd=ROOT,
        env={**child_environment(place.endpoints), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    node = ChaosNode(process)
    try:
        yield node
    finally:
        node.kill()


class TinyBase:
    """A random checkpoint of two layers, and any number of adapters that fit it."""

    def __init__(self, folder: Path) -> None:
        # torch, which rows without nodes do without.
        from inference_node.config import EngineConfig
        from inference_node.engine.build import base_card
        from inference_node.model.default_base import ensure_default_base
        from tests.inference_node.tiny import make_adapter, make_checkpoint

        self._folder = folder
        self._make_adapter = make_adapter
        self.checkpoint = make_checkpoint(folder / "base", tokenizer_from=ensure_default_base())
        config = EngineConfig(base_model=str(self.checkpoint), device="cpu")
        self.card: BaseCard = base_card(config)

    def adapter(self, seed: int) -> LocalAdapter:
        """Content that depends on `seed` alone."""
        folder = self._folder / f"adapter-{seed}"
        self._make_adapter(folder, dict(self.card.modules), rank=2, targets=("q_proj",), seed=seed)
        return read_adapter_dir(folder, card=self.card)
