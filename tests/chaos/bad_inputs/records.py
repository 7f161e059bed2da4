"""What may lie in a bucket and must not be believed: forged after one good record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adapter_store import layout
from adapter_store.bases import load_base
from adapter_store.errors import IntegrityError, InvalidAdapter, StoreError
from adapter_store.reader import Reader
from adapter_store.record import Record
from adapter_store.validate import LocalAdapter, check_content, check_sizes, read_adapter_dir
from tests.adapter_store.publishing import publisher
from tests.chaos.bad_inputs.case import TENANT, BadInput, Scene
from tests.chaos.bad_inputs.forgery import (
    MIB,
    TXID,
    Forge,
    Objects,
    Value,
    dumped,
    edited,
    next_value,
    of_weights,
    raw,
    replaced,
    slot,
    stored,
    tiled,
)
from tests.chaos.bad_inputs.material import CARD, good_folder


def put(*path: Any) -> Any:
    """An edit: put(keys..., value)."""
    *keys, last, new = path

    def edit(value: Value) -> None:
        for key in keys:
            value = value[key]
        value[last] = new

    return edit


def chunk(**fields: Any) -> Any:
    """An edit of the weights' only chunk."""
    return lambda value: of_weights(value)["chunks"][0].update(fields)


def foreign_chunk(value: Value) -> None:
    it = of_weights(value)["chunks"][0]
    it["key"] = it["key"].replace(f"/t/{value['tenant']}/", "/t/other/")


def overlapping(value: Value) -> None:
    entry = of_weights(value)
    entry["chunks"] = [entry["chunks"][0], {**entry["chunks"][0], "offset": 8}]


def holed(value: Value) -> None:
    it = of_weights(value)["chunks"][0]
    it.update(offset=8, length=it["length"] - 8)


def oversize(value: Value) -> None:
    value["signatures"] = [{"x": "y" * (256 * 1024)}]


def named_twice(value: Value) -> None:
    value["active"]["files"] *= 2


def one_file(value: Value) -> None:
    value["active"]["files"] = [of_weights(value)]


def third_file(value: Value) -> None:
    value["active"]["files"].append({**of_weights(value), "name": "tokenizer.json"})


def at_gap(good: Record) -> Objects:
    value = next_value(good)
    value["gen"] += 1
    return {slot(good, gen=good.gen + 2): dumped(value)}


def huge_object(good: Record) -> Objects:
    return {slot(good): bytes(layout.CHUNK_BYTES + 1)}


RECORDS_IN_LOG: tuple[tuple[str, Forge, type[StoreError], str], ...] = (
    ("no JSON", raw(b"no record"), IntegrityError, "not a log record"),
    ("empty", raw(b""), IntegrityError, "not a log record"),
    ("not UTF-8", raw(b'{"a":"\xff"}'), IntegrityError, "not a log record"),
    ("100,000 lists deep", raw(b"[" * 100_000), IntegrityError, "not a log record"),
    ("spelt with spaces", lambda good: {slot(good): dumped(next_value(good)).replace(b",", b", ")},
     IntegrityError, "not in canonical form"),
    ("a field twice", replaced(b'"gen":2', b'"gen":1,"gen":2'), IntegrityError, "canonical form"),
    ("a field nobody knows", edited(put("extra", 1)), IntegrityError, "not a log record"),
    ("a field missing", edited(lambda value: value.pop("fence")), IntegrityError, "not a log"),
    ("a generation that is text", edited(put("gen", "2")), IntegrityError, "type"),
    ("a generation that is a bool", edited(put("gen", True)), IntegrityError, "type"),
    ("a negative fence", edited(put("fence", -1)), IntegrityError, "wrong type"),
    ("a kind nobody knows", edited(put("kind", "overwrite")), IntegrityError, "overwrite"),
    ("a format nobody knows", edited(put("format", 2)), IntegrityError, "format 2 is not 1"),
    ("over 256 KiB", edited(oversize), IntegrityError, "is over 262144"),
    ("an object over 16 MiB", huge_object, IntegrityError, "none is so large"),
    ("another adapter's", edited(put("adapter", "other")), IntegrityError, "is another's"),
    ("another tenant's", edited(put("tenant", "other")), IntegrityError, "is another's"),
    ("another generation's", lambda good: {slot(good): good.encode()}, IntegrityError, "another's"),
    ("another parent", edited(put("parent", "0" * 64)), IntegrityError, "has another parent"),
    ("no parent", edited(put("parent", "")), IntegrityError, "not a sha256 digest"),
    ("an adapter that is a path", edited(put("adapter", "../other")), IntegrityError, "valid name"),
    ("a label with a line break", edited(put("active", "label", "v\n")), IntegrityError, "valid"),
    ("an actor with terminal escapes", edited(put("actor", "\x1b[2J")), IntegrityError, "print"),
    ("a transaction that is no id", edited(put("txid", "1")), IntegrityError, "transaction id"),
    ("an index that points ahead", edited(put("versions", 0, "gen", 9)), IntegrityError, "outside"),
    ("a chunk of another tenant", edited(foreign_chunk), IntegrityError, "out of place"),
    ("a chunk that is a record", edited(chunk(key="v1/t/acme/a/x/log/1")), IntegrityError, "place"),
    ("a chunk with no digest", edited(chunk(sha256="x")), IntegrityError, "not a sha256 digest"),
    ("chunks that overlap", edited(overlapping), IntegrityError, "out of place"),
    ("a hole before a chunk", edited(holed), IntegrityError, "out of place"),
    ("a chunk of 17 MiB", edited(tiled(17 * MIB, length=17 * MIB)), IntegrityError, "out of place"),
    ("a chunk of no length", edited(chunk(length=0)), IntegrityError, "out of place"),
    ("a chunk that is not there", stored(None), IntegrityError, "is gone"),
    ("a file larger than its chunks", edited(lambda value: put("size", of_weights(
        value)["size"] + 1)(of_weights(value))), IntegrityError, "are not its"),
    ("a version of 600 MiB", edited(tiled(600 * MIB)), IntegrityError, "is over"),
    ("400 MiB for an adapter of 10 KiB", edited(tiled(400 * MIB)), InvalidAdapter, "cannot hold"),
    ("a config its digest does not cover", edited(put("active", "config", "lora_alpha", 99),
                                                  sealed=False),
     IntegrityError, "does not match its digest"),
    ("a digest of other content", edited(put("active", "vdig", "0" * 64), sealed=False),
     IntegrityError, "does not match its digest"),
    ("a file's digest of other bytes", edited(lambda value: put("sha256", "0" * 64)(
        of_weights(value))), IntegrityError, "do not make up the file"),
    ("a chunk with a flipped bit", stored(lambda body: body[:-1] + bytes([body[-1] ^ 1])),
     IntegrityError, "damaged"),
    ("a chunk cut by a byte", stored(lambda body: body[:-1]), IntegrityError, "damaged"),
    ("a chunk with a byte more", stored(lambda body: body + b"\0"), IntegrityError, "damaged"),
    ("a chunk of 17 MiB behind its name", stored(lambda body: bytes(17 * MIB)), IntegrityError,
     "damaged"),
    ("a file that is a path", edited(lambda value: put("name", "../../x")(of_weights(value))),
     IntegrityError, "not a plain file name"),
    ("a file twice", edited(named_twice), IntegrityError, "twice"),
    ("no config file", edited(one_file), InvalidAdapter, "files are"),
    ("a third file", edited(third_file), InvalidAdapter, "files are"),
    ("a config the file does not say", edited(put("active", "config", "lora_alpha", 99)),
     InvalidAdapter, "does not say"),
    ("a config with more than content", edited(put("active", "config", "revision", None)),
     InvalidAdapter, "more than what is content"),
    ("a config with NaN", replaced(b'"lora_alpha":16', b'"lora_alpha":NaN'),
     IntegrityError, "not a log record"),
    ("a config with half a character", replaced(b'"LORA"', b'"\\ud800"'),
     IntegrityError, "not a log record"),
    ("a config 450 lists deep", replaced(b'"lora_alpha":16', b'"lora_alpha":' + b"[" * 450
                                         + b"]" * 450), IntegrityError, ""),
    ("a split of one arm", edited(lambda value: put("split", [
        {"weight": 1, "version": value["active"]}])(value)), IntegrityError, "a split is"),
    ("a split arm of no version", edited(put("split", [{"weight": 1, "version": None}])),
     IntegrityError, "names no version"),
    ("a tombstone with content", edited(put("kind", "tombstone")), IntegrityError, "tombstone"),
    ("signatures that are text", edited(put("signatures", "x")), IntegrityError, "wrong type"),
    ("signatures that are numbers", edited(put("signatures", [1])), IntegrityError, "wrong type"),
    ("signatures that are a map", edited(put("signatures", {})), IntegrityError, "canonical"),
    ("a version signed by nobody", edited(put("active", "signatures", [])), IntegrityError, "form"),
)  # fmt: skip


def good_local(scene: Scene) -> LocalAdapter:
    return read_adapter_dir(good_folder(scene.folder / "good"), card=CARD)


def in_log(what: str, forge: Forge, error: type[StoreError], says: str) -> BadInput:
    """After a good record; whoever knows that one and whoever comes new must both refuse."""

    def prepare(scene: Scene) -> Scene:
        publisher(scene.store).publish(TENANT, scene.adapter, good_local(scene), label="good")
        warm = Reader(scene.store)
        good = warm.head(TENANT, scene.adapter)
        for key, body in forge(good).items():
            scene.store.put_new(key, body)
        return replace(scene, readers={"warm": warm, "cold": Reader(scene.store)})

    def load(scene: Scene, who: str) -> object:
        reader = scene.readers[who]
        found = reader.resolve(layout.AdapterRef(TENANT, scene.adapter))
        config = found.version.config
        sizes = {file.name: file.size for file in found.version.files}
        check_sizes(sizes, config=config, card_modules=CARD.modules)
        files = reader.fetch(TENANT, found.version, adapter=scene.adapter)
        return check_content(files, config=config, card_modules=CARD.modules)

    def load_warm(scene: Scene) -> object:
        return load(scene, "warm")

    def load_cold(scene: Scene) -> object:
        return load(scene, "cold")

    # What came before a record is known only to those who were there: the rest is for `fsck`.
    offers = (load_warm,) if what == "another parent" else (load_warm, load_cold)
    return BadInput(group="records", what=what, error=error, says=says, offers=offers,
                    prepare=prepare, forge=forge)  # fmt: skip


def _gap(scene: Scene) -> Scene:
    publisher(scene.store).publish(TENANT, scene.adapter, good_local(scene), label="good")
    for key, body in at_gap(Reader(scene.store).head(TENANT, scene.adapter)).items():
        scene.store.put_new(key, body)
    return scene


def _at(key: str, body: bytes) -> Any:
    def prepare(scene: Scene) -> Scene:
        scene.store.put_new(key.format(adapter=scene.adapter), body)
        return scene

    return prepare


def _publish_beside_a_plan(scene: Scene) -> object:
    return publisher(scene.store).publish("planned", scene.adapter, good_local(scene))


BESIDE_THE_LOG: tuple[BadInput, ...] = (
    BadInput(group="records", what="a generation missing", error=IntegrityError, says="is gone",
             prepare=_gap, offers=(lambda s: list(Reader(s.store).history(TENANT, s.adapter)),)),
    BadInput(group="records", what="a key in the log that is none", error=IntegrityError,
             says="holds what is no record",
             prepare=_at(f"v1/t/{TENANT}/a/{{adapter}}/log/0", b"x"),
             offers=(lambda s: Reader(s.store).head(TENANT, s.adapter),)),
    BadInput(group="records", what="a plan that is none", error=IntegrityError,
             says="not a collection plan", prepare=_at(f"v1/t/planned/gc/{TXID}", b"x"),
             offers=(_publish_beside_a_plan,)),
    BadInput(group="records", what="an intent that is none", error=IntegrityError,
             says="not an intent", prepare=_at(f"v1/t/{TENANT}/txn/{TXID}.1", b"x"),
             offers=(lambda s: publisher(s.store).settle(TENANT, s.adapter, TXID),)),
    BadInput(group="records", what="a base card that is none", error=IntegrityError,
             says="not a base card", prepare=_at(f"v1/base/{'1' * 64}.json", b"x"),
             offers=(lambda s: load_base(s.store, "1" * 64),)),
    BadInput(group="records", what="another base's card", error=IntegrityError,
             says="is another's", prepare=_at(f"v1/base/{'2' * 64}.json", CARD.encode()),
             offers=(lambda s: load_base(s.store, "2" * 64),)),
)  # fmt: skip

RECORDS: tuple[BadInput, ...] = (
    *(in_log(what, forge, error, says) for what, forge, error, says in RECORDS_IN_LOG),
    *BESIDE_THE_LOG,
)
