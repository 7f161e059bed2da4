"""One bucket, one Redis database, one base: where nodes and publishers of a test meet."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapter_store.commit import Published, Publisher
from adapter_store.coordination import Announcer, NoAnnouncer
from adapter_store.layout import DEFAULT_TENANT, AdapterRef
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.record import BaseCard
from adapter_store.settings import Endpoints, StoreSettings
from adapter_store.validate import read_adapter_dir
from tests.integration.node_process import BIN, SERVE, NodeProcess, clean_environment

NODE_SETTINGS = {
    "LORAPOOL_LINEARS": "dense",
    "LORAPOOL_DTYPE": "float32",
    "LORAPOOL_DEVICE": "cpu",
    "LORAPOOL_POOL_MB": "2",
    "LORAPOOL_HOST_MB": "16",
    "LORAPOOL_MAX_ROWS": "4",
    "LORAPOOL_MAX_CONTEXT": "4096",
    "LORAPOOL_KV_TOKENS": "32768",
    "LORAPOOL_DRAIN_DELAY": "0.6",
    # So rarely that only a hint explains quick news; often once there are no hints.
    "LORAPOOL_POLL_SECONDS": "600",
    "LORAPOOL_POLL_SECONDS_WITHOUT_HINTS": "0.5",
    "LORAPOOL_MAX_STALENESS": "600",
}


@dataclass
class Site:
    """Publishes, and says what a node needs to serve what was published."""

    endpoints: Endpoints
    base: Path
    card: BaseCard
    folder: Path

    @property
    def settings(self) -> StoreSettings:
        return StoreSettings.model_validate(asdict(self.endpoints))

    @property
    def store(self) -> ObjectStore:
        return self.settings.open_store()

    @property
    def cache(self) -> Path:
        """Where the node keeps chunks."""
        return self.folder / "cache"

    def node(self, program: Sequence[str] = SERVE) -> NodeProcess:
        """A node over this store, not started."""
        return NodeProcess(
            {
                **NODE_SETTINGS,
                **self.endpoints.environment(),
                "LORAPOOL_BASE_MODEL": str(self.base),
                "LORAPOOL_CACHE_DIR": str(self.cache),
            },
            self.folder,
            program,
        )

    def publish(
        self,
        name: str,
        folder: Path,
        *,
        label: str,
        card: BaseCard | None = None,
        silently: bool = False,
    ) -> Published:
        """Publish a folder; `silently` tells no node."""
        announcer: Announcer = NoAnnouncer() if silently else self.settings.open_announcer()
        return self._publisher(announcer).publish(
            DEFAULT_TENANT, name, read_adapter_dir(folder, card=card or self.card), label=label
        )

    def announce(self, name: str, gen: int) -> None:
        self.settings.open_announcer().announce(DEFAULT_TENANT, name, gen)

    def adapter_store(self, *arguments: str) -> dict[str, Any]:
        """What the tool's command answers as JSON."""
        done = subprocess.run(
            [BIN / "adapter-store", *arguments, "--json"],
            env={**clean_environment(), **self.endpoints.environment()},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def damage(self, name: str) -> None:
        """Flip one byte of what the adapter's current weights are made of."""
        version = Reader(self.store).resolve(AdapterRef(DEFAULT_TENANT, name)).version
        weights = max(version.files, key=lambda file: file.size)
        key = weights.chunks[0].key
        body = self.store.get(key)
        self.store.delete(key)
        self.store.put_new(key, body[:-1] + bytes([body[-1] ^ 1]))

    def _publisher(self, announcer: Announcer) -> Publisher:
        return Publisher(
            self.store,
            lock=self.settings.open_lock(),
            announcer=announcer,
            actor="test",
            warn=lambda message: None,
        )
