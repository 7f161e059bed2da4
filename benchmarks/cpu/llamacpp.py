"""llama.cpp's server on the base model, in Q4_1 as its authors' GGUF file has it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cpu.wire import Process, WorkerFailed

START_S = 120.0


def server_program() -> str | None:
    """`LLAMA_SERVER`, else `llama-server` on PATH."""
    return os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")


def server_version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version:\s*(.+)", said.stdout + said.stderr)
    return found[1].strip() if found else "unknown"


class LlamaServer:
    """One server; it runs only while a question is asked."""

    def __init__(self, program: str, gguf: Path, *, threads: int, log: Path) -> None:
        """Raises WorkerFailed when it does not come up."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        argv = [program, "-m", str(gguf), "-t", str(threads), "-np", "16", "-c", "8192"]
        argv += ["--host", "127.0.0.1", "--port", str(port)]
        self.process = Process(argv, log=log, piped=False)
        self._wait()
        self.process.pause()

    def generate(self, prompts: Sequence[Sequence[int]], new: int) -> dict[str, Any]:
        """All at once; greedy, no early end."""
        self.process.wake()
        start = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as clients:
            lengths = list(clients.map(lambda prompt: self._complete(prompt, new), prompts))
        seconds = time.perf_counter() - start
        self.process.pause()
        return {"seconds": seconds, "lengths": lengths}

    def close(self) -> None:
        self.process.kill()

    def _complete(self, prompt: Sequence[int], new: int) -> int:
        question = {
            "prompt": list(prompt),
            "n_predict": new,
            "ignore_eos": True,
            "temperature": 0.0,
            "cache_prompt": False,
        }
        request = urllib.request.Request(
            f"{self._url}/completion",
            data=json.dumps(question).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return int(json.load(answer)["tokens_predicted"])

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.popen.poll() is None:
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.process.kill()
        raise WorkerFailed(f"llama-server did not come up:\n{self.process.last_words()}")
