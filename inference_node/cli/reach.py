"""Which node a command talks to, and as whom: the options that all such commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inference_node.client import Client, Operator

DEFAULT_ADDRESS = "127.0.0.1:50051"
Address = Annotated[str, typer.Option(envvar="LORAPOOL_LISTEN", help="The node.")]
Tls = Annotated[
    bool,
    typer.Option("--tls", envvar="LORAPOOL_TLS", help="Encrypted, by the system's authorities."),
]
Ca = Annotated[
    Path | None,
    typer.Option(envvar="LORAPOOL_CA_FILE", help="Encrypted: who may sign the node's certificate."),
]
Cert = Annotated[
    Path | None,
    typer.Option(envvar="LORAPOOL_CLIENT_CERT_FILE", help="Your certificate, with --key."),
]
Key = Annotated[
    Path | None, typer.Option(envvar="LORAPOOL_CLIENT_KEY_FILE", help="Your certificate's key.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(envvar="LORAPOOL_TOKEN_FILE", help="A bearer token; its file, never itself."),
]


def open_client(
    address: str,
    *,
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None,
) -> Client:
    """Raises BadConfiguration."""
    from inference_node.client import Access, Client

    access = Access(tls=tls, ca_file=ca, cert_file=cert, key_file=key, token_file=token_file)
    return Client(address, access=access)


def open_operator(
    address: str,
    *,
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None,
) -> Operator:
    """Raises BadConfiguration."""
    from inference_node.client import Access, Operator

    access = Access(tls=tls, ca_file=ca, cert_file=cert, key_file=key, token_file=token_file)
    return Operator(address, access=access)
