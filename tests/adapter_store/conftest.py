"""Stores in memory."""

from __future__ import annotations

import pytest

from adapter_store.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    """An empty one."""
    return MemoryStore()
