"""Verified adapters stay on the host within a budget, the least recently used out first."""

from __future__ import annotations

import torch

from inference_node.adapters.host_tier import HostTier
from inference_node.adapters.versions import Entry, VersionKey
from inference_node.adapters.weights import HostAdapter, HostGroup


def host_of(size: int) -> HostAdapter:
    """A host adapter of `size` bytes."""
    group = HostGroup(torch.zeros(size, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8))
    return HostAdapter((group, None), 1.0)


def tier_key(name: str) -> VersionKey:
    return VersionKey("t", name)


def put(tier: HostTier, name: str, size: int) -> None:
    tier.put(Entry("t", name, "v1", 1, tier_key(name)), host_of(size))
    tier.check_integrity()


def tier_with(budget: int, **sizes: int) -> HostTier:
    tier = HostTier(budget)
    for name, size in sizes.items():
        put(tier, name, size)
    return tier


def test_the_host_tier_drops_the_least_recently_used_first() -> None:
    tier = tier_with(100, a=40, b=40)
    assert tier.get(tier_key("a"))
    put(tier, "c", 40)
    assert [tier.get(tier_key(name)) is not None for name in "abc"] == [True, False, True]
    assert tier.bytes == 80


def test_the_host_tier_drops_as_many_as_one_needs() -> None:
    tier = tier_with(100, a=30, b=30, c=30, d=90)
    assert [tier.get(tier_key(name)) is not None for name in "abcd"] == [False, False, False, True]
    assert tier.bytes == 90


def test_what_is_larger_than_the_whole_tier_is_not_kept_and_drops_nothing() -> None:
    tier = tier_with(100, a=60, b=101)
    assert tier.get(tier_key("a"))
    assert tier.get(tier_key("b")) is None
    assert tier.bytes == 60


def test_what_is_put_twice_counts_once() -> None:
    assert tier_with(100, a=60).bytes == 60
    tier = tier_with(100, a=60)
    put(tier, "a", 60)
    assert tier.bytes == 60


def test_a_sweep_of_the_host_tier_leaves_what_was_asked_for_again() -> None:
    tier = tier_with(100, hot=40)
    assert tier.get(tier_key("hot"))
    for number in range(50):
        put(tier, str(number), 30)
    assert tier.get(tier_key("hot"))
    assert tier.bytes <= 100
