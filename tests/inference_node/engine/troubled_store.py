"""A store in memory that fails as it is told, and counts what is asked of it."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from adapter_store.errors import StoreUnavailable
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.memory import MemoryStore
from adapter_store.objects import ListPage
from tests.inference_node.harness import PATIENCE, Node
from tests.inference_node.tiny import make_adapter


class TroubledStore(MemoryStore):
    """Counts what is read of blobs and of logs; can be away, slow, or give back other bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: Counter[str] = Counter()
        self.logs = 0
        self.away = False
        self.damaged: dict[str, int] = {}
        """How many more times a key comes back damaged; any blob under ``""``."""
        self.gate = threading.Event()
        self.gate.set()

    def get(self, key: str) -> bytes:
        self._refuse()
        if "/blob/" not in key:
            self.logs += 1
            return super().get(key)
        self.blobs[key] += 1
        assert self.gate.wait(PATIENCE)
        body = super().get(key)
        if self.damaged.get("", 0) > 0:
            self.damaged[""] -= 1
            return body[:-1] + bytes([body[-1] ^ 1])
        return body

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        self._refuse()
        self.logs += 1
        return super().list(prefix, delimiter=delimiter, limit=limit, token=token)

    def _refuse(self) -> None:
        if self.away:
            raise StoreUnavailable("the store does not answer")


def publish(node: Node, folder: Path, name: str, seed: int, *, rank: int = 8) -> int:
    place = folder / f"{name}-{seed}"
    return node.publish(name, make_adapter(place, dict(node.card.modules), rank=rank, seed=seed))


def served_gen(node: Node, name: str) -> int | None:
    entry = node.engine._slots.serving(DEFAULT_TENANT, name)
    return entry.gen if entry else None
