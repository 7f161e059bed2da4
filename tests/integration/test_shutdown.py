"""SIGTERM: first the node says so, then it takes no more, then it finishes and leaves."""

from __future__ import annotations

from pathlib import Path

import grpc

from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from tests.adapter_store.waiting import wait_until
from tests.integration.asking import PROMPT, begin, exactly
from tests.integration.conftest import Truth
from tests.integration.node_process import NodeProcess
from tests.integration.site import Site

TOKENS = 1000


def refuses(node: NodeProcess) -> bool:
    """Whether a caller who comes now is turned away."""
    with node.channel() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
        except grpc.RpcError as error:
            return isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def test_sigterm_finishes_the_stream_refuses_the_next_and_exits_0(
    site: Site, node: NodeProcess, voices: list[Path], truth: Truth
) -> None:
    site.publish("last", voices[0], label="v1")
    with node.client() as client:
        stream = begin(client, "last", tokens=TOKENS)
        node.terminate()
        wait_until(lambda: not client.ready())
        early = client.generate(PROMPT, adapter="last", stopping=exactly(4))
        assert early.token_ids == truth(voices[0], PROMPT, 4), "load balancers need time to notice"
        wait_until(lambda: refuses(node))
        assert node.is_running(), "the refusal must come while the stream runs"
        assert stream.result.token_ids == truth(voices[0], PROMPT, TOKENS)
    assert node.exit_code() == 0
    assert "drained" in node.log.read_text()
