"""Which tokens count. Every refusal stands beside a token that differs in that one thing alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from inference_node.errors import BadConfiguration
from inference_node.rpc import tokens
from inference_node.rpc.scopes import Role, Scope
from inference_node.rpc.tokens import (
    MAX_TOKEN_BYTES,
    Claims,
    TokenExpired,
    TokenRefused,
    Verified,
    read_keys,
    verify,
)
from tests.inference_node.rpc.issuer import ED, RSA, Issuer, jwk

SCOPE = Scope(("acme",), ("*",), frozenset({Role.GENERATE}))


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer") / "jwks.json")


def says(issuer: Issuer, token: str, *, later: float = 0.0) -> Claims:
    keys = read_keys(issuer.jwks)
    return verify(token, keys, issuer.rules, now=time.time() + later)


@pytest.mark.parametrize("kid", [ED, RSA])
def test_a_token_of_either_kind_of_key_says_who_may_do_what(issuer: Issuer, kid: str) -> None:
    claims = says(issuer, issuer.token(kid=kid))
    assert (claims.subject, claims.scope) == ("checkout", SCOPE)


def test_a_token_that_names_no_scope_allows_nothing(issuer: Issuer) -> None:
    assert says(issuer, issuer.token(lorapool=None)).scope == Scope()


def test_an_audience_may_be_one_of_several(issuer: Issuer) -> None:
    assert says(issuer, issuer.token(aud=["other", "lorapool"])).scope == SCOPE


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "other"},
        {"aud": None},
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"sub": None},
        {"exp": None},
        {"iat": None},
        {"lorapool": "everything"},
        {"lorapool": {"tenants": "acme"}},
        {"lorapool": {"tenants": ["acme", 7]}},
        {"lorapool": {"adapters": ["a*b"]}},
        {"lorapool": {"roles": ["root"]}},
        {"lorapool": {"tenant": ["acme"]}},
        {"lorapool": {"adapters": ["a"] * 65}},
    ],
    ids=str,
)
def test_a_claim_that_is_missing_or_wrong_counts_for_nothing(
    issuer: Issuer, changes: dict[str, Any]
) -> None:
    with pytest.raises(TokenRefused):
        says(issuer, issuer.token(**changes))


def test_a_token_counts_from_its_time_to_its_end_with_little_skew(issuer: Issuer) -> None:
    now = int(time.time())
    token = issuer.token(iat=now, nbf=now, exp=now + 300)
    for later in (-8, 0, 299, 308):
        assert says(issuer, token, later=later)
    for later in (-12, -3600):
        with pytest.raises(TokenRefused, match="not valid yet"):
            says(issuer, token, later=later)
    for later in (312, 86_400):
        with pytest.raises(TokenExpired):
            says(issuer, token, later=later)


@pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), [1]], ids=str)
def test_what_is_no_time_counts_for_nothing(issuer: Issuer, name: str, value: object) -> None:
    with pytest.raises(TokenRefused):
        says(issuer, issuer.token(**{name: value}))


def test_a_token_made_to_last_counts_for_nothing(issuer: Issuer) -> None:
    now = int(time.time())
    assert says(issuer, issuer.token(iat=now, exp=now + 900))
    with pytest.raises(TokenRefused, match="life"):
        says(issuer, issuer.token(iat=now, exp=now + 901))
    with pytest.raises(TokenRefused, match="not valid yet"):
        says(issuer, issuer.token(iat=now + 3600, exp=now + 4000))


def test_the_key_decides_the_algorithm(issuer: Issuer) -> None:
    for token in (
        issuer.unsigned(),
        issuer.confused(),
        issuer.token(kid=ED, signed_by=RSA),
        issuer.token(kid=RSA, signed_by=ED),
    ):
        with pytest.raises(TokenRefused):
            says(issuer, token)
    stronger = jwt.encode(issuer.claims(), issuer.keys[RSA], "RS512", headers={"kid": RSA})
    with pytest.raises(TokenRefused):
        says(issuer, stronger)


def test_a_key_that_is_not_in_the_file_counts_for_nothing(issuer: Issuer, tmp_path: Path) -> None:
    stranger = Issuer(tmp_path / "other.json", {"ed-2": Issuer(tmp_path / "x.json").keys[ED]})
    with pytest.raises(TokenRefused, match="no key 'ed-2'"):
        says(issuer, stranger.token(kid="ed-2"))
    same_name = Issuer(tmp_path / "same.json")
    with pytest.raises(TokenRefused):
        says(issuer, same_name.token())
    for headers in ({}, {"kid": ""}):
        with pytest.raises(TokenRefused, match="no key"):
            says(issuer, jwt.encode(issuer.claims(), issuer.keys[ED], "EdDSA", headers=headers))


def test_a_header_that_must_be_understood_counts_for_nothing(issuer: Issuer) -> None:
    headers = {"kid": ED, "crit": ["exp"]}
    token = jwt.encode(issuer.claims(), issuer.keys[ED], "EdDSA", headers=headers)
    with pytest.raises(TokenRefused):
        says(issuer, token)


def test_a_changed_token_counts_for_nothing(issuer: Issuer) -> None:
    head, body, signature = issuer.token().split(".")
    other = issuer.token(sub="admin").split(".")[1]
    for text in (f"{head}.{other}.{signature}", f"{head}.{body}.", f"{head}.{body}", "", "x.y.z"):
        with pytest.raises(TokenRefused):
            says(issuer, text)


def test_a_token_over_its_size_is_not_even_parsed(issuer: Issuer) -> None:
    big = issuer.token(padding="x" * MAX_TOKEN_BYTES)
    with pytest.raises(TokenRefused, match=f"{len(big)} bytes"):
        says(issuer, big)


def secret_key(issuer: Issuer) -> dict[str, Any]:
    key = issuer.keys[ED]
    value: dict[str, Any] = jwt.get_algorithm_by_name("EdDSA").to_jwk(key, as_dict=True)
    return {**value, "kid": ED}


UNFIT = {
    "small RSA": lambda issuer: [jwk(generate_private_key(65537, 1024), "k")],
    "elliptic curve": lambda issuer: [
        {
            **jwt.get_algorithm_by_name("ES256").to_jwk(
                generate_ec_key(SECP256R1()).public_key(), as_dict=True
            ),
            "kid": "k",
        }
    ],
    "shared secret": lambda issuer: [{"kty": "oct", "k": "c2VjcmV0", "kid": "k"}],
    "private key": lambda issuer: [secret_key(issuer)],
    "no name": lambda issuer: [{**jwk(issuer.keys[ED], ED), "kid": ""}],
    "a name twice": lambda issuer: [jwk(issuer.keys[ED], "k"), jwk(issuer.keys[RSA], "k")],
    "another algorithm": lambda issuer: [{**jwk(issuer.keys[RSA], "k"), "alg": "PS256"}],
    "for encryption": lambda issuer: [{**jwk(issuer.keys[RSA], "k"), "use": "enc"}],
    "half a key": lambda issuer: [{"kty": "OKP", "crv": "Ed25519", "kid": "k"}],
    "no object": lambda issuer: ["k"],
}


@pytest.mark.parametrize("make", UNFIT.values(), ids=list(UNFIT))
def test_a_key_that_must_not_verify_tokens_is_refused_at_start(
    issuer: Issuer, tmp_path: Path, make: Any
) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": make(issuer)}))
    with pytest.raises(BadConfiguration, match=r"key [12]") as caught:
        read_keys(path)
    assert secret_key(issuer)["d"] not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"keys": 1}', "{", '{"keys": {"a": 1}}', "[" * 10_000])
def test_what_is_no_jwks_is_refused_by_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(BadConfiguration, match=r"jwks\.json"):
        read_keys(path)


def test_a_file_without_keys_lets_nobody_in(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text('{"keys": []}')
    assert read_keys(path) == {}


def remembered(monkeypatch: pytest.MonkeyPatch, issuer: Issuer, token: str) -> tuple[int, Verified]:
    """How often signatures are checked when a token comes three times, and who remembers it."""
    checked = []
    real = tokens.verify

    def counted(*given: Any, **how: Any) -> Claims:
        checked.append(given)
        return real(*given, **how)

    monkeypatch.setattr(tokens, "verify", counted)
    known, keys, now = Verified(issuer.rules), read_keys(issuer.jwks), time.time()
    for _ in range(3):
        known.verify(token, keys, now=now)
    monkeypatch.undo()
    return len(checked), known


def test_a_token_that_comes_again_is_verified_once(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert remembered(monkeypatch, issuer, issuer.token())[0] == 1


def expires_all_the_same(known: Verified, issuer: Issuer, token: str) -> None:
    keys = known._keys
    with pytest.raises(TokenExpired):
        known.verify(token, keys, now=time.time() + 311)
    with pytest.raises(TokenRefused):
        known.verify(token, keys, now=time.time() - 60)
    known.verify(token, keys, now=time.time())
    with pytest.raises(TokenRefused):
        known.verify(token, {}, now=time.time())


def test_a_remembered_token_ends_with_its_time_and_with_its_key(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issuer.token()
    expires_all_the_same(remembered(monkeypatch, issuer, token)[1], issuer, token)


def test_a_memory_that_looks_at_neither_would_be_caught(issuer: Issuer) -> None:
    class Trusting(Verified):
        def verify(self, token: str, keys: Any, *, now: float) -> Claims:
            self._keys = keys
            return says(issuer, token)

    with pytest.raises(pytest.fail.Exception):
        expires_all_the_same(Trusting(issuer.rules), issuer, issuer.token())


def test_no_more_tokens_are_remembered_than_there_is_room_for_and_no_refused_one(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_KNOWN", 3)
    known, keys, now = Verified(issuer.rules), read_keys(issuer.jwks), time.time()
    for number in range(6):
        known.verify(issuer.token(sub=f"caller-{number}"), keys, now=now)
        with pytest.raises(TokenRefused):
            known.verify(issuer.token(aud="other", sub=f"caller-{number}"), keys, now=now)
    assert len(known) == 3
