"""Takes the README's picture of the playground: real node, real personas, headless Chromium.

python examples/playground_picture.py        writes docs/playground.png
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

from adapter_store.embedded import EmbeddedStack
from adapter_store.services import free_ports
from inference_node.client import Client
from inference_node.errors import NodeError

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/playground.png"
PERSONAS = ROOT / "examples/personas/adapters"
BIN = Path(sys.executable).parent
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
START_SECONDS = 180.0


def main() -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit("no Chromium on PATH: apt-get install chromium-headless-shell")
    listen, page = (f"127.0.0.1:{port}" for port in free_ports("127.0.0.1", 2))
    with tempfile.TemporaryDirectory() as folder, EmbeddedStack(Path(folder) / "state") as stack:
        variables = {"LORAPOOL_LISTEN": listen, "LORAPOOL_PLAYGROUND_LISTEN": page}
        stack.spawn("node", [str(BIN / "inference-node"), "serve"], env=variables)
        wait_ready(stack, listen)
        for name in ("pirate", "poet", "chef"):
            push = [BIN / "adapter-store", "push", PERSONAS / name / "v1", "--name", name]
            subprocess.run(
                [*push, "--version", "v1"], env=stack.endpoints.environment(), check=True
            )
        query = urlencode({"personas": "base model,pirate,poet,chef", "ask": ""})
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--user-data-dir={folder}/browser", "--window-size=1240,640"),
                *("--virtual-time-budget=2000000", f"--screenshot={PICTURE}"),
                f"http://{page}/?{query}",
            ],
            check=True,
        )


def wait_ready(stack: EmbeddedStack, listen: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    with Client(listen) as client:
        while stack.is_running("node") and time.monotonic() < deadline:
            with contextlib.suppress(NodeError):
                if client.ready(timeout=2.0):
                    return
            time.sleep(0.2)
    raise SystemExit(f"the node did not start:\n{stack.log('node').read_text()[-2000:]}")


if __name__ == "__main__":
    main()
