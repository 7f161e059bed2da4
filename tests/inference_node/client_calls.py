"""What a node is asked, seen from its side."""

from __future__ import annotations

import pytest

from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.rpc.servicers import Context, InferenceServicer


def noted_metadata(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The metadata of every Generate and StreamGenerate from now on, of nodes started later."""
    seen: list[dict[str, str]] = []
    generate, stream = InferenceServicer.Generate, InferenceServicer.StreamGenerate

    def note(context: Context) -> None:
        seen.append({key: str(value) for key, value in context.invocation_metadata() or ()})

    async def generated(
        self: InferenceServicer, request: pb.GenerateRequest, context: Context
    ) -> pb.GenerateResponse:
        note(context)
        return await generate(self, request, context)

    async def streamed(
        self: InferenceServicer, request: pb.StreamGenerateRequest, context: Context
    ) -> None:
        note(context)
        await stream(self, request, context)

    monkeypatch.setattr(InferenceServicer, "Generate", generated)
    monkeypatch.setattr(InferenceServicer, "StreamGenerate", streamed)
    return seen
