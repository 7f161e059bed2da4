"""A node as an operator runs it: `inference-node serve` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from adapter_store.processes import launch
from inference_node.client import Client
from inference_node.model.default_base import default_cache_dir
from tests.adapter_store.waiting import wait_until

BIN = Path(sys.executable).parent
START_S = 90.0
EXIT_S = 30.0
SERVE = (str(BIN / "inference-node"), "serve")
_READY = re.compile(r"(?:^|\")ready +(\S+:\d+) ", re.MULTILINE)


def clean_environment() -> dict[str, str]:
    """This process's, without settings of ours that a developer may have set."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LORAPOOL_")}


def with_kernels(cache: Path) -> Path:
    """A cache folder, empty but for the kernels that this process's own keeps compiled."""
    kernels = default_cache_dir() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True)
    (cache / kernels.name).symlink_to(kernels)
    return cache


@dataclass
class NodeProcess:
    """A node over a store; start and end it as often as one likes."""

    environment: Mapping[str, str]
    folder: Path
    program: Sequence[str] = SERVE
    """What is started: this, or the same with a fault in it."""
    process: subprocess.Popen[bytes] | None = None
    listen: str = "127.0.0.1:0"

    @property
    def log(self) -> Path:
        return self.folder / "node.log"

    @property
    def address(self) -> str:
        """Where it listens, once it said so."""
        found = _READY.search(self.log.read_text(errors="replace"))
        assert found is not None, "the node is not ready"
        return found[1]

    def start(self) -> NodeProcess:
        """Start it and wait until it says that it is ready."""
        self.launch()
        self.wait_ready()
        return self

    def launch(self) -> None:
        """Start it; on a thread that lives as long."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        self.process = launch(
            [*self.program, "--listen", self.listen],
            env={**clean_environment(), "OMP_NUM_THREADS": "2", **self.environment},
            folder=self.folder,
            log=self.log,
            die_with_parent=True,
        )

    def wait_ready(self, *, within_s: float = START_S) -> None:
        """Until it says that it is ready."""
        process = self.process
        assert process is not None

        def ready() -> bool:
            said = self.log.read_text(errors="replace")
            assert process.poll() is None, f"the node ended:\n{said[-3000:]}"
            return _READY.search(said) is not None

        wait_until(ready, within_s=within_s)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def client(self) -> Client:
        return Client(self.address)

    def channel(self) -> grpc.Channel:
        """A channel that tries nothing twice: what the node said first is what one sees."""
        return grpc.insecure_channel(self.address)

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short. Nothing when it does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(EXIT_S)

    def exit_code(self, *, within_s: float = EXIT_S) -> int:
        """Waits until it has left."""
        assert self.process is not None
        return self.process.wait(within_s)
