"""Encrypted calls, callers' certificates, and files that change while the node runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from inference_node.client import Access, Client, NodeUnreachable
from inference_node.errors import BadConfiguration
from inference_node.rpc.tls import TlsFiles, read_identity, server_credentials
from tests.inference_node.rpc.authority import Authority
from tests.inference_node.rpc.running_node import CONFIG, running_node
from tests.inference_node.rpc.scripted_engine import ScriptedEngine

Serve = Callable[[TlsFiles], str]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """The address of a node with these files."""
    with ExitStack() as running:

        def serve(files: TlsFiles) -> str:
            return running.enter_context(running_node(ScriptedEngine(), replace(CONFIG, tls=files)))

        yield serve


def asks(address: str, access: Access) -> str:
    with Client(address, access=access) as client:
        return client.generate("hi", timeout=5).text


def test_a_call_is_encrypted_and_the_node_proves_who_it_is(
    authority: Authority, serve: Serve
) -> None:
    address = serve(authority.issue())
    assert asks(address, Access(ca_file=authority.file)) == "hello wörld"


def test_a_node_that_somebody_else_vouches_for_is_not_believed(
    authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    address = serve(authority.issue())
    for access in (Access(ca_file=Authority(tmp_path / "theirs").file), Access(tls=True), Access()):
        with pytest.raises(NodeUnreachable):
            asks(address, access)


def test_a_certificate_for_another_name_is_not_believed(authority: Authority, serve: Serve) -> None:
    address = serve(authority.issue("elsewhere.example"))
    with pytest.raises(NodeUnreachable):
        asks(address, Access(ca_file=authority.file))


def test_a_caller_without_a_certificate_that_the_node_knows_is_not_heard(
    authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    address = serve(replace(authority.issue(), client_ca=authority.file))
    mine = authority.issue("caller.example", into="caller")
    known = Access(ca_file=authority.file, cert_file=mine.cert, key_file=mine.key)
    assert asks(address, known) == "hello wörld"
    theirs = Authority(tmp_path / "theirs").issue("caller.example")
    strange = replace(known, cert_file=theirs.cert, key_file=theirs.key)
    for access in (Access(ca_file=authority.file), strange):
        with pytest.raises(NodeUnreachable):
            asks(address, access)


def test_an_encrypted_key_is_opened_with_its_passphrase(authority: Authority, serve: Serve) -> None:
    files = authority.issue(passphrase="correct horse")
    assert asks(serve(files), Access(ca_file=authority.file)) == "hello wörld"
    for wrong in ("", "battery staple"):
        with pytest.raises(BadConfiguration, match="passphrase"):
            read_identity(replace(files, passphrase=wrong))


def test_a_renewed_certificate_is_shown_to_the_next_connection(
    authority: Authority, tmp_path: Path, serve: Serve
) -> None:
    address = serve(authority.issue())
    old = tmp_path / "old-ca.pem"
    old.write_bytes(authority.file.read_bytes())
    renewed = Authority(authority.folder)
    renewed.issue()
    assert asks(address, Access(ca_file=renewed.file)) == "hello wörld"
    with pytest.raises(NodeUnreachable):
        asks(address, Access(ca_file=old))


def test_a_rotation_caught_half_way_keeps_the_old_certificate(
    authority: Authority, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    files = authority.issue()
    address = serve(files)
    key = files.key.read_bytes()
    authority.issue()
    new_key = files.key.read_bytes()
    files.key.write_bytes(key)
    with caplog.at_level(logging.ERROR):
        assert asks(address, Access(ca_file=authority.file)) == "hello wörld"
    assert "is not that of the certificate" in caplog.text
    assert key.decode().splitlines()[1] not in caplog.text
    before = x509.load_pem_x509_certificate(files.cert.read_bytes())
    files.key.write_bytes(new_key)
    assert read_identity(files).chain[0] == before
    assert asks(address, Access(ca_file=authority.file)) == "hello wörld"


def test_a_caller_taken_off_the_authorities_is_not_heard_any_more(
    authority: Authority, serve: Serve, tmp_path: Path
) -> None:
    files = replace(authority.issue(), client_ca=tmp_path / "callers.pem")
    assert files.client_ca is not None
    files.client_ca.write_bytes(authority.file.read_bytes())
    address = serve(files)
    mine = authority.issue("caller.example", into="caller")
    access = Access(ca_file=authority.file, cert_file=mine.cert, key_file=mine.key)
    assert asks(address, access) == "hello wörld"
    files.client_ca.write_bytes(Authority(tmp_path / "others").file.read_bytes())
    with pytest.raises(NodeUnreachable):
        asks(address, access)


def test_a_missing_or_unfit_file_refuses_to_start_and_is_named(authority: Authority) -> None:
    files = authority.issue()
    other = authority.issue(into="other")
    empty = authority.folder / "empty.pem"
    empty.touch()
    unfit = [
        replace(files, cert=authority.folder / "nowhere.pem"),
        replace(files, cert=empty),
        replace(files, key=empty),
        replace(files, key=other.key),
        replace(files, client_ca=empty),
    ]
    for changed in unfit:
        named = next(path for path in changed.paths if path not in files.paths)
        with pytest.raises(BadConfiguration, match=named.name):
            server_credentials(changed)


def test_a_token_never_travels_in_the_clear_to_another_machine(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token\n")
    for address in ("10.0.0.1:50051", "node.example:50051", "dns:///node.example:50051"):
        for access in (Access(token="secret-token"), Access(token_file=token)):
            with pytest.raises(BadConfiguration, match="in the clear") as caught:
                Client(address, access=access)
            assert "secret-token" not in f"{caught.value} {caught.value.hint} {access!r}"
    assert isinstance(Access(token="x").channel_credentials("[::1]:1"), grpc.ChannelCredentials)


def test_what_is_no_token_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    token = tmp_path / "token"
    for text in ("", "two words", "zeile\numbruch", "schlüssel"):
        token.write_text(text)
        with pytest.raises(BadConfiguration, match="bearer token"):
            Access(token_file=token).bearer()
    os.unlink(token)
    with pytest.raises(BadConfiguration, match="cannot be read"):
        Access(token_file=token).bearer()
    with pytest.raises(BadConfiguration, match="not both"):
        Access(token="a", token_file=token)
    with pytest.raises(BadConfiguration, match="its key"):
        Access(cert_file=token)
