"""What nothing may be called, each offered at every door a name comes in by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from adapter_store import layout
from adapter_store.errors import InvalidName
from adapter_store.reader import Reader
from inference_node.errors import InvalidRequest
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.rpc import convert
from tests.adapter_store.publishing import adapter as some_adapter
from tests.adapter_store.publishing import publisher
from tests.chaos.bad_inputs.case import TENANT, BadInput, Offer, Scene
from tests.inference_node.rpc.scripted_engine import ByteEncoder

DIGEST = "0123456789abcdef" * 4
MAX_MESSAGE = 300
TXID = "0123456789abcdef" * 2

NAMES: tuple[tuple[str, str], ...] = (
    ("parent folder", "../x"),
    ("two dots alone", ".."),
    ("two dots inside", "a..b"),
    ("a folder inside", "a/b"),
    ("an empty folder inside", "a//b"),
    ("leading slash", "/a"),
    ("backslash", "a\\b"),
    ("zero byte", "a\0"),
    ("trailing newline", "a\n"),
    ("carriage return", "a\r"),
    ("a space", "a b"),
    ("terminal escape", "a\x1b[2J"),
    ("leading dot", ".a"),
    ("trailing dot", "a."),
    ("leading dash", "-a"),
    ("upper case", "Anna"),
    ("full-width letter", "\uff41nna"),
    ("Cyrillic a", "\u0430nna"),
    ("composed accent", "\u00e9"),
    ("combining accent", "e\u0301"),
    ("other digits", "\u0661"),
    ("right-to-left override", "a\u202eb"),
    ("zero-width space", "a\u200bb"),
    ("percent encoding", "a%2f..%2fb"),
    ("a URL", "s3://bucket/key"),
    ("a variable", "${jndi:x}"),
    ("65 letters", "a" * 65),
    ("a million letters", "a" * 1_000_000),
)

REFERENCES: tuple[tuple[str, str], ...] = (
    ("no version after the @", "tone@"),
    ("no name before the @", "@v1"),
    ("two versions", "tone@v1@v2"),
    ("no digest", "tone@sha256:"),
    ("a digest too short", f"tone@sha256:{DIGEST[:-1]}"),
    ("a digest too long", f"tone@sha256:{DIGEST}0"),
    ("a digest in upper case", f"tone@sha256:{DIGEST.upper()}"),
    ("a digest with a newline", f"tone@sha256:{DIGEST}\n"),
    ("a version that is a path", "tone@../v1"),
)

TXIDS: tuple[tuple[str, str], ...] = (
    ("transaction empty", ""),
    ("transaction too short", TXID[:-1]),
    ("transaction in upper case", TXID.upper()),
    ("transaction that is a path", f"../{TXID}"),
    ("transaction with a newline", f"{TXID}\n"),
)

KEYS: tuple[tuple[str, Callable[[], object]], ...] = (
    ("generation 0", lambda: layout.log_key(TENANT, "tone", 0)),
    ("generation -1", lambda: layout.log_key(TENANT, "tone", -1)),
    ("generation 2^63", lambda: layout.log_key(TENANT, "tone", 2**63)),
    ("log key of two generations", lambda: layout.parse_log_key("7ffffffffffffffe-2")),
    ("log key with a leading zero", lambda: layout.parse_log_key("7ffffffffffffffe-01")),
    ("log key of generation 0", lambda: layout.parse_log_key("7fffffffffffffff-0")),
    ("log key in upper case", lambda: layout.parse_log_key("7FFFFFFFFFFFFFFE-1")),
    ("blob key of no digest", lambda: layout.blob_key(TENANT, "../x", TXID, 1)),
)


def _request(**fields: str) -> object:
    """As the node converts a request; its error is short and carries the store's as its cause."""
    bounds = convert.Bounds(max_context=64, vocab_size=300)
    message = pb.GenerateRequest(prompt="hi", **fields)
    try:
        return convert.to_request(
            message, bounds=bounds, encoder=ByteEncoder(), deadline=9.0, new_id=lambda: "new"
        )
    except InvalidRequest as error:
        short = len(str(error)) < MAX_MESSAGE
        raise (error.__cause__ if short and error.__cause__ else error) from error


def _name_doors(name: str) -> tuple[Offer, ...]:
    def publish(scene: Scene, tenant: str, adapter: str, label: str | None) -> object:
        local = some_adapter(0)
        return publisher(scene.store).publish(tenant, adapter, local, label=label)

    return (
        lambda scene: layout.parse_ref(name),
        lambda scene: layout.parse_ref("tone", tenant=name),
        lambda scene: publish(scene, TENANT, name, None),
        lambda scene: publish(scene, name, "tone", None),
        lambda scene: publish(scene, TENANT, "tone", name),
        lambda scene: Reader(scene.store).head(TENANT, name),
        lambda scene: list(Reader(scene.store).adapters(name)),
        lambda scene: _request(adapter=name),
        lambda scene: _request(adapter="tone", tenant=name),
    )


def _reference_doors(text: str) -> tuple[Offer, ...]:
    return (lambda scene: layout.parse_ref(text), lambda scene: _request(adapter=text))


def _build(build: Callable[[], object], scene: Scene) -> object:
    return build()


def _case(what: str, *offers: Offer) -> BadInput:
    return BadInput(group="names", what=what, error=InvalidName, says="", offers=offers)


def _settle(txid: str, scene: Scene) -> object:
    return publisher(scene.store).settle(TENANT, "tone", txid)


NAMES_AND_KEYS: tuple[BadInput, ...] = (
    *(_case(what, *_name_doors(name)) for what, name in NAMES),
    *(_case(what, *_reference_doors(ref)) for what, ref in REFERENCES),
    *(_case(what, partial(_settle, txid)) for what, txid in TXIDS),
    *(_case(what, partial(_build, build)) for what, build in KEYS),
)
