"""Where nodes tell of themselves in Redis, each under a lease that it renews while it lives.

    lorapool:{fleet}:nodes       sorted set: node ids by the wall clock of their last word
    lorapool:{fleet}:node:<id>   the node's card; expires with the lease
    lorapool:{fleet}:holds:<id>  hash: tenant/adapter -> its holding; expires with the lease
    lorapool:{fleet}:arms:<id>   hash: tenant/adapter -> how its versions do; expires likewise

A node that dies is gone when its lease ends, and one that leaves at once. A Redis that lost
everything has it back after one renewal. One hash tag keeps all of it in one slot of a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from adapter_store.arms import Arms, decode_arms, encode_arms
from adapter_store.errors import FleetUnseen
from adapter_store.fleet import (
    Holding,
    Name,
    NodeCard,
    decode_card,
    decode_holding,
    encode_card,
    encode_holding,
)
from adapter_store.notify import KEPT_HINTS, STREAM
from adapter_store.redis_client import open_redis

LEASE_S = 10.0
PREFIX = "lorapool:{fleet}"
NODES = f"{PREFIX}:nodes"
FORGOTTEN_S = 3600.0
"""Ids that said nothing for so long leave the set: more than clocks differ by."""


class FleetRegistry:
    """A node tells through it, everybody else reads. Safe for several threads."""

    def __init__(self, client: Redis, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._wall_clock = wall_clock

    def announce(self, card: NodeCard, *, lease_s: float = LEASE_S) -> bool:
        """Renew the lease; whether what was told of holdings is still there.

        Raises FleetUnseen.
        """
        lease_ms, now = round(lease_s * 1000), self._wall_clock()
        with _reached(), self._client.pipeline(transaction=False) as pipe:
            pipe.set(node_key(card.id), encode_card(card), px=lease_ms)
            pipe.zadd(NODES, {card.id: now})
            pipe.zremrangebyscore(NODES, "-inf", now - FORGOTTEN_S)
            pipe.pexpire(arms_key(card.id), lease_ms)
            pipe.pexpire(holds_key(card.id), lease_ms)
            return bool(pipe.execute()[-1])

    def tell(
        self,
        node: str,
        changed: Sequence[Holding],
        gone: Iterable[Name] = (),
        *,
        anew: bool = False,
        lease_s: float = LEASE_S,
    ) -> None:
        """Put what changed in the place of what was told; `anew`: of all that was told before.

        Raises FleetUnseen.
        """
        told = {_field(one.name): encode_holding(one) for one in changed}
        self._put(holds_key(node), told, gone, anew=anew, lease_s=lease_s)

    def tell_arms(
        self,
        node: str,
        arms: Mapping[Name, Arms],
        gone: Iterable[Name] = (),
        *,
        lease_s: float = LEASE_S,
    ) -> None:
        """Put these in the place of what was told of the same adapters. Raises FleetUnseen."""
        told = {_field(name): encode_arms(one) for name, one in arms.items()}
        self._put(arms_key(node), told, gone, lease_s=lease_s)

    def _put(
        self,
        key: str,
        told: Mapping[Any, Any],
        gone: Iterable[Name],
        *,
        anew: bool = False,
        lease_s: float,
    ) -> None:
        """Put and take fields of a hash, and renew its lease."""
        lost = [_field(name) for name in gone]
        with _reached(), self._client.pipeline(transaction=False) as pipe:
            if anew:
                pipe.delete(key)
            if told:
                pipe.hset(key, mapping=told)
            if lost:
                pipe.hdel(key, *lost)
            pipe.pexpire(key, round(lease_s * 1000))
            pipe.execute()

    def arms_of(self, nodes: Sequence[str], tenant: str, adapter: str) -> dict[str, Arms]:
        """How the versions of one adapter do, by node. Raises FleetUnseen."""
        with _reached(), self._client.pipeline(transaction=False) as pipe:
            for node in nodes:
                pipe.hget(arms_key(node), _field((tenant, adapter)))
            told = pipe.execute()
        return {
            node: decode_arms(text)
            for node, text in zip(nodes, told, strict=True)
            if text is not None
        }

    def leave(self, node: str) -> None:
        """Nothing was ever told. Raises FleetUnseen."""
        with _reached(), self._client.pipeline(transaction=False) as pipe:
            pipe.delete(node_key(node), holds_key(node), arms_key(node))
            pipe.zrem(NODES, node)
            pipe.execute()

    def nodes(self) -> list[NodeCard]:
        """Every node whose lease lasts, by address. Raises FleetUnseen."""
        with _reached():
            ids: Any = self._client.zrange(NODES, 0, -1)
            told: Any = self._client.mget([node_key(str(one)) for one in ids]) if ids else []
        cards = [decode_card(text) for text in told if text is not None]
        return sorted(
            (card for card in cards if card is not None), key=lambda card: (card.address, card.id)
        )

    def holdings_of(self, nodes: Sequence[str], tenant: str, adapter: str) -> dict[str, Holding]:
        """What nodes have of one adapter, by node; without those that have nothing of it.

        Raises FleetUnseen.
        """
        name = (tenant, adapter)
        with _reached(), self._client.pipeline(transaction=False) as pipe:
            for node in nodes:
                pipe.hget(holds_key(node), _field(name))
            told = pipe.execute()
        found = {
            node: decode_holding(name, text)
            for node, text in zip(nodes, told, strict=True)
            if text is not None
        }
        return {node: holding for node, holding in found.items() if holding is not None}

    def holdings(self, node: str) -> list[Holding]:
        """All that a node has, by name. Raises FleetUnseen."""
        with _reached():
            told: Any = self._client.hgetall(holds_key(node))
        found = (decode_holding(_name(field), text) for field, text in told.items())
        return sorted((one for one in found if one is not None), key=lambda one: one.name)

    def ask_ahead(self, nodes: Sequence[str], tenant: str, adapter: str, gen: int) -> None:
        """Have these nodes fetch what may be served next of an adapter they do not serve.

        Raises FleetUnseen.
        """
        entry: dict[Any, Any] = {"tenant": tenant, "adapter": adapter, "gen": gen}
        entry["ahead"] = ",".join(nodes)
        with _reached():
            self._client.xadd(STREAM, entry, maxlen=KEPT_HINTS, approximate=True)


def open_registry(url: str) -> FleetRegistry:
    """The registry at `url`; sends nothing yet. Raises ValueError on a malformed URL."""
    return FleetRegistry(open_redis(url))


def node_key(node: str) -> str:
    return f"{PREFIX}:node:{node}"


def arms_key(node: str) -> str:
    return f"{PREFIX}:arms:{node}"


def holds_key(node: str) -> str:
    return f"{PREFIX}:holds:{node}"


@contextmanager
def _reached() -> Iterator[None]:
    """Turns an error of Redis into FleetUnseen."""
    try:
        yield
    except RedisError as error:
        raise FleetUnseen(f"Redis does not say which nodes there are: {error}") from error


def _field(name: Name) -> str:
    return "/".join(name)


def _name(field: str) -> Name:
    tenant, _, adapter = field.partition("/")
    return tenant, adapter
