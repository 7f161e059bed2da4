"""Whoever issues bearer tokens: keys, the JWKS file that a node reads, and tokens, good and bad."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from inference_node.rpc.tokens import TokenRules

ISSUER, AUDIENCE = "https://issuer.example", "lorapool"
ED, RSA = "ed-1", "rsa-1"
PrivateKey = Ed25519PrivateKey | RSAPrivateKey


@dataclass
class Issuer:
    """Signs with an Ed25519 key `ed-1` and an RSA key `rsa-1`."""

    jwks: Path
    keys: dict[str, PrivateKey] = field(
        default_factory=lambda: {
            ED: Ed25519PrivateKey.generate(),
            RSA: generate_private_key(65537, 2048),
        }
    )

    def __post_init__(self) -> None:
        self.publish()

    @property
    def rules(self) -> TokenRules:
        return TokenRules(jwks=self.jwks, issuer=ISSUER, audience=AUDIENCE)

    def publish(self, *, without: str = "") -> None:
        """Write the JWKS file, all keys but `without`."""
        entries = [jwk(key, kid) for kid, key in self.keys.items() if kid != without]
        self.jwks.write_text(json.dumps({"keys": entries}))

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a good token for tenant `acme` says, with changes; None takes a claim out."""
        now = int(time.time())
        scope = {"tenants": ["acme"], "adapters": ["*"], "roles": ["generate"]}
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "checkout", "iat": now, "exp": now + 300}
        merged = {**claims, "lorapool": scope, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    def token(self, *, kid: str = ED, signed_by: str = "", **changes: Any) -> str:
        """A token signed by the key `kid`, or by another one that it does not name."""
        key = self.keys[signed_by or kid]
        return jwt.encode(
            self.claims(**changes), key, algorithm=_algorithm(key), headers={"kid": kid}
        )

    def unsigned(self, **changes: Any) -> str:
        """`alg: none`, in the name of a known key."""
        return f"{_signing_input('none', ED, self.claims(**changes))}."

    def confused(self, **changes: Any) -> str:
        """HS256, with the public RSA key for a secret."""
        public = self.keys[RSA].public_key()
        secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        text = _signing_input("HS256", RSA, self.claims(**changes))
        return f"{text}.{_base64(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def jwk(key: PrivateKey, kid: str) -> dict[str, Any]:
    """The public half, as a JWKS file has it."""
    algorithm = jwt.get_algorithm_by_name(_algorithm(key))
    public: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": kid, "use": "sig"}


def _algorithm(key: PrivateKey) -> str:
    return "EdDSA" if isinstance(key, Ed25519PrivateKey) else "RS256"


def _signing_input(algorithm: str, kid: str, claims: dict[str, Any]) -> str:
    header = {"alg": algorithm, "kid": kid, "typ": "JWT"}
    return ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
