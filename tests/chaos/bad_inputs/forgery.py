"""Records as an attacker with write access to the bucket would write them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from adapter_store import layout
from adapter_store.errors import InvalidAdapter
from adapter_store.lora_config import CONFIG_FILE, parse_config
from adapter_store.record import IndexEntry, Record, RecordKind, version_digest
from adapter_store.tensor_file import WEIGHTS_FILE
from tests.adapter_store.adapter_files import pack
from tests.chaos.bad_inputs.material import arrays

Value = dict[str, Any]
Objects = Mapping[str, bytes]
Forge = Callable[[Record], Objects]
TXID = "f" * 32
LABEL = "bad"
MIB = 1024 * 1024


def next_value(good: Record) -> Value:
    """A well-formed second record, as JSON has it: the same content under another label."""
    assert good.active is not None
    entry = IndexEntry(LABEL, good.active.vdig, good.gen + 1)
    record = replace(
        good,
        gen=good.gen + 1,
        kind=RecordKind.PUBLISH,
        parent=good.digest(),
        txid=TXID,
        active=replace(good.active, label=LABEL),
        versions=(*good.versions, entry),
    )
    value: Value = json.loads(record.encode())
    return value


def own_txid(good: Record) -> str:
    """No two adapters of one bucket are forged under the same keys."""
    return sha256(good.adapter.encode()).hexdigest()[:32]


def dumped(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def slot(good: Record, *, gen: int = 0) -> str:
    return layout.log_key(good.tenant, good.adapter, gen or good.gen + 1)


def edited(edit: Callable[[Value], object], *, sealed: bool = True) -> Forge:
    """The second record with an edit; `sealed`: its digests are made to fit again."""

    def forge(good: Record) -> Objects:
        value = next_value(good)
        edit(value)
        if sealed:
            seal(value)
        return {slot(good): dumped(value)}

    return forge


def seal(value: Value) -> None:
    """Make the version's digest fit its content, here and in the index."""
    active = value["active"]
    files = [(file["name"], file["size"], file["sha256"]) for file in active["files"]]
    vdig = version_digest(base=active["base"], config=active["config"], files=files)
    active["vdig"] = value["versions"][-1]["vdig"] = vdig


def replaced(old: bytes, new: bytes) -> Forge:
    """The second record's bytes with a part replaced."""

    def forge(good: Record) -> Objects:
        body = dumped(next_value(good))
        assert old in body
        return {slot(good): body.replace(old, new)}

    return forge


def raw(body: bytes) -> Forge:
    return lambda good: {slot(good): body}


def of_weights(value: Value) -> Value:
    """The entry of the weights file."""
    entry: Value = next(f for f in value["active"]["files"] if f["name"] == WEIGHTS_FILE)
    return entry


def tiled(total: int, *, length: int = layout.CHUNK_BYTES) -> Callable[[Value], None]:
    """The weights declared as `total` bytes, every chunk being the same one."""

    def edit(value: Value) -> None:
        entry = of_weights(value)
        chunk = entry["chunks"][0]
        offsets = range(0, total, length)
        entry["chunks"] = [
            {**chunk, "offset": at, "length": min(length, total - at)} for at in offsets
        ]
        entry["size"] = total

    return edit


def stored(damage: Callable[[bytes], bytes] | None) -> Forge:
    """New weights whose chunk holds other bytes than its name says; None: there is no chunk."""

    def forge(good: Record) -> Objects:
        value = next_value(good)
        body = pack(arrays(seed=1))
        digest = sha256(body).hexdigest()
        key = layout.blob_key(good.tenant, digest, own_txid(good), 1)
        chunk = {"key": key, "offset": 0, "length": len(body), "sha256": digest}
        of_weights(value).update(size=len(body), sha256=digest, chunks=[chunk])
        seal(value)
        objects = {slot(good): dumped(value)}
        return objects if damage is None else {key: damage(body), **objects}

    return forge


def of_files(files: Mapping[str, bytes]) -> Forge:
    """A second record that publishes these files past every check of the publisher."""

    def forge(good: Record) -> Objects:
        value = next_value(good)
        objects: dict[str, bytes] = {}
        entries = []
        for name, body in sorted(files.items()):
            digest = sha256(body).hexdigest()
            key = layout.blob_key(good.tenant, digest, own_txid(good), 1)
            objects[key] = body
            chunks = [{"key": key, "offset": 0, "length": len(body), "sha256": digest}]
            entries.append(
                {
                    "name": name,
                    "size": len(body),
                    "sha256": digest,
                    "chunks": chunks if body else [],
                }
            )
        value["active"]["files"] = entries
        with contextlib.suppress(InvalidAdapter):
            value["active"]["config"] = parse_config(files[CONFIG_FILE]).allow_listed()
        seal(value)
        return {**objects, slot(good): dumped(value)}

    return forge
