"""`inference-node gateway-config`: the file that Envoy reads."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inference_node.gateway.config import CallerTls, NodeTls


def gateway_config(
    node: Annotated[
        list[str], typer.Option(help="host:port; again for each node, or one DNS name for all.")
    ],
    listen: Annotated[str, typer.Option(help="Where callers come.")] = "127.0.0.1:8080",
    admin: Annotated[str, typer.Option(help="Envoy's own administration.")] = "127.0.0.1:9901",
    metrics: Annotated[str, typer.Option(help="/metrics and /ready.")] = "127.0.0.1:9902",
    tls_cert: Annotated[Path | None, typer.Option(help="The gateway's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Who signs the certificates that callers must show.")
    ] = None,
    node_ca: Annotated[
        Path | None, typer.Option(help="Nodes speak TLS: who signs their certificates.")
    ] = None,
    node_name: Annotated[str, typer.Option(help="The name in the nodes' certificates.")] = "",
    node_cert: Annotated[
        Path | None, typer.Option(help="What the gateway shows to nodes; with --node-key.")
    ] = None,
    node_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    watch_certificates: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Take renewed certificates without a restart: a second file, written here, that "
            "Envoy must find under the same path.",
        ),
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Web pages of this origin may call; repeatable.")
    ] = None,
    max_request_seconds: Annotated[
        int, typer.Option(min=1, help="As LORAPOOL_MAX_REQUEST_SECONDS of the nodes.")
    ] = 600,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback in the clear.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="A file instead of stdout."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="With --output: let Envoy read it, certificates too.")
    ] = False,
) -> None:
    """Write the configuration of an Envoy before these nodes.

    The requests of an adapter go to the node that has it; gRPC, gRPC-Web and JSON on one port.
    Run it with `envoy -c FILE`. Paths of certificates are those that Envoy will see.
    """
    from inference_node.errors import BadConfiguration
    from inference_node.gateway.certificates import render_certificates
    from inference_node.gateway.config import GatewayConfig
    from inference_node.gateway.program import check as check_file
    from inference_node.gateway.render import render

    config = GatewayConfig(
        nodes=tuple(node),
        listen=listen,
        admin=admin,
        metrics=metrics,
        tls=_caller_tls(tls_cert, tls_key, tls_client_ca),
        node_tls=_node_tls(node_ca, node_name, node_cert, node_key),
        certificates=watch_certificates and watch_certificates.absolute(),
        origins=tuple(origin or ()),
        max_request_seconds=max_request_seconds,
        insecure=insecure,
    )
    text = render(config)
    if watch_certificates is not None:
        _write(watch_certificates, render_certificates(config))
    if output is None:
        if check:
            raise BadConfiguration("--check needs --output: Envoy reads a file")
        typer.echo(text, nl=False)
        return
    _write(output, text)
    if check:
        check_file(output)
        if config.certificates is not None:
            # What is watched only a running Envoy reads.
            with tempfile.NamedTemporaryFile(suffix=".yaml") as read_once:
                _write(Path(read_once.name), render(replace(config, certificates=None)))
                check_file(Path(read_once.name))


def _write(file: Path, text: str) -> None:
    """Raises BadConfiguration."""
    from inference_node.errors import BadConfiguration

    try:
        file.write_text(text)
    except OSError as error:
        raise BadConfiguration(f"{file} cannot be written: {error.strerror}") from None


def _caller_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> CallerTls | None:
    """Raises BadConfiguration when only a part is given."""
    from inference_node.errors import BadConfiguration
    from inference_node.gateway.config import CallerTls

    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise BadConfiguration("--tls-cert and --tls-key belong together")
    return CallerTls(cert=cert, key=key, client_ca=client_ca)


def _node_tls(ca: Path | None, name: str, cert: Path | None, key: Path | None) -> NodeTls | None:
    """Raises BadConfiguration when only a part is given."""
    from inference_node.errors import BadConfiguration
    from inference_node.gateway.config import NodeTls

    if ca is None:
        if name or cert or key:
            raise BadConfiguration("--node-name, --node-cert and --node-key need --node-ca")
        return None
    return NodeTls(ca=ca, name=name, cert=cert, key=key)
