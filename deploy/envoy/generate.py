"""Writes the Envoy configurations of this folder: `python deploy/envoy/generate.py`.

They are what `inference-node gateway-config` prints for each place; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from inference_node.gateway.config import GatewayConfig
from inference_node.gateway.render import render

HERE = Path(__file__).resolve().parent
NODE_PORT = 50051
# Containers are reached from their own network; compose publishes on loopback, and in Kubernetes
# a NetworkPolicy, a Service and an ingress with TLS decide who comes that far.
_INSIDE = {"listen": "0.0.0.0:8080", "metrics": "0.0.0.0:9902"}
PLACES = {
    "compose.yaml": GatewayConfig(
        nodes=(f"node-a:{NODE_PORT}", f"node-b:{NODE_PORT}"), insecure=True, **_INSIDE
    ),
    # One name, the headless Service, has the addresses of all pods.
    "kubernetes.yaml": GatewayConfig(
        nodes=(f"lorapool-nodes:{NODE_PORT}",), insecure=True, **_INSIDE
    ),
}


def main() -> None:
    for name, config in PLACES.items():
        (HERE / name).write_text(render(config))


if __name__ == "__main__":
    main()
