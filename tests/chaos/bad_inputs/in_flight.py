"""A node answers requests while bad versions appear in its bucket, past every publisher.

Each case gets an adapter of its own: one good version, asked once, then the forged second
generation. Asked again, the node must answer from the good version, as before, or say what is
wrong; asked for the second generation or its label it must refuse. Beside all that, streams run on
another adapter and must say what they say in a quiet node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from adapter_store.layout import DEFAULT_TENANT
from adapter_store.lora_config import CONFIG_FILE
from adapter_store.objects import ObjectStore
from adapter_store.reader import Reader
from adapter_store.tensor_file import WEIGHTS_FILE
from inference_node.config import EngineConfig
from inference_node.errors import EngineFailure
from inference_node.model.default_base import ensure_default_base
from inference_node.request import Completed
from tests.chaos.bad_inputs.case import BadInput
from tests.chaos.bad_inputs.forgery import LABEL, Forge, of_files
from tests.chaos.bad_inputs.material import CARD, good_folder
from tests.inference_node.harness import Answer, Node, start_node
from tests.inference_node.tiny import make_adapter, make_checkpoint

STREAM = 200
SHORT = 6


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened in one node."""

    wrong: tuple[str, ...]
    forged: int
    streams: int


def forgeries(cases: Sequence[BadInput], folder: Path) -> Iterator[tuple[str, Forge]]:
    """Those cases that can be put into a bucket: forged records, and folders of plain files."""
    for number, case in enumerate(cases):
        if case.forge is not None:
            yield case.what, case.forge
        elif case.spoil is not None:
            here = folder / str(number)
            case.spoil(good_folder(here))
            if all(_is_small(here / name) for name in (CONFIG_FILE, WEIGHTS_FILE)):
                files = {name: (here / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
                yield case.what, of_files(files)


def observe(node: Node, found: Sequence[tuple[str, Forge]], folder: Path) -> Seen:
    """Forge each beside running streams; `node` looks at its store for every request."""
    assert dict(node.card.modules) == dict(CARD.modules), "the cases are made for another base"
    node.publish("steady", make_adapter(folder / "steady", dict(CARD.modules), rank=8, seed=7))
    quiet = node.ask("steady", tokens=STREAM).tokens
    good = good_folder(folder / "good")
    streams = [node.ask("steady", tokens=STREAM)]
    wrong: list[str] = []
    for number, (what, forge) in enumerate(found):
        wrong += [f"{what}: {text}" for text in _forged(node, f"victim-{number}", good, forge)]
        if streams[-1].ended:
            streams.append(node.ask("steady", tokens=STREAM))
    wrong += [
        f"stream {number} was changed"
        for number, stream in enumerate(streams)
        if not isinstance(stream.wait().events[-1], Completed) or stream.token_ids != quiet
    ]
    node.settle()
    return Seen(tuple(wrong), len(found), len(streams))


def _forged(node: Node, name: str, good: Path, forge: Forge) -> Iterator[str]:
    node.publish(name, good, label="good")
    before = node.ask(name, tokens=SHORT).wait()
    record = Reader(node.store).head(DEFAULT_TENANT, name)
    for key, body in forge(record).items():
        node.store.put_new(key, body)
    after = node.ask(name, tokens=SHORT).wait()
    if isinstance(after.events[-1], Completed):
        same = after.token_ids == before.token_ids
        if not same or after.completed.served != before.completed.served:
            yield f"answered by {after.completed.served}"
    elif (failure := _untyped(after)) is not None:
        yield failure
    for asked in (node.ask(name, min_generation=2), node.ask(f"{name}@{LABEL}")):
        if isinstance(asked.wait().events[-1], Completed):
            yield f"served as {asked.completed.served}"
        elif (failure := _untyped(asked)) is not None:
            yield failure


def _untyped(answer: Answer) -> str | None:
    error = answer.error
    return f"EngineFailure: {error} {error.details}" if isinstance(error, EngineFailure) else None


def _is_small(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and 0 < path.stat().st_size < 4 * 2**20


@contextmanager
def tiny_node(store: ObjectStore, folder: Path) -> Iterator[Node]:
    """A node in this process that trusts nothing older than a request."""
    base = make_checkpoint(folder / "base", tokenizer_from=ensure_default_base())
    torch.set_num_threads(1)
    config = EngineConfig(
        base_model=str(base),
        device="cpu",
        linears="dense",
        dtype="float32",
        pool_bytes=2 * 2**20,
        kv_tokens=2048,
        max_context=512,
        max_staleness=0.0,
    )
    node = start_node(config, store)
    try:
        yield node
    finally:
        node.close()
