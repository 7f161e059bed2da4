"""The template and what differs, as the one file that Envoy reads."""

from __future__ import annotations

import json
from importlib import resources
from string import Template
from typing import Any

from inference_node.addresses import Address, parse_address
from inference_node.gateway.certificates import caller_tls, node_tls
from inference_node.gateway.config import GatewayConfig
from inference_node.gateway.known_fields import known_fields
from inference_node.gateway.transcoding import descriptors

BUFFER_BYTES = 2 * 2**20
"""The largest message that a node takes is 1 MiB; its JSON has escapes, quotes and names too."""
DEADLINE_GRACE = 10
"""Seconds past the longest deadline after which nobody will answer a call any more."""


def render(config: GatewayConfig) -> str:
    """YAML for `envoy -c`. Equal configurations give equal text."""
    template = resources.files("inference_node.gateway").joinpath("envoy.yaml").read_text()
    named = any(address.is_name for address in config.node_addresses)
    words: dict[str, Any] = {
        "admin": _socket(parse_address(config.admin, "admin")),
        "listen": _socket(parse_address(config.listen, "listen")),
        "metrics": _socket(parse_address(config.metrics, "metrics")),
        "caller_tls": caller_tls(config),
        "node_tls": node_tls(config),
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
