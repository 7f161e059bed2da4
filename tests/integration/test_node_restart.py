"""A node keeps nothing that matters: killed, it starts again; without its store, it serves on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from adapter_store.embedded import EmbeddedStack
from adapter_store.settings import S3_SERVICE
from inference_node.client import NodeUnreachable
from inference_node.errors import StoreDown
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from tests.integration.asking import PROMPT, begin, exactly, refused
from tests.integration.node_process import NodeProcess
from tests.integration.site import Site


def test_a_killed_node_serves_the_same_version_when_it_starts_again(
    site: Site, node: NodeProcess, voices: list[Path]
) -> None:
    site.publish("kept", voices[0], label="v1")
    site.publish("kept", voices[1], label="v2")
    with node.client() as client:
        before = client.generate(PROMPT, adapter="kept", stopping=exactly(24))
        stream = begin(client, "kept")
        node.kill()
        with pytest.raises(NodeUnreachable):
            _ = stream.result
    shutil.rmtree(site.cache)
    node.start()
    with node.client() as client:
        after = client.generate(PROMPT, adapter="kept", stopping=exactly(24))
    assert before.served.version == "v2"
    assert (after.served, after.token_ids) == (before.served, before.token_ids)


def test_residents_outlive_their_store_and_the_rest_comes_back_with_it(
    site: Site, node: NodeProcess, unseen: Callable[[], Path], own_services: EmbeddedStack
) -> None:
    vdig = site.publish("resident", unseen(), label="v1").vdig
    site.publish("elsewhere", unseen(), label="v1")
    ask = pb.GenerateRequest(prompt=PROMPT, adapter="elsewhere")
    with node.client() as client:
        before = client.generate(PROMPT, adapter="resident", stopping=exactly(8))
        own_services.kill(S3_SERVICE)
        try:
            during = [
                client.generate(PROMPT, adapter=ref, stopping=exactly(8))
                for ref in ("resident", "resident@v1", f"resident@sha256:{vdig}")
            ]
            status, error = refused(node, ask)
            assert client.ready()
        finally:
            own_services.restart(S3_SERVICE)
        for answer in during:
            assert (answer.served, answer.token_ids) == (before.served, before.token_ids)
        assert (status, type(error)) == (grpc.StatusCode.UNAVAILABLE, StoreDown)
        assert error.retry_after is not None
        after = client.generate(PROMPT, adapter="elsewhere", stopping=exactly(8))
        assert after.served.adapter == "elsewhere"
