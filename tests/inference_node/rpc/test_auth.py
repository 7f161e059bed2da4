"""Who is let in, as whom, and what those hear who are not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.rpc import status_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inference_node import errors
from inference_node.client import Access, Client
from inference_node.errors import BadConfiguration
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.pb.lorapool.v1 import inference_pb2_grpc
from inference_node.request import Failed, OnEvent, Request
from inference_node.rpc.auth import POLICIES, AuthConfig, Gate
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.status import DETAILS_KEY
from tests.inference_node.rpc.authority import Authority
from tests.inference_node.rpc.issuer import RSA, Issuer
from tests.inference_node.rpc.rpcs import every_rpc
from tests.inference_node.rpc.running_node import CONFIG, running_node
from tests.inference_node.rpc.scripted_engine import ScriptedEngine, follows, says

PIRATE = {"tenants": ["acme"], "adapters": ["pirate"], "roles": ["generate"]}
Open = Callable[..., Client]


def knows(*names: str) -> Callable[[Request, OnEvent, threading.Event], None]:
    """An engine with these adapters, of any tenant; others do not exist."""

    def script(request: Request, emit: OnEvent, cancelled: threading.Event) -> None:
        if request.adapter.partition("@")[0] in ("", *names):
            says("ahoy")(request, emit, cancelled)
        else:
            missing = errors.AdapterNotFound(
                f"there is no adapter {request.adapter}",
                hint="look",
                details={"a": request.adapter},
            )
            emit(Failed(missing, None))

    return script


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(knows("pirate", "poet"))


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "jwks.json")


@pytest.fixture
def address(engine: ScriptedEngine, issuer: Issuer) -> Iterator[str]:
    with running_node(engine, replace(CONFIG, auth=AuthConfig(tokens=issuer.rules))) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Open]:
    with ExitStack() as opened:
        yield lambda token="": opened.enter_context(Client(address, access=Access(token=token)))


def test_whoever_shows_a_good_token_is_served_in_its_scope(client: Open, issuer: Issuer) -> None:
    friend = client(issuer.token(lorapool=PIRATE))
    assert friend.generate("hi", adapter="pirate@v1", tenant="acme").text == "ahoy"
    assert list(friend.stream("hi", adapter="pirate", tenant="acme")) == ["ahoy"]
    assert friend.generate("hi", tenant="acme").text == "ahoy"
    assert friend.model_info().name == "scripted"


def test_a_stranger_is_told_nothing_but_whether_the_node_is_ready(
    client: Open, engine: ScriptedEngine
) -> None:
    stranger = client()
    assert stranger.ready()
    for call in (stranger.model_info, lambda: stranger.generate("hi")):
        with pytest.raises(errors.Unauthenticated) as caught:
            call()
        assert "--token-file" in caught.value.hint
    assert engine.submitted == []


def test_an_expired_token_is_told_apart_so_that_its_bearer_renews_it(
    client: Open, issuer: Issuer
) -> None:
    with pytest.raises(errors.CredentialsExpired):
        client(issuer.token(iat=1, exp=2)).generate("hi")


def test_a_role_that_is_missing_is_named(client: Open, issuer: Issuer) -> None:
    looker = client(issuer.token(lorapool={**PIRATE, "roles": ["catalog"]}))
    assert looker.model_info().name == "scripted"
    with pytest.raises(errors.Forbidden) as caught:
        looker.generate("hi", adapter="pirate", tenant="acme")
    assert caught.value.details["role"] == "generate"


def raw(address: str, token: str, **asked: str) -> tuple[grpc.StatusCode, str, status_pb2.Status]:
    """The answer as it is on the wire."""
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Generate(
                pb.GenerateRequest(prompt="hi", **asked),  # type: ignore[arg-type]
                metadata=(("authorization", f"Bearer {token}"),),
                timeout=5,
            )
    error = caught.value
    assert isinstance(error, grpc.Call)
    trailers = dict(error.trailing_metadata() or ())
    return error.code(), error.details() or "", status_pb2.Status.FromString(trailers[DETAILS_KEY])


def test_what_a_caller_must_not_see_answers_like_what_does_not_exist(
    address: str, issuer: Issuer, engine: ScriptedEngine
) -> None:
    scope = {**PIRATE, "adapters": ["pirate", "none*"]}
    token = issuer.token(lorapool=scope)
    absent = raw(address, token, tenant="acme", adapter="none@v1")
    assert absent[0] is grpc.StatusCode.NOT_FOUND
    for tenant in ("acme", "other"):
        # Of equal length, so that even the trailers' sizes are equal.
        assert raw(address, token, tenant=tenant, adapter="poet@v1") == (
            absent[0],
            absent[1].replace("none", "poet"),
            status_pb2.Status.FromString(absent[2].SerializeToString().replace(b"none", b"poet")),
        )
    base = raw(address, token, tenant="other")
    assert (base[0], "'other'" in base[1]) == (grpc.StatusCode.NOT_FOUND, True)
    asked = [(request.tenant, request.adapter.partition("@")[0]) for request in engine.submitted]
    assert asked[0] == ("acme", "none")
    assert {tenant for tenant, _ in asked} == {"acme"}, "charged to somebody else"
    assert {"poet", ""}.isdisjoint(adapter for _, adapter in asked)


def test_a_caller_without_any_tenant_is_charged_to_nobody(
    address: str, issuer: Issuer, engine: ScriptedEngine
) -> None:
    token = issuer.token(lorapool={"roles": ["generate"]})
    raw(address, token, tenant="acme", adapter="pirate")
    raw(address, token, tenant="acme")
    assert all(request.tenant.startswith("nobody-") for request in engine.submitted)


def test_a_key_taken_out_of_the_file_counts_no_more(client: Open, issuer: Issuer) -> None:
    friend = client(issuer.token(kid=RSA, lorapool=PIRATE))
    assert friend.generate("hi", tenant="acme").text == "ahoy"
    issuer.publish(without=RSA)
    with pytest.raises(errors.Unauthenticated):
        friend.generate("hi", tenant="acme")
    issuer.jwks.write_text("half a fi")
    assert client(issuer.token()).generate("hi", tenant="acme").text == "ahoy"


def test_two_authorizations_are_none(address: str, issuer: Issuer) -> None:
    good = ("authorization", f"Bearer {issuer.token()}")
    for metadata in (
        [good, good],
        [("authorization", f"Basic {issuer.token()}")],
        [("authorization", "Bearer")],
    ):
        with grpc.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=metadata, timeout=5)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.fixture
def mutual(authority: Authority, issuer: Issuer, tmp_path: Path) -> ServerConfig:
    identities = tmp_path / "identities.toml"
    identities.write_text(
        '[[identity]]\nsan = "dns:checkout.internal"\ntenants = ["acme"]\n'
        'adapters = ["pirate"]\nroles = ["generate"]\n'
    )
    return replace(
        CONFIG,
        tls=replace(authority.issue(), client_ca=authority.file),
        auth=AuthConfig(tokens=issuer.rules, identities=identities),
    )


def test_a_certificate_is_an_identity_where_no_token_is_sent(
    mutual: ServerConfig, authority: Authority, engine: ScriptedEngine, issuer: Issuer
) -> None:
    def access(name: str, token: str = "") -> Access:
        mine = authority.issue(name, into=name)
        return Access(ca_file=authority.file, cert_file=mine.cert, key_file=mine.key, token=token)

    def answer(access: Access, adapter: str) -> str:
        with Client(address, access=access) as client:
            return client.generate("hi", adapter=adapter, tenant="acme", timeout=5).text

    with running_node(engine, mutual) as address:
        known = access("checkout.internal")
        assert answer(known, "pirate") == "ahoy"
        with pytest.raises(errors.AdapterNotFound):
            answer(known, "poet")
        with pytest.raises(errors.Unauthenticated):
            answer(access("stranger.internal"), "pirate")
        with pytest.raises(errors.CredentialsExpired):
            answer(access("checkout.internal", issuer.token(iat=1, exp=2)), "pirate")
        assert answer(access("stranger.internal", issuer.token()), "poet") == "ahoy"


def test_a_tenant_over_its_quota_is_told_which_and_until_when(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    quotas = tmp_path / "quotas.toml"
    quotas.write_text("[tenant.acme]\nrequests_per_second = 0.1\nburst_seconds = 10\n")
    with running_node(engine, replace(CONFIG, quotas=quotas)) as address:
        with Client(address) as client:
            assert client.generate("hi", tenant="acme").text == "ahoy"
            with pytest.raises(errors.QuotaExceeded) as caught:
                client.generate("hi", tenant="acme")
            assert caught.value.details["quota"] == "requests_per_second"
            assert caught.value.retry_after == pytest.approx(10, abs=1)
            assert client.generate("hi", tenant="other").text == "ahoy"
        code, _, status = raw(address, "none", tenant="acme")
        kinds = [detail.type_url.rpartition(".")[2] for detail in status.details]
        assert (code, kinds) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            ["ErrorInfo", "RetryInfo", "QuotaFailure"],
        )
        quotas.write_text("[default]\nrequests_per_second = 100\n")
        with Client(address) as client:
            assert client.generate("hi", tenant="other").text == "ahoy"
    assert len(engine.submitted) == 3


def test_nobody_goes_before_others_further_than_credentials_and_tenant_allow(
    engine: ScriptedEngine, issuer: Issuer, tmp_path: Path
) -> None:
    quotas = tmp_path / "quotas.toml"
    quotas.write_text("[tenant.acme]\nmax_priority = 3\n[tenant.slow]\nmax_priority = -2\n")
    config = replace(CONFIG, auth=AuthConfig(tokens=issuer.rules), quotas=quotas)
    scope = {**PIRATE, "tenants": ["*"]}
    with running_node(engine, config) as address:
        with Client(address, access=Access(token=issuer.token(lorapool=scope))) as client:
            assert client.generate("hi", tenant="acme", priority=3).text == "ahoy"
            assert client.generate("hi", tenant="other", priority=10).text == "ahoy"
            for tenant, priority in (("acme", 4), ("slow", 0)):
                with pytest.raises(errors.InvalidRequest, match=f"of tenant '{tenant}'"):
                    client.generate("hi", tenant=tenant, priority=priority)
        token = issuer.token(lorapool={**scope, "max_priority": 1})
        with Client(address, access=Access(token=token)) as client:
            assert client.generate("hi", tenant="acme", priority=1).text == "ahoy"
            with pytest.raises(errors.InvalidRequest, match="above 1") as caught:
                client.generate("hi", tenant="acme", priority=2)
            assert caught.value.field == "priority"
    assert len(engine.submitted) == 3


def test_a_request_id_of_another_tenant_is_neither_in_the_way_nor_to_be_found(
    engine: ScriptedEngine,
) -> None:
    gate = threading.Event()
    engine.script = follows(words=["one ", "two"], gate=gate)
    with running_node(engine) as address, Client(address) as client:
        first = client.stream("hi", tenant="acme", request_id="job")
        assert first.served.tenant == "acme"
        gate.set()
        assert client.generate("hi", tenant="other", request_id="job").request_id == "job"
        assert first.result.request_id == "job"


def test_certificates_as_identities_need_to_be_asked_for(mutual: ServerConfig) -> None:
    assert mutual.tls is not None
    for tls in (None, replace(mutual.tls, client_ca=None)):
        with pytest.raises(BadConfiguration, match="LORAPOOL_IDENTITIES_FILE"):
            replace(mutual, tls=tls)


def test_only_a_node_that_encrypts_and_authenticates_listens_beyond_loopback(
    mutual: ServerConfig,
) -> None:
    assert replace(mutual, listen="0.0.0.0:50051").insecure is False
    for changes, missing in (
        ({"auth": None}, "not authenticated"),
        ({"tls": None, "auth": AuthConfig()}, "not encrypted"),
    ):
        with pytest.raises(BadConfiguration, match=missing):
            replace(mutual, listen="0.0.0.0:50051", **changes)


def test_every_rpc_that_there_is_has_a_policy_and_no_other_has_one() -> None:
    assert set(POLICIES) == set(every_rpc())


def test_an_rpc_without_a_policy_is_refused_to_everybody(
    client: Open, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    friend = client(issuer.token())
    assert friend.model_info()
    monkeypatch.delitem(POLICIES, "/lorapool.v1.InferenceService/GetModelInfo")  # type: ignore[arg-type]
    with pytest.raises(errors.Forbidden):
        friend.model_info()


def test_reflection_is_for_callers(address: str, issuer: Issuer) -> None:
    def services(metadata: list[tuple[str, str]]) -> int:
        with grpc.insecure_channel(address) as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")]),
                metadata=metadata,
                timeout=5,
            )
            return sum(len(answer.list_services_response.service) for answer in call)

    assert services([("authorization", f"bearer {issuer.token()}")]) >= 3
    with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
        services([])


def test_a_missing_file_refuses_to_start_and_is_named(issuer: Issuer, tmp_path: Path) -> None:
    for config in (
        AuthConfig(tokens=replace(issuer.rules, jwks=tmp_path / "nowhere.json")),
        AuthConfig(identities=tmp_path / "nowhere.toml"),
    ):
        with pytest.raises(BadConfiguration, match="nowhere"):
            Gate(config)
