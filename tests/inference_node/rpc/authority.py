"""A certificate authority and what it signed, as the files that a node and its callers name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from inference_node.rpc.tls import TlsFiles


@dataclass
class Authority:
    """Issues certificates into files below `folder`."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(self.ca.cert_pem.bytes())

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, *names: str, into: str = "node", passphrase: str = "") -> TlsFiles:
        """A certificate for `names` in `<into>.pem` and `<into>.key`, replacing what is there."""
        leaf = self.ca.issue_cert(*(names or ("localhost", "127.0.0.1")))
        files = TlsFiles(
            cert=self.folder / f"{into}.pem",
            key=self.folder / f"{into}.key",
            passphrase=passphrase,
        )
        key = leaf.private_key_pem.bytes()
        files.key.write_bytes(_encrypted(key, passphrase) if passphrase else key)
        files.cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        return files


def _encrypted(pem: bytes, passphrase: str) -> bytes:
    return load_pem_private_key(pem, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.encode())
    )
