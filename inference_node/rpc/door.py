"""One address with the services behind it, health and reflection; the gate is before them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from inference_node.errors import BadConfiguration
from inference_node.rpc.accounts import Counted, Witness
from inference_node.rpc.auth import Gate
from inference_node.rpc.limits import ServerConfig, channel_options
from inference_node.rpc.tls import server_credentials
from inference_node.rpc.turnstile import RESERVE, Turnstile
from inference_node.tracing import Tracing

LIVENESS = "liveness"
READINESS = ("", "readiness")


@dataclass(frozen=True, slots=True)
class Service:
    """A service by its full name, and how it is added to a server."""

    name: str
    add: Callable[[grpc.aio.Server], None]


class Door:
    """A gRPC server on one address. `bind`, `open`, and `close` once."""

    def __init__(
        self,
        listen: str,
        variable: str,
        config: ServerConfig,
        services: Iterable[Service],
        witness: Witness,
        tracing: Tracing,
    ) -> None:
        """`variable` is the setting that says where it listens."""
        self._listen = listen
        self._variable = variable
        self._tls = config.tls
        self._health = health.aio.HealthServicer()
        self._turnstile = Turnstile(config.max_concurrent_rpcs)
        self._server = grpc.aio.server(
            interceptors=[
                Counted(witness, tracing),
                self._turnstile,
                Gate(config.auth),
            ],
            options=channel_options(),
            maximum_concurrent_rpcs=config.max_concurrent_rpcs + RESERVE,
        )
        self._names = []
        for service in services:
            service.add(self._server)
            self._names.append(service.name)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    def bind(self) -> int:
        """The port. Raises BadConfiguration when address, certificate or key cannot be had."""
        credentials = None if self._tls is None else server_credentials(self._tls)
        try:
            if credentials is None:
                return self._server.add_insecure_port(self._listen)
            return self._server.add_secure_port(self._listen, credentials)
        except RuntimeError as error:
            raise BadConfiguration(
                f"cannot listen on {self._listen}",
                hint="another program holds the port, or the address is not this machine's; "
                f"set {self._variable}",
            ) from error

    async def open(self) -> None:
        await self._server.start()

    async def close(self, grace: float | None) -> None:
        """Refuse new calls; running ones get `grace` seconds. May be called again with less."""
        await self._server.stop(grace)

    async def idle(self) -> None:
        """Wait until no call is running but those that watch."""
        await self._turnstile.idle()

    async def tell_health(self, *, alive: bool, ready: bool) -> None:
        await self._health.set(LIVENESS, _serving(alive))
        for name in (*READINESS, *self._names):
            await self._health.set(name, _serving(ready))


def _serving(good: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    status = health_pb2.HealthCheckResponse
    return status.SERVING if good else status.NOT_SERVING
