"""The node's certificate, its key, and who signs those of its callers; rotated by changing files.

New connections get what the files say when they are made; open ones stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from inference_node.errors import BadConfiguration
from inference_node.rpc.reloaded import Reloaded, read_file


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files; `cert` is the chain, the node's own certificate first."""

    cert: Path
    key: Path
    passphrase: str = field(default="", repr=False)
    """What the key is encrypted with; empty when it is not."""
    client_ca: Path | None = None
    """Callers must show a certificate that one of these signed."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(filter(None, (self.cert, self.key, self.client_ca)))


@dataclass(frozen=True, slots=True)
class Identity:
    """What the files hold, checked."""

    chain: tuple[x509.Certificate, ...]
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    """PKCS #8, not encrypted."""
    client_ca_pem: bytes | None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Raises BadConfiguration naming the file that is missing or does not fit."""
    identity = Reloaded("certificate or key", files.paths, lambda: read_identity(files))
    held = identity.now

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal held
        before, held = held, identity.now
        return None if held is before else _configuration(held)

    # gRPC documents None for "as before"; its stubs do not.
    return grpc.dynamic_ssl_server_credentials(
        _configuration(held),
        changed,  # type: ignore[arg-type]
        files.client_ca is not None,
    )


def read_identity(files: TlsFiles) -> Identity:
    """Raises BadConfiguration naming the file that is missing or does not fit."""
    chain_pem = read_file(files.cert, what="TLS certificate")
    chain = _certificates(chain_pem, files.cert)
    key = _private_key(files)
    if _public(key.public_key()) != _public(chain[0].public_key()):
        raise BadConfiguration(f"the key {files.key} is not that of the certificate {files.cert}")
    client_ca_pem = None
    if files.client_ca is not None:
        client_ca_pem = read_file(files.client_ca, what="client CA")
        _certificates(client_ca_pem, files.client_ca)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Identity(chain, chain_pem, key_pem, client_ca_pem)


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, identity.chain_pem)], root_certificates=identity.client_ca_pem
    )


def _certificates(pem: bytes, path: Path) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError:
        raise BadConfiguration(f"{path} holds no PEM certificate") from None


def _private_key(files: TlsFiles) -> PrivateKeyTypes:
    pem = read_file(files.key, what="TLS key")
    try:
        return load_pem_private_key(pem, files.passphrase.encode() or None)
    except TypeError:
        problem = "has no passphrase" if files.passphrase else "needs its passphrase"
    except (ValueError, UnsupportedAlgorithm):
        problem = "is no PEM private key, or its passphrase is another"
    raise BadConfiguration(
        f"TLS key {files.key} {problem}",
        hint="LORAPOOL_TLS_KEY_PASSPHRASE_FILE names a file with the passphrase",
    )


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded
