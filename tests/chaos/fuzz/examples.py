"""Small well-formed inputs that fuzzing starts from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from adapter_store.layout import blob_key
from adapter_store.lora_config import parse_config
from adapter_store.record import IndexEntry, Record, RecordKind, VersionRef, version_digest
from adapter_store.upload import cut
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from tests.adapter_store.adapter_files import pack
from tests.chaos.bad_inputs.material import CARD, good_config, good_weights

TXID = "0" * 31 + "1"


def small_weights() -> tuple[bytes, ...]:
    """Files of two tensors: nearly all of them is header."""
    made = []
    for dtype in (np.float32, np.float16, np.uint16):
        made.append(pack({"a": np.ones((1, 2), dtype), "b": np.ones((2, 1), dtype)}))
    return tuple(made)


def good_record() -> Record:
    """The first record of an adapter, as a publisher would write it."""
    files = tuple(
        replace(
            file,
            chunks=tuple(replace(c, key=blob_key("acme", c.sha256, TXID, 1)) for c in file.chunks),
        )
        for file in cut(
            {"adapter_config.json": good_config(), "adapter_model.safetensors": good_weights()}
        )
    )
    listed = parse_config(good_config()).allow_listed()
    vdig = version_digest(
        base=CARD.fingerprint, config=listed, files=[(f.name, f.size, f.sha256) for f in files]
    )
    return Record(
        tenant="acme",
        adapter="tone",
        gen=1,
        kind=RecordKind.PUBLISH,
        active=VersionRef("good", vdig, CARD.fingerprint, listed, files),
        versions=(IndexEntry("good", vdig, 1),),
        parent="",
        fence=1,
        txid=TXID,
        attempt=1,
        actor="someone",
        time="2026-01-01T00:00:00+00:00",
    )


_CHAT = pb.Chat(messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="hi")])
REQUESTS = (
    pb.GenerateRequest(prompt="hi"),
    pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2, 299])),
    pb.GenerateRequest(
        adapter="ada@v2",
        tenant="acme",
        chat=_CHAT,
        sampling=pb.Sampling(temperature=0.5, top_p=0.9, top_k=40, seed=0),
        stopping=pb.Stopping(
            max_new_tokens=9, min_new_tokens=2, stop=["\n"], stop_token_ids=[5], ignore_eos=True
        ),
        min_generation=4,
        request_id="job-1",
    ),
)
