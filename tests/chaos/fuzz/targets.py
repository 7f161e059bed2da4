"""What is fuzzed, from which seeds, against which second opinion, and a bug to find for each."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from adapter_store.errors import IntegrityError, InvalidAdapter, InvalidName
from adapter_store.intent import Intent, Plan, decode_intent, decode_plan
from adapter_store.layout import parse_ref
from adapter_store.lora_config import parse_config
from adapter_store.record import decode_base_card, decode_record
from adapter_store.tensor_file import read_layout
from inference_node.errors import InvalidRequest
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.rpc import convert
from tests.adapter_store.adapter_files import config
from tests.chaos.bad_inputs import configs, containers, names, records, semantics
from tests.chaos.bad_inputs.forgery import seal
from tests.chaos.bad_inputs.material import CARD
from tests.chaos.fuzz import models
from tests.chaos.fuzz.examples import REQUESTS, good_record, small_weights
from tests.chaos.fuzz.mutation import bend_bytes, bend_json
from tests.inference_node.rpc.scripted_engine import ByteEncoder

MAX_SEED = 16 * 1024
BOUNDS = convert.Bounds(max_context=64, vocab_size=300)
Bend = Callable[[bytes, random.Random], bytes]


class Finding(Exception):
    """Something was accepted that the second opinion refuses, or the other way round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One reader of foreign bytes."""

    name: str
    good: tuple[bytes, ...]
    """Well-formed seeds; a seeded bug has to be found from these alone."""
    bad: tuple[bytes, ...]
    """The inputs of T13, from which a search for unknown bugs starts too."""
    examine: Callable[[bytes], bool]
    """Whether it is accepted. Raises Finding; anything else it raises is a finding as well."""
    bend: Bend
    bug: Mapping[str, object]
    """What to patch so that something bad is accepted."""


def _header(data: bytes) -> bool:
    try:
        layout = read_layout(data)
    except InvalidAdapter:
        return False
    return _agreed(models.header(data, layout))


def _config(data: bytes) -> bool:
    try:
        spec = parse_config(data)
    except InvalidAdapter:
        return False
    return _agreed(models.config(data, spec))


def _record(data: bytes) -> bool:
    try:
        record = decode_record(data)
    except IntegrityError:
        return False
    return _agreed(models.record(data, record))


def _name(data: bytes) -> bool:
    text = data.decode("utf-8", "surrogateescape")
    try:
        parse_ref(text)
    except InvalidName as error:
        if models.name(text):
            raise Finding(f"{text!r} is refused: {error}") from error
        return False
    return _agreed(None if models.name(text) else f"{text!r} is no reference")


def _notes(data: bytes) -> bool:
    accepted = False
    for decode in (decode_intent, decode_plan, decode_base_card):
        try:
            read: Any = decode(data)
        except IntegrityError:
            continue
        accepted = _agreed(models.note(data, read))
    return accepted


def _request(data: bytes) -> bool:
    try:
        message = pb.GenerateRequest.FromString(data)
        read = convert.to_request(
            message, bounds=BOUNDS, encoder=ByteEncoder(), deadline=9.0, new_id=lambda: "new"
        )
    except (DecodeError, InvalidRequest):
        return False
    objection = models.request(read, context=BOUNDS.max_context, vocabulary=BOUNDS.vocab_size)
    return _agreed(objection)


def _agreed(objection: str | None) -> bool:
    if objection is not None:
        raise Finding(objection)
    return True


def _bend_header(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or length > len(data):
        return bend_bytes(data, rng)
    text = bend_json(data[8 : 8 + length], rng)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _bend_record(data: bytes, rng: random.Random) -> bytes:
    return bend_json(data, rng, mend=seal)


def _seeds(*bodies: bytes) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(body for body in bodies if len(body) <= MAX_SEED))


def _texts(*texts: str) -> tuple[bytes, ...]:
    return _seeds(*(text.encode() for text in texts))


GOOD_RECORD = good_record()
FORGED = [
    body
    for _, forge, _, _ in records.RECORDS_IN_LOG
    for key, body in forge(GOOD_RECORD).items()
    if "/log/" in key
]

TARGETS = (
    Target(
        name="header",
        good=small_weights(),
        bad=_seeds(*(body for _, body, _ in containers.FILES),
                   *(body for _, body, _, _ in semantics.WEIGHTS)),
        examine=_header,
        bend=_bend_header,
        bug={"adapter_store.tensor_file._check_gapless": lambda *arguments: None},
    ),
    Target(
        name="config",
        good=_texts(json.dumps(config()), json.dumps(config(use_rslora=True, lora_alpha=0.5))),
        bad=_seeds(*(body for _, body, _ in configs.BODIES),
                   *(json.dumps(config(**c)).encode() for _, c, _ in configs.CHANGES)),
        examine=_config,
        bend=bend_json,
        bug={"adapter_store.lora_config._rank": lambda value: value if value else 1},
    ),
    Target(
        name="record",
        good=_seeds(GOOD_RECORD.encode()),
        bad=_seeds(*FORGED),
        examine=_record,
        bend=_bend_record,
        bug={"adapter_store.record.check_digest": lambda value: value},
    ),
    Target(
        name="name",
        good=_texts("tone", "tone@v1", f"tone@sha256:{names.DIGEST}", "a.b-c_d@2"),
        bad=_texts(*(text for _, text in (*names.NAMES, *names.REFERENCES))),
        examine=_name,
        bend=bend_bytes,
        bug={"adapter_store.names._ID":
             re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\n?")},
    ),
    Target(
        name="intent",
        good=_seeds(Intent("tone", 3, ("a" * 64, "b" * 64)).encode(),
                    Plan(("v1/t/acme/blob/x",)).encode(), CARD.encode()),
        bad=_seeds(b"{}", b"[]", b'{"keys":[1]}', b'{"adapter":"a","digests":[],"slot":1e999}'),
        examine=_notes,
        bend=bend_json,
        bug={"adapter_store.intent.check_id": lambda kind, value: value},
    ),
    Target(
        name="request",
        good=_seeds(*(message.SerializeToString() for message in REQUESTS)),
        bad=_seeds(*(pb.GenerateRequest(prompt="hi", adapter=text).SerializeToString()
                     for _, text in (*names.NAMES, *names.REFERENCES))),
        examine=_request,
        bend=bend_bytes,
        bug={"inference_node.rpc.convert._check_token_ids": lambda *arguments: None},
    ),
)  # fmt: skip


def target(name: str) -> Target:
    """Raises KeyError."""
    return {one.name: one for one in TARGETS}[name]
