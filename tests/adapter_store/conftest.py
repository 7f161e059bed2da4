"""Stores in memory, and who reads them."""

from __future__ import annotations

import pytest

from adapter_store.memory import MemoryStore
from tests.adapter_store.publishing import publish
from tests.adapter_store.signed import Trust, trusted


@pytest.fixture
def store() -> MemoryStore:
    """An empty one."""
    return MemoryStore()


@pytest.fixture
def pair(store: MemoryStore) -> MemoryStore:
    """v1 and v2 of content 1 and 2 are in the log, v2 is served."""
    publish(store, 1)
    publish(store, 2)
    return store


@pytest.fixture
def trust() -> Trust:
    """Believes alice alone."""
    return Trust(trusted())
