"""How a client reaches a node: encrypted or not, and as whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from inference_node.addresses import is_loopback
from inference_node.errors import BadConfiguration


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Certificates are PEM files. Any of them, or `tls`, asks for TLS."""

    tls: bool = False
    """TLS by the system's certificate authorities, where no `ca_file` names others."""
    ca_file: Path | None = None
    """Who may sign the node's certificate."""
    cert_file: Path | None = None
    """The caller's own certificate, for nodes that ask for one; with `key_file`."""
    key_file: Path | None = None
    server_name: str = ""
    """The name in the nodes' certificates, where it is not in the address."""
    token_file: Path | None = None
    """A bearer token, read again for every call: renew it by replacing the file."""
    token: str = field(default="", repr=False)
    """The bearer token itself, where there is no file."""

    def channel_credentials(self, *addresses: str) -> grpc.ChannelCredentials | None:
        """None for a plain channel.

        Raises BadConfiguration when a file is missing, when it cannot be told what the certificates
        of several nodes must name, or when a token would be sent in the clear to another machine.
        """
        if self._encrypted:
            if len(addresses) > 1 and not self.server_name:
                raise BadConfiguration(
                    "it is not said what the certificates of the nodes are for",
                    hint="set server_name to the name that all of them bear",
                )
            channel = grpc.ssl_channel_credentials(
                root_certificates=_bytes(self.ca_file),
                private_key=_bytes(self.key_file),
                certificate_chain=_bytes(self.cert_file),
            )
        elif not self._has_token:
            return None
        else:
            channel = _local(addresses)
        if not self._has_token:
            return channel
        return grpc.composite_channel_credentials(
            channel, grpc.metadata_call_credentials(_Bearer(self), name="bearer token")
        )

    def bearer(self) -> str:
        """The token for one call. Raises BadConfiguration."""
        token = self.token
        if self.token_file is not None:
            token = (_bytes(self.token_file) or b"").decode(errors="replace").strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            where = self.token_file or "the token"
            raise BadConfiguration(f"{where} is no bearer token: one line without spaces")
        return token

    @property
    def _encrypted(self) -> bool:
        return self.tls or any((self.ca_file, self.cert_file, self.key_file))

    @property
    def _has_token(self) -> bool:
        return bool(self.token or self.token_file)

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise BadConfiguration(
                "a client certificate needs its key, and the key its certificate"
            )
        if self.token and self.token_file:
            raise BadConfiguration("give the token or its file, not both")


NOBODY = Access()
"""In the clear, as nobody in particular."""


class _Bearer(grpc.AuthMetadataPlugin):
    def __init__(self, access: Access) -> None:
        self._access = access

    def __call__(
        self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback
    ) -> None:
        try:
            token = self._access.bearer()
        except BadConfiguration as error:
            callback((), error)
        else:
            callback((("authorization", f"Bearer {token}"),), None)


def _local(addresses: Sequence[str]) -> grpc.ChannelCredentials:
    """Plain, and gRPC itself sends nothing to a peer that is not on this machine."""
    for address in addresses:
        if not _is_here(address):
            raise BadConfiguration(
                f"the token would reach {address} in the clear",
                hint="use TLS: name the node's certificate authority (--ca, LORAPOOL_CA_FILE), or "
                "--tls for those of the system",
            )
    kind = grpc.LocalConnectionType
    return grpc.local_channel_credentials(
        kind.UDS if addresses[0].startswith("unix:") else kind.LOCAL_TCP
    )


def _is_here(address: str) -> bool:
    try:
        return is_loopback(address)
    except BadConfiguration:
        return False


def _bytes(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadConfiguration(f"{path} cannot be read: {error.strerror}") from None
