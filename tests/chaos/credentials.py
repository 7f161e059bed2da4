"""Everything that a caller may show a node, and what must come of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tests.inference_node.rpc.issuer import ED, RSA, Issuer

TENANT, ADAPTER = "acme", "pirate"
REVOKED = "old-1"
ROLES = ["generate", "catalog", "operate"]
ALL = {"tenants": [TENANT], "adapters": ["*"], "roles": ROLES}


class Verdict(Enum):
    """What the node makes of a caller who asks for ADAPTER of TENANT."""

    SERVED = "served"
    UNSEEN = "served, and blind for what it asks"
    ROLELESS = "known, and without any role"
    UNKNOWN = "not known"
    UNHEARD = "not even connected"


class Certificate(Enum):
    """Names of those that callers connect with."""

    TRANSPORT = "transport.internal"
    """Of the node's own authority, and no identity."""
    KNOWN = "checkout.internal"
    OTHERS = "other.internal"
    """An identity, of another tenant."""
    FOREIGN = "foreign.internal"
    """Of an authority that the node does not know."""


Token = Callable[[Issuer], str]


@dataclass(frozen=True, slots=True)
class Credential:
    """One kind."""

    name: str
    verdict: Verdict
    token: Token | None = None
    certificate: Certificate = Certificate.TRANSPORT


def _scoped(**changes: object) -> Token:
    return lambda issuer: issuer.token(lorapool={**ALL, **changes})


def _good(issuer: Issuer) -> str:
    return issuer.token(lorapool=ALL)


def _expired(issuer: Issuer) -> str:
    now = int(time.time())
    return issuer.token(lorapool=ALL, iat=now - 600, exp=now - 60)


def _future(issuer: Issuer) -> str:
    now = int(time.time())
    return issuer.token(lorapool=ALL, iat=now, nbf=now + 60, exp=now + 120)


def _lasting(issuer: Issuer) -> str:
    now = int(time.time())
    return issuer.token(lorapool=ALL, iat=now, exp=now + 86_400)


def _of_a_stranger(issuer: Issuer) -> str:
    return Issuer(issuer.jwks.with_name("stranger.json")).token(lorapool=ALL)


CREDENTIALS = (
    Credential("EdDSA token", Verdict.SERVED, _good),
    Credential("RS256 token", Verdict.SERVED, lambda i: i.token(kid=RSA, lorapool=ALL)),
    Credential("known certificate", Verdict.SERVED, certificate=Certificate.KNOWN),
    Credential("none", Verdict.UNKNOWN),
    Credential("expired", Verdict.UNKNOWN, _expired),
    Credential("not valid yet", Verdict.UNKNOWN, _future),
    Credential("made to last a day", Verdict.UNKNOWN, _lasting),
    Credential("wrong audience", Verdict.UNKNOWN, lambda i: i.token(lorapool=ALL, aud="elsewhere")),
    Credential("wrong issuer", Verdict.UNKNOWN, lambda i: i.token(lorapool=ALL, iss="elsewhere")),
    Credential("alg none", Verdict.UNKNOWN, lambda i: i.unsigned(lorapool=ALL)),
    Credential("HS256 with the public key", Verdict.UNKNOWN, lambda i: i.confused(lorapool=ALL)),
    Credential(
        "another key's name",
        Verdict.UNKNOWN,
        lambda i: i.token(kid=RSA, signed_by=ED, lorapool=ALL),
    ),
    Credential(
        "unknown kid", Verdict.UNKNOWN, lambda i: i.token(kid="ed-9", signed_by=ED, lorapool=ALL)
    ),
    Credential("revoked key", Verdict.UNKNOWN, lambda i: i.token(kid=REVOKED, lorapool=ALL)),
    Credential("a stranger's key", Verdict.UNKNOWN, _of_a_stranger),
    Credential("oversize", Verdict.UNKNOWN, lambda i: i.token(lorapool=ALL, padding="x" * 4096)),
    Credential("wrong tenant", Verdict.UNSEEN, _scoped(tenants=["other"])),
    Credential("wrong adapters", Verdict.UNSEEN, _scoped(adapters=["pirates", "p-*"])),
    Credential("other's certificate", Verdict.UNSEEN, certificate=Certificate.OTHERS),
    Credential("no role", Verdict.ROLELESS, _scoped(roles=[])),
    Credential("foreign certificate", Verdict.UNHEARD, _good, Certificate.FOREIGN),
    Credential("bad token, known certificate", Verdict.UNKNOWN, _expired, Certificate.KNOWN),
)
IDENTITIES = f"""
[[identity]]
san = "dns:{Certificate.KNOWN.value}"
tenants = ["{TENANT}"]
adapters = ["*"]
roles = {ROLES}

[[identity]]
san = "dns:{Certificate.OTHERS.value}"
tenants = ["other"]
adapters = ["*"]
roles = {ROLES}
"""
