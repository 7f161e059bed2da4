"""What a gateway may be told, and the file that comes of it: read by Envoy itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.envoy.generate import HERE, PLACES
from inference_node.addresses import parse_address
from inference_node.errors import BadConfiguration
from inference_node.gateway.certificates import render_certificates
from inference_node.gateway.config import CallerTls, GatewayConfig, NodeTls
from inference_node.gateway.program import check
from inference_node.gateway.render import render
from tests.inference_node.cli.program import Run
from tests.inference_node.rpc.authority import Authority

NODE = "127.0.0.1:50051"


@pytest.fixture
def accepts(envoy: Path, tmp_path: Path) -> Callable[[str], None]:
    """Has Envoy read a configuration; raises its objections."""

    def accepts(text: str) -> None:
        file = tmp_path / "envoy.yaml"
        file.write_text(text)
        check(file)

    return accepts


@pytest.mark.parametrize("nodes", [(NODE, "[::1]:50051"), ("a:1", "nodes.lorapool.svc.local:2")])
def test_envoy_takes_what_is_written_for_addresses_and_for_names(
    accepts: Callable[[str], None], nodes: tuple[str, ...]
) -> None:
    accepts(render(GatewayConfig(nodes=nodes, origins=("https://app.example.com",))))


def test_envoy_takes_certificates_for_callers_and_for_nodes(
    accepts: Callable[[str], None], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    files = authority.issue()
    config = GatewayConfig(
        nodes=(NODE,),
        listen="0.0.0.0:8443",
        tls=CallerTls(cert=files.cert, key=files.key, client_ca=authority.file),
        node_tls=NodeTls(ca=authority.file, name="node", cert=files.cert, key=files.key),
    )
    accepts(render(config))
    watched = replace(config, certificates=tmp_path / "certificates.yaml")
    (tmp_path / "certificates.yaml").write_text(render_certificates(watched))
    accepts(render(watched))
    files.key.unlink()
    with pytest.raises(BadConfiguration, match=re.escape(str(files.key))):
        accepts(render(config))


def test_envoy_refuses_what_it_does_not_know(accepts: Callable[[str], None]) -> None:
    with pytest.raises(BadConfiguration, match="lb_polecy"):
        accepts(render(GatewayConfig(nodes=(NODE,))).replace("lb_policy", "lb_polecy"))


@pytest.mark.parametrize("name", sorted(PLACES))
def test_the_files_in_deploy_are_what_is_written_for_each_place(
    accepts: Callable[[str], None], name: str
) -> None:
    text = (HERE / name).read_text()
    assert text == render(PLACES[name]), "run `python deploy/envoy/generate.py`"
    accepts(text)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"nodes": ()}, "at least one node"),
        ({"nodes": ("node",)}, "node 'node' is not host:port"),
        ({"nodes": ("node:0",)}, "node 'node:0' is not host:port"),
        ({"nodes": ("node:65536",)}, "is not host:port"),
        ({"nodes": ('a", "b:1',)}, "is not host:port"),
        ({"nodes": ("a_b:1",)}, "is not host:port"),
        ({"nodes": (NODE, "node:1")}, "not by both"),
        ({"listen": "localhost:1"}, "must be an IP address"),
        ({"listen": "0.0.0.0:8080"}, "not encrypted"),
        ({"admin": "0.0.0.0:9901", "insecure": True}, "administration"),
        ({"metrics": "here:1"}, "metrics 'here:1' must be an IP address"),
        ({"max_request_seconds": 0}, "at least 1"),
        ({"origins": ("app.example.com",)}, "origin"),
        ({"origins": ("https://app.example.com/x",)}, "origin"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadConfiguration, match=problem):
        GatewayConfig(**{"nodes": (NODE,), **changes})


def test_an_ipv6_address_is_one_with_brackets() -> None:
    address = parse_address("[::1]:50051", "node")
    assert (address.host, address.port, address.is_name) == ("::1", 50051, False)
    assert str(address) == "[::1]:50051"


def test_nothing_in_a_value_becomes_configuration() -> None:
    tricky = Path('/certs/a"b: {c} # d')
    config = GatewayConfig(nodes=(NODE,), tls=CallerTls(cert=tricky, key=tricky))
    chain = yaml.safe_load(render(config))["static_resources"]["listeners"][0]["filter_chains"][0]
    pairs = chain["transport_socket"]["typed_config"]["common_tls_context"]["tls_certificates"]
    assert pairs[0]["private_key"] == {"filename": str(tricky)}


def test_the_command_prints_the_file_and_has_it_checked(
    run: Run, envoy: Path, tmp_path: Path
) -> None:
    ran = run("gateway-config", "--node", NODE, "--listen", "127.0.0.1:8081")
    assert ran.code == 0
    expected = GatewayConfig(nodes=(NODE,), listen="127.0.0.1:8081")
    assert ran.out == render(expected)
    file = tmp_path / "envoy.yaml"
    assert run("gateway-config", "--node", NODE, "-o", str(file), "--check").code == 0
    assert file.read_text() == render(GatewayConfig(nodes=(NODE,)))
    missing = str(tmp_path / "missing.pem")
    pair = ("--tls-cert", missing, "--tls-key", missing)
    for watch in ((), ("--watch-certificates", str(tmp_path / "certificates.yaml"))):
        refused = run("gateway-config", "--node", NODE, "-o", str(file), "--check", *pair, *watch)
        assert refused.code == 2
        assert "missing.pem" in refused.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--check",), "--output"),
        (("--tls-cert", "x"), "--tls-key"),
        (("--watch-certificates", "x"), "no certificates to watch"),
        (("--tls-client-ca", "x"), "--tls-key"),
        (("--node-name", "x"), "--node-ca"),
        (("--node-ca", "x", "--node-cert", "y"), "key"),
        (("--listen", "0.0.0.0:80"), "--insecure"),
        (("--output", "/nowhere/envoy.yaml"), "/nowhere/envoy.yaml cannot be written"),
    ],
)
def test_the_command_says_what_is_missing(
    run: Run, arguments: tuple[str, ...], problem: str
) -> None:
    ran = run("gateway-config", "--node", NODE, *arguments)
    assert ran.code == 2
    assert problem in ran.err
