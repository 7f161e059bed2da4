"""Real services from wheels, for a machine with nothing else: SeaweedFS and Valkey on loopback.

    absent -> starting -> ready -> stopping -> absent
                 |  a child died (a lost race for a port): new ports, at most TRIES times
                 '-> absent, with StoreUnavailable and the end of the log

Credentials and ports are drawn once per state folder and kept there, so a restart answers at the
same address. In the foreground the children die with the thread that started them; detached,
they stay until `stop_detached`, which knows each by pid and start time. Ready means that a
conditional PUT worked, not that a port is open.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from adapter_store.errors import StoreRefused, StoreUnavailable
from adapter_store.processes import ProcessId, launch, process_id, stop_all
from adapter_store.services import Command, Readiness, Services, draw_services, read_services
from adapter_store.settings import (
    REDIS_SERVICE,
    S3_SERVICE,
    Endpoints,
    StackFile,
    forget_stack,
    read_stack,
)

HOST = "127.0.0.1"
TRIES = 4
READY_S = 40.0
SERVICES = (S3_SERVICE, REDIS_SERVICE)


class _DiedAtStart(StoreUnavailable):
    """A service ended before it served."""


@dataclass(frozen=True, slots=True)
class _Child:
    """A launched program."""

    command: Command
    process: subprocess.Popen[bytes]
    identity: ProcessId


class EmbeddedStack:
    """SeaweedFS, Valkey and whatever else is spawned beside them, as one unit.

    `with EmbeddedStack(folder) as stack:` keeps them for the block, on a thread that outlives it.
    """

    def __init__(self, state_dir: Path, *, host: str = HOST, detached: bool = False) -> None:
        """Raises StoreRefused for a host that is not this machine's loopback."""
        if not _is_loopback(host):
            raise StoreRefused(
                f"the embedded services do not listen on {host}: they have no TLS",
                hint="use 127.0.0.1, or run real services and set LORAPOOL_S3_ENDPOINT",
            )
        self.state_dir = state_dir.absolute()
        self._host = host
        self._detached = detached
        self._services: Services | None = None
        self._children: dict[str, _Child] = {}
        self._addresses: dict[str, str] = {}

    @property
    def endpoints(self) -> Endpoints:
        assert self._services is not None, "the stack was not started"
        return self._services.endpoints(self._host)

    @property
    def addresses(self) -> Mapping[str, str]:
        """Of what was spawned with one, by name."""
        return self._addresses

    def start(self) -> EmbeddedStack:
        """Start both services and wait until they serve. Raises StoreUnavailable."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with _only_starter(self.state_dir):
            running = read_stack(self.state_dir)
            if running is not None and running.is_running(S3_SERVICE):
                raise StoreUnavailable(
                    f"services already run in {self.state_dir}", hint="`make down` stops them"
                )
            kept = read_services(self.state_dir)
            services = kept.with_free_ports(self._host) if kept else draw_services(self._host)
            for left in reversed(range(TRIES)):
                try:
                    self._start_services(services)
                except _DiedAtStart:
                    self.stop()
                    if not left:
                        raise
                    services = services.on_new_ports(self._host)
                except BaseException:
                    self.stop()
                    raise
                else:
                    break
        return self

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        address: str = "",
    ) -> ProcessId:
        """Run another program with the same life cycle; `argv[0]` is an absolute path.

        Its environment is this process's, then the services' variables, then `env`. Its output
        goes to `log(name)`. `address` is where it will listen, for those who read the stack's file.
        """
        variables = {**os.environ, **self.endpoints.environment(), **(env or {})}
        if address:
            self._addresses[name] = address
        return self._launch(name, Command(tuple(argv), env=variables, folder=Path.cwd()))

    def is_running(self, name: str) -> bool:
        return name in self._children and self._children[name].identity.is_alive()

    def log(self, name: str) -> Path:
        return self.state_dir / f"{name}.log"

    def kill(self, name: str) -> None:
        """SIGKILL one child, as a crash would."""
        child = self._children[name]
        child.identity.signal_group(signal.SIGKILL)
        child.process.wait()

    def restart(self, name: str) -> None:
        """Start a stopped or killed child with the same command; wait until a service serves."""
        child = self._children[name]
        _stop([child])
        self._launch(name, child.command)
        if name in SERVICES:
            self._wait_ready([name])

    def stop(self) -> None:
        """Stop everything, the services last. Idempotent."""
        children, self._children = self._children, {}
        self._addresses = {}
        _stop([child for name, child in children.items() if name not in SERVICES])
        _stop([child for name, child in children.items() if name in SERVICES])
        if self._services is not None:
            self._services.remove_sockets()
            forget_stack(self.state_dir)

    def __enter__(self) -> EmbeddedStack:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_services(self, services: Services) -> None:
        self._services = services
        commands = services.commands(self.state_dir, self._host)
        services.save(self.state_dir)
        services.remove_sockets()
        for name, command in commands.items():
            self._launch(name, command)
        self._wait_ready(SERVICES)

    def _launch(self, name: str, command: Command) -> ProcessId:
        process = launch(
            command.argv,
            env=command.env,
            folder=command.folder,
            log=self.log(name),
            die_with_parent=not self._detached,
        )
        self._children[name] = _Child(command, process, process_id(process.pid))
        identities = {name: child.identity for name, child in self._children.items()}
        StackFile(self.endpoints, identities, self._addresses).write(self.state_dir)
        return identities[name]

    def _wait_ready(self, names: Sequence[str]) -> None:
        """Raises _DiedAtStart when one ended, StoreUnavailable when one does not serve in time."""
        deadline = time.monotonic() + READY_S
        with contextlib.closing(Readiness(self.endpoints)) as readiness:
            for name in names:
                while self._all_running(names) and not readiness.serves(name):
                    if time.monotonic() > deadline:
                        raise StoreUnavailable(
                            f"{name} does not serve; its log ends:\n{_tail(self.log(name))}",
                            hint=f"read {self.log(name)}",
                        )
                    time.sleep(0.05)

    def _all_running(self, names: Sequence[str]) -> bool:
        for name in names:
            if not self.is_running(name):
                raise _DiedAtStart(
                    f"{name} ended; its log ends:\n{_tail(self.log(name))}",
                    hint=f"read {self.log(name)}",
                )
        return True


def start_detached(state_dir: Path, *, host: str = HOST) -> EmbeddedStack:
    """Start services that outlive this process; `spawn` adds to them."""
    return EmbeddedStack(state_dir, host=host, detached=True).start()


def stop_detached(state_dir: Path) -> list[str]:
    """Stop what runs in `state_dir`, whoever started it; the names of what was running."""
    stack = read_stack(state_dir)
    if stack is None:
        return []
    running = [name for name in stack.processes if stack.is_running(name)]
    stop_all([stack.processes[name] for name in running if name not in SERVICES])
    stop_all([stack.processes[name] for name in running if name in SERVICES])
    services = read_services(state_dir)
    if services is not None:
        services.remove_sockets()
    forget_stack(state_dir)
    return running


def _stop(children: Sequence[_Child]) -> None:
    stop_all([child.identity for child in children])
    for child in children:
        child.process.wait()


@contextlib.contextmanager
def _only_starter(state_dir: Path) -> Iterator[None]:
    """Only one process at a time starts services in one folder."""
    with (state_dir / "start.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def _tail(log: Path, *, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
