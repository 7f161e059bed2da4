"""TLS towards callers and towards nodes, for Envoy.

Certificates stand in the configuration itself and are read once, or, where `config.certificates`
names a file, in that: Envoy reads it at start, watches the folders of the files that it names, and
takes what is moved there (`mv`, or how Kubernetes updates a Secret) for connections that follow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference_node.errors import BadConfiguration
from inference_node.gateway.config import GatewayConfig

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_VERSIONS = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}
_FRONT, _CALLERS, _SHOWN, _NODES = "front", "callers", "shown-to-nodes", "nodes"
_CERTIFICATE, _AUTHORITY = "tls_certificate", "validation_context"


def render_certificates(config: GatewayConfig) -> str:
    """YAML for the file that `config.certificates` names.

    Raises BadConfiguration where there are no certificates to watch.
    """
    secrets = [*_caller_secrets(config), *_node_secrets(config)]
    if not secrets:
        raise BadConfiguration(
            "there are no certificates to watch", hint="name some, as --tls-cert and --tls-key"
        )
    return json.dumps({"resources": [{"@type": _TLS + "Secret", **one} for one in secrets]}) + "\n"


def caller_tls(config: GatewayConfig) -> dict[str, Any] | None:
    """The transport of the listener; None in the clear."""
    secrets = _caller_secrets(config)
    if config.tls is None:
        return None
    context = _common(secrets, config.certificates, alpn=["h2", "http/1.1"])
    return _transport(
        "DownstreamTlsContext",
        {
            "require_client_certificate": config.tls.client_ca is not None,
            "common_tls_context": context,
        },
    )


def node_tls(config: GatewayConfig) -> dict[str, Any] | None:
    """The transport of the cluster; None in the clear."""
    secrets = _node_secrets(config)
    if config.node_tls is None:
        return None
    context = _common(secrets, config.certificates, alpn=["h2"])
    return _transport(
        "UpstreamTlsContext", {"sni": config.node_tls.name, "common_tls_context": context}
    )


def _caller_secrets(config: GatewayConfig) -> list[dict[str, Any]]:
    if config.tls is None:
        return []
    found = [{"name": _FRONT, _CERTIFICATE: _pair(config.tls.cert, config.tls.key)}]
    if config.tls.client_ca is not None:
        found.append({"name": _CALLERS, _AUTHORITY: {"trusted_ca": _file(config.tls.client_ca)}})
    return found


def _node_secrets(config: GatewayConfig) -> list[dict[str, Any]]:
    tls = config.node_tls
    if tls is None:
        return []
    authority: dict[str, Any] = {"trusted_ca": _file(tls.ca)}
    if tls.name:
        authority["match_typed_subject_alt_names"] = [
            {"san_type": "DNS", "matcher": {"exact": tls.name}}
        ]
    found = [{"name": _NODES, _AUTHORITY: authority}]
    if tls.cert is not None and tls.key is not None:
        found.append({"name": _SHOWN, _CERTIFICATE: _pair(tls.cert, tls.key)})
    return found


def _common(
    secrets: list[dict[str, Any]], watched: Path | None, *, alpn: list[str]
) -> dict[str, Any]:
    """The secrets themselves, or where to read them."""
    context: dict[str, Any] = {"tls_params": _VERSIONS, "alpn_protocols": alpn}
    for secret in secrets:
        if watched is None:
            if _CERTIFICATE in secret:
                context["tls_certificates"] = [secret[_CERTIFICATE]]
            else:
                context[_AUTHORITY] = secret[_AUTHORITY]
            continue
        read = {"path_config_source": {"path": str(watched)}, "resource_api_version": "V3"}
        source = {"name": secret["name"], "sds_config": read}
        if _CERTIFICATE in secret:
            context["tls_certificate_sds_secret_configs"] = [source]
        else:
            context["validation_context_sds_secret_config"] = source
    return context


def _transport(kind: str, context: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": _TLS + kind, **context},
    }


def _pair(cert: Path, key: Path) -> dict[str, Any]:
    return {"certificate_chain": _file(cert), "private_key": _file(key)}


def _file(path: Path) -> dict[str, str]:
    return {"filename": str(path)}
