"""A node with a real engine that asks for credentials, and how each of its RPCs is called."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import grpc
import torch
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from adapter_store.memory import MemoryStore
from adapter_store.objects import ListPage
from adapter_store.reader import Reader
from adapter_store.validate import read_adapter_dir
from inference_node.config import EngineConfig
from inference_node.engine.loop import EngineLoop
from inference_node.model.default_base import ensure_default_base
from inference_node.pb.lorapool.v1 import adapters_pb2 as adapters
from inference_node.pb.lorapool.v1 import catalog_pb2 as catalog
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.rpc.auth import AuthConfig
from tests.chaos.credentials import ADAPTER, IDENTITIES, REVOKED, TENANT, Certificate, Credential
from tests.inference_node.harness import Node, start_node
from tests.inference_node.rpc.authority import Authority
from tests.inference_node.rpc.issuer import Ed25519PrivateKey, Issuer
from tests.inference_node.rpc.rpcs import every_rpc
from tests.inference_node.rpc.running_node import CONFIG, running_server
from tests.inference_node.tiny import make_adapter, make_checkpoint

HIDDEN = 8
"""Adapters that exist and are out of scope, for the clock."""
GENERATE = "/lorapool.v1.InferenceService/Generate"
GET_ADAPTER = "/lorapool.v1.CatalogService/GetAdapter"
PATIENCE = 30.0
Ask = Callable[[str, str], Message]


@dataclass(frozen=True, slots=True)
class Case:
    """How one RPC is called."""

    ask: Ask
    """The request, by tenant and adapter."""
    names: bool = False
    """Whether it names them."""
    admin: bool = False
    """Whether it is behind the operators' address."""


def _generate(tenant: str, adapter: str) -> pb.GenerateRequest:
    stopping = pb.Stopping(max_new_tokens=1, ignore_eos=True)
    return pb.GenerateRequest(prompt="hi", tenant=tenant, adapter=adapter, stopping=stopping)


def _catalog(message: Callable[..., Message]) -> Case:
    return Case(lambda tenant, adapter: message(tenant=tenant, adapter=adapter), names=True)


def _order(message: Callable[..., Message]) -> Case:
    return replace(_catalog(message), admin=True)


CASES: Mapping[str, Case] = {
    GENERATE: Case(_generate, names=True),
    "/lorapool.v1.InferenceService/StreamGenerate": Case(
        lambda tenant, adapter: pb.StreamGenerateRequest(request=_generate(tenant, adapter)),
        names=True,
    ),
    "/lorapool.v1.InferenceService/Tokenize": Case(lambda *_: pb.TokenizeRequest(prompt="hi")),
    "/lorapool.v1.InferenceService/GetModelInfo": Case(lambda *_: pb.GetModelInfoRequest()),
    GET_ADAPTER: _catalog(catalog.GetAdapterRequest),
    "/lorapool.v1.CatalogService/ListVersions": _catalog(catalog.ListVersionsRequest),
    "/lorapool.v1.CatalogService/ResolveAdapter": _catalog(catalog.ResolveAdapterRequest),
    "/lorapool.v1.CatalogService/ListAdapters": Case(
        lambda tenant, _: catalog.ListAdaptersRequest(tenant=tenant)
    ),
    "/lorapool.v1.AdapterService/PreloadAdapter": _order(adapters.PreloadAdapterRequest),
    "/lorapool.v1.AdapterService/PinAdapter": _order(adapters.PinAdapterRequest),
    "/lorapool.v1.AdapterService/UnpinAdapter": _order(adapters.UnpinAdapterRequest),
    "/lorapool.v1.AdapterService/UnloadAdapter": _order(adapters.UnloadAdapterRequest),
    "/lorapool.v1.AdapterService/ListLoadedAdapters": Case(
        lambda *_: adapters.ListLoadedAdaptersRequest(), admin=True
    ),
    "/lorapool.v1.AdapterService/GetPoolStatus": Case(
        lambda *_: adapters.GetPoolStatusRequest(), admin=True
    ),
    "/lorapool.v1.AdapterService/WatchPool": Case(
        lambda *_: adapters.WatchPoolRequest(), admin=True
    ),
    "/grpc.health.v1.Health/Check": Case(lambda *_: health_pb2.HealthCheckRequest()),
    "/grpc.health.v1.Health/Watch": Case(lambda *_: health_pb2.HealthCheckRequest()),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Case(
        lambda *_: reflection_pb2.ServerReflectionRequest(list_services="")
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller can tell about how its call ended."""

    code: grpc.StatusCode
    text: str = ""
    trailers: tuple[tuple[str, str | bytes], ...] = ()
    body: bytes = b""
    """Of the first message."""

    def renamed(self, before: str, after: str) -> Answer:
        def told(value: str | bytes) -> str | bytes:
            if isinstance(value, bytes):
                return value.replace(before.encode(), after.encode())
            return value.replace(before, after)

        trailers = tuple((key, told(value)) for key, value in self.trailers)
        return Answer(self.code, self.text.replace(before, after), trailers)


class DistantStore(MemoryStore):
    """Takes `delay` seconds more for a listing, as one beyond a network would."""

    delay = 0.0

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        time.sleep(self.delay)
        return super().list(prefix, delimiter=delimiter, limit=limit, token=token)


@dataclass
class Guarded:
    """A node that asks for credentials, and a connection for each certificate."""

    issuer: Issuer
    store: DistantStore
    channels: Mapping[tuple[Certificate, bool], grpc.Channel]
    """By certificate and whether it goes to the operators' address."""
    reload: Callable[[str, str], Future[Any]]
    asked: list[str]
    """What the gate has let through to the engine."""

    def call(
        self,
        path: str,
        credential: Credential,
        *,
        adapter: str = ADAPTER,
        tenant: str = TENANT,
    ) -> Answer:
        method, case = every_rpc()[path], CASES[path]
        token = credential.token(self.issuer) if credential.token else ""
        metadata = [("authorization", f"Bearer {token}")] if token else []
        channel = self.channels[credential.certificate, case.admin]
        if case.admin:
            # An order finds it there, whatever the last one did.
            self.reload(TENANT, ADAPTER).result(PATIENCE)
        try:
            body = _first(channel, path, method, case.ask(tenant, adapter), metadata)
        except grpc.RpcError as error:
            return _ended(cast(grpc.Call, error))
        return Answer(grpc.StatusCode.OK, body=body)


@contextmanager
def guarded_node(folder: Path) -> Iterator[Guarded]:
    """A real engine with ADAPTER of two tenants, behind mutual TLS, tokens and identities."""
    base = make_checkpoint(folder / "base", tokenizer_from=ensure_default_base())
    torch.set_num_threads(1)
    config = EngineConfig(
        base_model=str(base),
        device="cpu",
        linears="dense",
        dtype="float32",
        pool_bytes=2 * 2**20,
        kv_tokens=4096,
        max_context=512,
    )
    store = DistantStore()
    node = start_node(config, store)
    reload, asked = node.engine.preload, _count(node.engine)
    _publish(node, folder / "adapter")
    authority, issuer = Authority(folder / "tls"), Issuer(folder / "jwks.json")
    issuer.keys[REVOKED] = Ed25519PrivateKey.generate()
    issuer.publish(without=REVOKED)
    identities = folder / "identities.toml"
    identities.write_text(IDENTITIES)
    server = replace(
        CONFIG,
        tls=replace(authority.issue(), client_ca=authority.file),
        admin_listen="127.0.0.1:0",
        auth=AuthConfig(tokens=issuer.rules, identities=identities),
    )
    with ExitStack() as stack:
        doors = stack.enter_context(
            running_server(
                node.engine, server, open_reader=lambda: Reader(store), control=node.engine
            )
        )
        foreign = Authority(folder / "foreign")
        channels = {}
        for certificate in Certificate:
            by = foreign if certificate is Certificate.FOREIGN else authority
            mine = by.issue(certificate.value, into=certificate.value)
            credentials = grpc.ssl_channel_credentials(
                authority.file.read_bytes(), mine.key.read_bytes(), mine.cert.read_bytes()
            )
            for admin, port in ((False, doors.port), (True, doors.admin_port)):
                channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials)
                channels[certificate, admin] = stack.enter_context(channel)
        yield Guarded(issuer, store, channels, reload, asked)


def _count(engine: EngineLoop) -> list[str]:
    """What the engine is asked from now on."""
    asked: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(engine, name)

        def count(*arguments: Any, **options: Any) -> Any:
            asked.append(name)
            return method(*arguments, **options)

        return count

    for name in ("submit", "preload", "pin", "unpin", "unload"):
        setattr(engine, name, counted(name))
    return asked


def _publish(node: Node, folder: Path) -> None:
    make_adapter(folder, dict(node.card.modules), rank=4, seed=1, targets=["q_proj"])
    local = read_adapter_dir(folder, card=node.card)
    for tenant, name in ((TENANT, ADAPTER), ("other", "sailor")):
        node.publisher.publish(tenant, name, local, label="v1")
    for number in range(HIDDEN):
        node.publisher.publish(TENANT, f"hidden-{number}", local, label="v1")


def _ended(call: grpc.Call) -> Answer:
    trailers = tuple((key, value) for key, value in call.trailing_metadata() or ())
    return Answer(call.code(), call.details() or "", trailers)


def _first(
    channel: grpc.Channel,
    path: str,
    method: MethodDescriptor,
    message: Message,
    metadata: Sequence[tuple[str, str]],
) -> bytes:
    """The first message that an RPC answers. Raises RpcError."""

    def encoded(message: Any) -> bytes:
        data: bytes = message.SerializeToString()
        return data

    kinds: dict[tuple[bool, bool], Callable[..., Any]] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    kind = kinds[method.client_streaming, method.server_streaming]
    call = kind(path, request_serializer=encoded, response_deserializer=bytes)
    asked = iter([message]) if method.client_streaming else message
    answer = call(asked, timeout=PATIENCE, metadata=metadata)
    if method.server_streaming:
        first: bytes = next(answer)
        answer.cancel()
        return first
    return bytes(answer)
