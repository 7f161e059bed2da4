"""Certificates that are renewed while a gateway runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference_node.client import Access, Client, NodeUnreachable
from inference_node.gateway.config import CallerTls, NodeTls
from inference_node.rpc.tls import TlsFiles
from tests.adapter_store.waiting import wait_until
from tests.inference_node.gateway.fleet import (
    NODE,
    Gateway,
    LightNode,
    light_nodes,
    running_gateway,
)
from tests.inference_node.rpc.authority import Authority


def known(gateway: Gateway, authority: Authority) -> bool:
    """Whether a new caller who trusts `authority` gets an answer."""
    with Client(gateway.address, access=Access(ca_file=authority.file)) as client:
        try:
            return bool(client.generate("x", timeout=5.0).text)
        except NodeUnreachable:
            return False


def move(renewed: TlsFiles, onto: TlsFiles) -> None:
    os.replace(renewed.key, onto.key)
    os.replace(renewed.cert, onto.cert)


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "read once"])
def test_a_certificate_that_is_moved_into_its_place_is_shown_where_it_is_watched(
    envoy: Path, nodes: list[LightNode], tmp_path: Path, *, watched: bool
) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    files = old.issue()
    settings: dict[str, Any] = {"tls": CallerTls(cert=files.cert, key=files.key)}
    if watched:
        settings["certificates"] = tmp_path / "certificates.yaml"
    with running_gateway(tmp_path, [nodes[0].address], **settings) as gateway:
        assert known(gateway, old)
        assert not known(gateway, new)
        move(new.issue(), files)
        if watched:
            wait_until(lambda: known(gateway, new))
        assert known(gateway, old) != watched


def test_a_key_without_its_certificate_changes_nothing_until_that_comes(
    envoy: Path, nodes: list[LightNode], tmp_path: Path
) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    files, renewed = old.issue(), new.issue()
    with running_gateway(
        tmp_path,
        [nodes[0].address],
        tls=CallerTls(cert=files.cert, key=files.key),
        certificates=tmp_path / "certificates.yaml",
    ) as gateway:
        os.replace(renewed.key, files.key)
        wait_until(lambda: "key" in gateway.log.read_text())
        assert known(gateway, old)
        os.replace(renewed.cert, files.cert)
        wait_until(lambda: known(gateway, new))


def test_who_signs_the_certificates_of_nodes_may_change(envoy: Path, tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    with (
        light_nodes(1, replace(NODE, tls=new.issue("node.lorapool"))) as nodes,
        running_gateway(
            tmp_path,
            [nodes[0].address],
            healthy=0,
            node_tls=NodeTls(ca=old.file, name="node.lorapool"),
            certificates=tmp_path / "certificates.yaml",
        ) as gateway,
    ):
        os.replace(new.file, old.file)
        wait_until(lambda: gateway.healthy() == 1)
        assert gateway.ask("ada").text
