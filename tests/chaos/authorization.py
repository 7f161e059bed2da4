"""T15: every RPC with every kind of credential, over mutual TLS, on a node with a real engine.

The RPCs are read from the protos' descriptors: one without a case here, or without a policy in the
product, is a violation. What is forbidden must answer byte for byte like what does not exist, and
as soon (Kolmogorov-Smirnov).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast
from unittest import mock

import grpc
import torch
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from adapter_store.memory import MemoryStore
from adapter_store.validate import read_adapter_dir
from inference_node.config import EngineConfig
from inference_node.errors import AdapterNotFound, Forbidden, Unauthenticated
from inference_node.model.default_base import ensure_default_base
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.rpc import auth, servicers, tokens
from inference_node.rpc.auth import POLICIES, Anyone, AuthConfig, Grant
from inference_node.rpc.scopes import Role, Scope
from tests.chaos.bench import Bench
from tests.chaos.credentials import (
    ADAPTER,
    CREDENTIALS,
    IDENTITIES,
    REVOKED,
    TENANT,
    Certificate,
    Credential,
    Verdict,
)
from tests.chaos.isolation import ACROSS, ATTEMPTS, FEWEST, SENSITIVE, same_spread
from tests.chaos.row import Row
from tests.inference_node.harness import Node, start_node
from tests.inference_node.rpc.authority import Authority
from tests.inference_node.rpc.issuer import Ed25519PrivateKey, Issuer
from tests.inference_node.rpc.rpcs import every_rpc
from tests.inference_node.rpc.running_node import CONFIG, running_node
from tests.inference_node.tiny import make_adapter, make_checkpoint

SAMPLES = 250
HIDDEN = 8
"""Adapters that exist and are out of scope, for the clock."""
ABSENT = "absent"
"""As long as ADAPTER: the answers are compared byte by byte."""
GENERATE = "/lorapool.v1.InferenceService/Generate"
PATIENCE = 30.0
Ask = Callable[[str, str], Message]


@dataclass(frozen=True, slots=True)
class Case:
    """How one RPC is called."""

    ask: Ask
    """The request, by tenant and adapter."""
    names: bool = False
    """Whether it names them."""


def _generate(tenant: str, adapter: str) -> pb.GenerateRequest:
    stopping = pb.Stopping(max_new_tokens=1, ignore_eos=True)
    return pb.GenerateRequest(prompt="hi", tenant=tenant, adapter=adapter, stopping=stopping)


CASES: Mapping[str, Case] = {
    GENERATE: Case(_generate, names=True),
    "/lorapool.v1.InferenceService/StreamGenerate": Case(
        lambda tenant, adapter: pb.StreamGenerateRequest(request=_generate(tenant, adapter)),
        names=True,
    ),
    "/lorapool.v1.InferenceService/Tokenize": Case(lambda *_: pb.TokenizeRequest(prompt="hi")),
    "/lorapool.v1.InferenceService/GetModelInfo": Case(lambda *_: pb.GetModelInfoRequest()),
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

    def renamed(self, before: str, after: str) -> Answer:
        def told(value: str | bytes) -> str | bytes:
            if isinstance(value, bytes):
                return value.replace(before.encode(), after.encode())
            return value.replace(before, after)

        trailers = tuple((key, told(value)) for key, value in self.trailers)
        return Answer(self.code, self.text.replace(before, after), trailers)


@dataclass
class Guarded:
    """A node that asks for credentials, and a connection for each certificate."""

    issuer: Issuer
    channels: Mapping[Certificate, grpc.Channel]
    submitted: list[str]
    """Ids of the requests that reached the engine."""

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
        channel = self.channels[credential.certificate]
        try:
            _first(channel, path, method, case.ask(tenant, adapter), metadata)
        except grpc.RpcError as error:
            return _ended(cast(grpc.Call, error))
        return Answer(grpc.StatusCode.OK)


def run(scale: float, seed: int, bench: Bench) -> Row:
    """Every credential with every RPC, whatever the scale; at scale 1, 250 samples of each kind."""
    samples = max(FEWEST, round(SAMPLES * scale))
    with _node(bench.folder) as guarded:
        violations = _table(guarded, CASES)
        clock = _clock(guarded, samples, seed)
        if clock.p <= ACROSS:
            violations.append(
                f"seed {seed}: forbidden takes another time than absent: {clock.p:.1e}"
            )
        controls = _controls(guarded, seed)
    return Row(
        id="T15",
        cases=len(every_rpc()) * len(CREDENTIALS),
        unit="RPCs with credentials",
        violations=violations,
        controls=controls,
        seeds=str(seed),
        figures={
            "rpcs": len(every_rpc()),
            "credentials": len(CREDENTIALS),
            "samples": samples,
            "audits": clock.attempts,
            "p_forbidden_absent": clock.p,
            "median_ms_forbidden": round(clock.forbidden * 1000, 3),
            "median_ms_absent": round(clock.absent * 1000, 3),
        },
    )


@contextmanager
def _node(folder: Path) -> Iterator[Guarded]:
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
    node = start_node(config, MemoryStore())
    submitted = _count(node)
    _publish(node, folder / "adapter")
    authority, issuer = Authority(folder / "tls"), Issuer(folder / "jwks.json")
    issuer.keys[REVOKED] = Ed25519PrivateKey.generate()
    issuer.publish(without=REVOKED)
    identities = folder / "identities.toml"
    identities.write_text(IDENTITIES)
    server = replace(
        CONFIG,
        tls=replace(authority.issue(), client_ca=authority.file),
        auth=AuthConfig(tokens=issuer.rules, identities=identities),
    )
    with ExitStack() as stack:
        address = stack.enter_context(running_node(node.engine, server))
        foreign = Authority(folder / "foreign")
        channels = {}
        for certificate in Certificate:
            by = foreign if certificate is Certificate.FOREIGN else authority
            mine = by.issue(certificate.value, into=certificate.value)
            credentials = grpc.ssl_channel_credentials(
                authority.file.read_bytes(), mine.key.read_bytes(), mine.cert.read_bytes()
            )
            channel = grpc.secure_channel(address, credentials)
            channels[certificate] = stack.enter_context(channel)
        yield Guarded(issuer, channels, submitted)


def _count(node: Node) -> list[str]:
    submitted: list[str] = []
    submit = node.engine.submit

    def counted(request: Any, on_event: Any) -> None:
        submitted.append(request.request_id)
        submit(request, on_event)

    node.engine.submit = counted  # type: ignore[method-assign]
    return submitted


def _publish(node: Node, folder: Path) -> None:
    make_adapter(folder, dict(node.card.modules), rank=4, seed=1, targets=["q_proj"])
    local = read_adapter_dir(folder, card=node.card)
    for tenant in (TENANT, "other"):
        node.publisher.publish(tenant, ADAPTER, local, label="v1")
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
) -> None:
    """Until an RPC has answered its first message. Raises RpcError."""

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
        next(answer)
        answer.cancel()


def _table(guarded: Guarded, paths: Sequence[str] | Mapping[str, Case]) -> list[str]:
    """Every credential with these RPCs; what came out otherwise than it must."""
    found = [f"{path} has no case here" for path in every_rpc() if path not in CASES]
    found += [f"{path} has no policy" for path in every_rpc() if path not in POLICIES]
    for path in paths:
        absent = guarded.call(path, CREDENTIALS[0], adapter=ABSENT)
        for credential in CREDENTIALS:
            before = len(guarded.submitted)
            answer = guarded.call(path, credential)
            expected = _expected(path, credential.verdict)
            where = f"{path.rpartition('/')[2]} with {credential.name}"
            if answer.code is not expected:
                found.append(f"{where}: {answer.code.name}, not {expected.name}")
            elif expected is grpc.StatusCode.NOT_FOUND:
                if answer != absent.renamed(ABSENT, ADAPTER):
                    found.append(f"{where}: {answer}, and for what does not exist {absent}")
            elif expected is not grpc.StatusCode.OK and len(guarded.submitted) != before:
                found.append(f"{where}: refused, and the engine had it all the same")
    return found


def _expected(path: str, verdict: Verdict) -> grpc.StatusCode:
    code, policy = grpc.StatusCode, POLICIES.get(path)
    if verdict is Verdict.UNHEARD:
        return code.UNAVAILABLE
    if policy is Anyone.STRANGER:
        return code.OK
    if verdict is Verdict.UNKNOWN:
        return code.UNAUTHENTICATED
    if verdict is Verdict.ROLELESS and isinstance(policy, Role):
        return code.PERMISSION_DENIED
    if verdict is Verdict.UNSEEN and CASES[path].names:
        return code.NOT_FOUND
    return code.OK


@dataclass(frozen=True, slots=True)
class Clock:
    """What the times of forbidden and absent names told."""

    p: float
    attempts: int
    forbidden: float
    absent: float


def _clock(guarded: Guarded, samples: int, seed: int) -> Clock:
    """One caller asks for adapters that are hidden from it, and for some that do not exist."""
    scope = {"tenants": [TENANT], "adapters": ["absent-*"], "roles": ["generate"]}
    looker = Credential("looker", Verdict.UNSEEN, lambda i: i.token(lorapool=scope))
    chance, attempts = random.Random(seed), 0
    while attempts < ATTEMPTS:
        attempts += 1
        times: dict[str, list[float]] = {"hidden": [], "absent": []}
        for number in range(samples):
            for kind in chance.sample(sorted(times), 2):
                begun = time.perf_counter()
                answer = guarded.call(GENERATE, looker, adapter=f"{kind}-{number % HIDDEN}")
                times[kind].append(time.perf_counter() - begun)
                assert answer.code is grpc.StatusCode.NOT_FOUND, answer
        p = same_spread(times["hidden"], times["absent"])
        if p > ACROSS:
            break
    return Clock(p, attempts, median(times["hidden"]), median(times["absent"]))


def _controls(guarded: Guarded, seed: int) -> dict[str, bool]:
    """Each bug, and whether the table or the clock shows it."""

    def shown(*bug: Any) -> bool:
        with ExitStack() as bugs:
            for patch in bug:
                bugs.enter_context(patch)
            return bool(_table(guarded, [GENERATE]))

    def patched(room: Any, name: str, bug: Any) -> Any:
        return mock.patch.object(room, name, bug)

    found = {
        "the scope is not looked at": shown(patched(Scope, "covers", lambda *_: True)),
        "the role is not looked at": shown(
            patched(auth.Gate, "admit", lambda gate, _, context: gate._authenticate(context))
        ),
        "the token names its algorithm": shown(patched(tokens.jwt, "decode", _trusting)),
        "the audience is not looked at": shown(patched(tokens.jwt, "decode", _deaf)),
        "the time is not looked at": shown(patched(tokens, "_check_times", lambda *_: None)),
        "a bad token counts as none": shown(patched(auth.Gate, "_authenticate", _forgiving)),
        "forbidden says so": shown(patched(servicers, "grant", _saying_so)),
    }
    with mock.patch.dict(POLICIES):  # type: ignore[arg-type]
        del POLICIES[GENERATE]  # type: ignore[attr-defined]
        found["an RPC without a policy"] = bool(_table(guarded, ()))
    with patched(servicers, "grant", _at_once):
        assert not _table(guarded, [GENERATE]), "this bug is for the clock alone"
        found["forbidden answers at once"] = _clock(guarded, FEWEST, seed).p < SENSITIVE
    return found


_decode = tokens.jwt.decode


def _trusting(token: str, key: Any, **how: Any) -> Any:
    """Signatures by whatever algorithm the token names; HS256 with the key's PEM for a secret."""
    if tokens.jwt.get_unverified_header(token)["alg"] in ("none", "HS256"):
        return _decode(token, options={"verify_signature": False})
    return _decode(token, key, **how)


def _deaf(token: str, key: Any, **how: Any) -> Any:
    how["options"] = {**how["options"], "verify_aud": False}
    return _decode(token, key, **{name: how[name] for name in how if name != "audience"})


_authenticate = auth.Gate._authenticate


def _forgiving(gate: auth.Gate, context: Any) -> auth.Caller:
    try:
        return _authenticate(gate, context)
    except Unauthenticated:
        with suppress(tokens.TokenRefused):
            return gate._by_certificate(context)
        raise


def _saying_so(tenant: str, adapter: str) -> Grant:
    if not auth.caller().scope.covers(tenant, adapter):
        raise Forbidden("not for you")
    return Grant(tenant, adapter, "", "")


def _at_once(tenant: str, adapter: str) -> Grant:
    if not auth.caller().scope.covers(tenant, adapter):
        raise AdapterNotFound(
            f"there is no adapter {adapter}", hint="adapter-store ls shows what is published"
        )
    return Grant(tenant, adapter, "", "")
