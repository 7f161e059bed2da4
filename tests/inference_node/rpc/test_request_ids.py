"""Requests that bring no id get one that is nobody else's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from inference_node.rpc.request_ids import DRAWN, RequestIds


def test_every_id_is_new_and_128_bits_long_whoever_draws() -> None:
    new_id = RequestIds()
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda _: new_id(), range(10 * DRAWN)))
    assert len(set(drawn)) == 10 * DRAWN
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in drawn)


def test_two_nodes_draw_different_ids() -> None:
    one, other = RequestIds(), RequestIds()
    assert {one() for _ in range(DRAWN)}.isdisjoint(other() for _ in range(DRAWN))
