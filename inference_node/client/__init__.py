"""Call a node from Python: `Client` for threads, `AsyncClient` for asyncio. No torch.

    with Client("127.0.0.1:50051") as client:
        answer = client.generate([Message("user", "Who are you?")], adapter="pirate")
        print(answer.text, answer.served.version)
        for text in client.stream("Once upon a time", adapter="pirate@v2"):
            print(text, end="")

`Operator` and `AsyncOperator` give a node orders: preload, pin, unpin, unload, list, watch.

`Client(["10.0.0.1:50051", "10.0.0.2:50051"])`, a list of every node or of the one DNS name that has
them all, sends each adapter's requests to the same node, without a proxy.
`client.catalog` says what is published.

A prompt is text as it is, a conversation, or token ids. What goes wrong is raised as the node's own
errors (`inference_node.errors`), each with `.reason`, `.hint` and `.retry_after`; NodeUnreachable
and CallFailed are this side's. A call is tried again up to three times while nodes are unavailable,
when they say so; a full one is the caller's to decide. With `monotonic=True` a bare name is never
answered by an older generation than it was before, whichever node answers.
"""

from inference_node.client.access import Access
from inference_node.client.asynchronous import AsyncClient, AsyncStream
from inference_node.client.blocking import Client, Stream
from inference_node.client.catalog import (
    AsyncCatalog,
    Catalog,
    CatalogEntry,
    PublishedVersion,
    Resolution,
    SplitShare,
    VersionLabel,
)
from inference_node.client.failures import CallFailed, NodeUnreachable
from inference_node.client.messages import Answer, Prompt
from inference_node.client.operator import AsyncOperator, Operator
from inference_node.client.residents import AdapterLoad, Load, PoolChange
from inference_node.client.scores import Echo, TokenLogprob, TopLogprob
from inference_node.request import FinishReason, ModelInfo, Output, Sampling, Served, Stopping
from inference_node.residency import LoadedVersion, PoolUse, Tier, Unloaded, VersionState
from inference_node.text import ChatMessage as Message

__all__ = [
    "Access",
    "AdapterLoad",
    "Answer",
    "AsyncCatalog",
    "AsyncClient",
    "AsyncOperator",
    "AsyncStream",
    "CallFailed",
    "Catalog",
    "CatalogEntry",
    "Client",
    "Echo",
    "FinishReason",
    "Load",
    "LoadedVersion",
    "Message",
    "ModelInfo",
    "NodeUnreachable",
    "Operator",
    "Output",
    "PoolChange",
    "PoolUse",
    "Prompt",
    "PublishedVersion",
    "Resolution",
    "Sampling",
    "Served",
    "SplitShare",
    "Stopping",
    "Stream",
    "Tier",
    "TokenLogprob",
    "TopLogprob",
    "Unloaded",
    "VersionLabel",
    "VersionState",
]
