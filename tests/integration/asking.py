"""Requests that last as long as a test needs, and what a node says about them."""

from __future__ import annotations

import grpc
import pytest

from inference_node.client import Client, Stopping, Stream
from inference_node.client.failures import to_error
from inference_node.errors import NodeError
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from tests.adapter_store.waiting import wait_until
from tests.integration.node_process import NodeProcess

PROMPT = "Tell me about the sea."
ENDLESS = Stopping(max_new_tokens=4000, ignore_eos=True)
"""Longer than any test waits."""


def exactly(tokens: int) -> Stopping:
    return Stopping(max_new_tokens=tokens, ignore_eos=True)


def begin(client: Client, adapter: str, *, tokens: int = 4000, timeout: float = 120.0) -> Stream:
    """A stream whose first text has come."""
    stream = client.stream(PROMPT, adapter=adapter, stopping=exactly(tokens), timeout=timeout)
    assert next(iter(stream))
    return stream


def wait_idle(client: Client) -> None:
    """Until nothing runs, waits or holds an adapter."""

    def idle() -> bool:
        info = client.model_info()
        return (info.running, info.waiting, info.pool.leases) == (0, 0, 0)

    wait_until(idle)


def refused(node: NodeProcess, request: pb.GenerateRequest) -> tuple[grpc.StatusCode, NodeError]:
    """How the node answers a request that it must not serve: as gRPC says it, and as we do."""
    with node.channel() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Generate(request, timeout=60)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), to_error(caught.value)
