"""Bearer tokens: JWTs that a key of the JWKS file signed, for this service, for a short while.

The key decides the algorithm, never the token: an Ed25519 key verifies EdDSA, an RSA key RS256, and
there is no third. What a token allows is its claim `lorapool`:

    {"iss": …, "aud": …, "sub": "checkout", "iat": …, "exp": …,
     "lorapool": {"tenants": ["acme"], "adapters": ["support-*"], "roles": ["generate"]}}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from inference_node.errors import BadConfiguration
from inference_node.rpc.reloaded import read_file
from inference_node.rpc.scopes import NoScope, Scope, parse_scope

CLAIM = "lorapool"
MAX_TOKEN_BYTES = 4096
MAX_LIFETIME = 15 * 60
"""Seconds from `iat` to `exp`: a token that leaked is worth little for long."""
SKEW = 10
"""Seconds that the issuer's clock and this machine's may differ."""
MIN_RSA_BITS = 2048
MAX_KEYS = 64
MAX_KNOWN = 4096
"""Tokens whose claims are remembered; of more, the oldest are verified again."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key and the one algorithm it is used with."""

    algorithm: str
    key: Ed25519PublicKey | RSAPublicKey


Keys = Mapping[str, VerifyingKey]
"""By key id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """Whose tokens count, and for whom they must have been made."""

    jwks: Path
    """Public keys by `kid` (RFC 7517); read again when it changes."""
    issuer: str
    audience: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says."""

    subject: str
    scope: Scope
    begins: float
    ends: float
    """When it counts, in seconds since 1970; clocks that differ are allowed for."""


class TokenRefused(Exception):
    """The token counts for nothing; the text is for the node's log, not for its bearer."""


class TokenExpired(TokenRefused):
    """It would count, had it been used sooner."""


def read_keys(path: Path) -> Keys:
    """The keys of a JWKS file. Raises BadConfiguration. No key is fine: then nobody is let in."""
    try:
        entries = json.loads(read_file(path, what="JWKS file"))["keys"]
        if not isinstance(entries, list) or len(entries) > MAX_KEYS:
            raise BadConfiguration(f"JWKS file {path}: `keys` is no list of at most {MAX_KEYS}")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadConfiguration(f'JWKS file {path} is no JSON like {{"keys": [...]}}') from None
    keys: dict[str, VerifyingKey] = {}
    for number, entry in enumerate(entries, 1):
        where = f"JWKS file {path}: key {number}"
        kid = entry.get("kid") if isinstance(entry, dict) else None
        if not isinstance(kid, str) or not kid or kid in keys:
            raise BadConfiguration(f"{where} has no `kid` of its own")
        keys[kid] = _key(entry, where)
    return keys


def verify(token: str, keys: Keys, rules: TokenRules, *, now: float) -> Claims:
    """What `token` allows at `now`, in seconds since 1970. Raises TokenRefused."""
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenRefused(f"a token of {len(token)} bytes")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError:
        raise TokenRefused("no JWT") from None
    if "crit" in header:
        raise TokenRefused("a header that must be understood")
    kid = header.get("kid")
    key = keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        raise TokenRefused(f"no key {str(kid)[:64]!r}")
    try:
        claims = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            audience=rules.audience,
            issuer=rules.issuer,
            options={
                "require": ["exp", "iat", "iss", "aud", "sub"],
                # By our own clock, below.
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except jwt.PyJWTError as error:
        raise TokenRefused(str(error)[:128]) from None
    begins, ends = _times(claims, now)
    try:
        return Claims(str(claims["sub"]), parse_scope(claims.get(CLAIM, {})), begins, ends)
    except NoScope as error:
        raise TokenRefused(f"claim {CLAIM}: {error}") from None


class Verified:
    """What tokens say, each verified once: a caller sends the same one for minutes.

    Known is only what has counted, by its sha256, until it expires or the keys are others. For one
    event loop.
    """

    def __init__(self, rules: TokenRules) -> None:
        self._rules = rules
        self._keys: Keys = {}
        self._claims: OrderedDict[bytes, Claims] = OrderedDict()

    def verify(self, token: str, keys: Keys, *, now: float) -> Claims:
        """As the function of that name. `keys` is the same object while they are the same."""
        if keys is not self._keys:
            self._keys = keys
            self._claims.clear()
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        claims = self._claims.get(digest)
        if claims is None or not claims.begins <= now < claims.ends:
            self._claims.pop(digest, None)
            claims = self._claims[digest] = verify(token, keys, self._rules, now=now)
            if len(self._claims) > MAX_KNOWN:
                self._claims.popitem(last=False)
        return claims

    def __len__(self) -> int:
        """Tokens that are known."""
        return len(self._claims)


def _key(entry: Mapping[str, Any], where: str) -> VerifyingKey:
    if "d" in entry or entry.get("kty") == "oct":
        raise BadConfiguration(f"{where} is secret, and only public keys belong there")
    if entry.get("use", "sig") != "sig":
        raise BadConfiguration(f"{where} is not for signatures")
    try:
        key = jwt.PyJWK(dict(entry), algorithm=_algorithm(entry)).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, Ed25519PublicKey):
        return VerifyingKey("EdDSA", key)
    if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return VerifyingKey("RS256", key)
    raise BadConfiguration(
        f"{where} is neither Ed25519 (alg EdDSA) nor RSA of {MIN_RSA_BITS} bits or more (alg RS256)"
    )


def _algorithm(entry: Mapping[str, Any]) -> str:
    """The one that goes with the key's type. Raises ValueError when the key names another."""
    algorithm = {"OKP": "EdDSA", "RSA": "RS256"}[entry["kty"]]
    if entry.get("alg", algorithm) != algorithm:
        raise ValueError
    return algorithm


def _times(claims: Mapping[str, Any], now: float) -> tuple[float, float]:
    """From when to when it counts. Raises TokenRefused unless `now` is between them."""
    issued, expires = _time(claims, "iat"), _time(claims, "exp")
    begins = max(issued, _time(claims, "nbf", issued))
    if begins > now + SKEW:
        raise TokenRefused("not valid yet")
    if expires - issued > MAX_LIFETIME:
        raise TokenRefused(f"a life of {expires - issued:.0f} s, over {MAX_LIFETIME}")
    if expires <= now - SKEW:
        raise TokenExpired(f"expired {now - expires:.0f} s ago")
    return begins - SKEW, expires + SKEW


def _time(claims: Mapping[str, Any], name: str, missing: float = math.nan) -> float:
    value = claims.get(name, missing)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TokenRefused(f"`{name}` is no time")
    return float(value)
