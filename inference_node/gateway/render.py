"""The template and what differs, as the one file that Envoy reads."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from inference_node.addresses import Address, parse_address
from inference_node.gateway.config import CallerTls, GatewayConfig, NodeTls
from inference_node.gateway.known_fields import known_fields
from inference_node.gateway.transcoding import descriptors

BUFFER_BYTES = 2 * 2**20
"""The largest message that a node takes is 1 MiB; its JSON has escapes, quotes and names too."""
DEADLINE_GRACE = 10
"""Seconds past the longest deadline after which nobody will answer a call any more."""
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_VERSIONS = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}


def render(config: GatewayConfig) -> str:
    """YAML for `envoy -c`. Equal configurations give equal text."""
    template = resources.files("inference_node.gateway").joinpath("envoy.yaml").read_text()
    named = any(address.is_name for address in config.node_addresses)
    words: dict[str, Any] = {
        "admin": _socket(parse_address(config.admin, "admin")),
        "listen": _socket(parse_address(config.listen, "listen")),
        "metrics": _socket(parse_address(config.metrics, "metrics")),
        "caller_tls": _caller_tls(config.tls),
        "node_tls": _node_tls(config.node_tls),
        "origins": [{"exact": origin} for origin in config.origins],
        "max_duration": f"{config.max_request_seconds + DEADLINE_GRACE}s",
        "buffer_bytes": BUFFER_BYTES,
        "discovery": "STRICT_DNS" if named else "STATIC",
        "endpoints": [{"endpoint": {"address": _socket(a)}} for a in config.node_addresses],
        "descriptors": descriptors(),
        "known_fields": known_fields(),
    }
    # JSON is YAML, so whatever stands in a value stays a value.
    return Template(template).substitute({name: json.dumps(word) for name, word in words.items()})


def _socket(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _caller_tls(tls: CallerTls | None) -> dict[str, Any] | None:
    if tls is None:
        return None
    common: dict[str, Any] = {
        "tls_params": _VERSIONS,
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [_pair(tls.cert, tls.key)],
    }
    if tls.client_ca is not None:
        common["validation_context"] = {"trusted_ca": _file(tls.client_ca)}
    return _transport(
        "DownstreamTlsContext",
        {"require_client_certificate": tls.client_ca is not None, "common_tls_context": common},
    )


def _node_tls(tls: NodeTls | None) -> dict[str, Any] | None:
    if tls is None:
        return None
    validation: dict[str, Any] = {"trusted_ca": _file(tls.ca)}
    if tls.name:
        validation["match_typed_subject_alt_names"] = [
            {"san_type": "DNS", "matcher": {"exact": tls.name}}
        ]
    common: dict[str, Any] = {
        "tls_params": _VERSIONS,
        "alpn_protocols": ["h2"],
        "validation_context": validation,
    }
    if tls.cert is not None and tls.key is not None:
        common["tls_certificates"] = [_pair(tls.cert, tls.key)]
    return _transport("UpstreamTlsContext", {"sni": tls.name, "common_tls_context": common})


def _transport(kind: str, context: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": _TLS + kind, **context},
    }


def _pair(cert: Path, key: Path) -> dict[str, Any]:
    return {"certificate_chain": _file(cert), "private_key": _file(key)}


def _file(path: Path) -> dict[str, str]:
    return {"filename": str(path)}
