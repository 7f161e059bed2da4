"""Answers scrapes over HTTP on a port of its own: `GET /metrics`, nothing else."""

from __future__ import annotations

import socket
import threading
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from inference_node.errors import BadConfiguration

PATH = "/metrics"
SCRAPES = 8
"""At once; further ones are hung up on."""
SILENCE = 10.0
"""Seconds after which a caller that says nothing, or does not read, is hung up on."""


class Listener:
    """`start` once, then `stop` once."""

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        """Raises BadConfiguration when the address cannot be had."""
        host, _, port = listen.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            self._server = _server(host, int(port), registry)
        except OSError as error:
            raise BadConfiguration(
                f"cannot listen on {listen}: {error.strerror}",
                hint="another program holds the port, or the address is not this machine's; "
                "set LORAPOOL_METRICS_LISTEN",
            ) from error
        self.address = f"{listen.rpartition(':')[0]}:{self._server.server_address[1]}"
        """host:port; the port that was had where any was asked for."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any) -> None:
        self._free = threading.BoundedSemaphore(SCRAPES)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is nobody's business."""


def _server(host: str, port: int, registry: CollectorRegistry) -> _Server:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]

    class Handler(MetricsHandler):
        timeout = SILENCE

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != PATH:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            super().do_GET()

    Handler.registry = registry

    class Server(_Server):
        address_family = family

    return Server(address, Handler)
