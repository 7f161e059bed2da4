"""Every setting of the node, read from flags, environment and a file in this one place."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from adapter_store.settings import StoreSettings
from inference_node.addresses import is_loopback, parse_address
from inference_node.config import EngineConfig
from inference_node.errors import BadConfiguration
from inference_node.rpc.auth import AuthConfig
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.tls import TlsFiles
from inference_node.rpc.tokens import TokenRules

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX = "LORAPOOL_"
MIB = 2**20
_ENGINE = EngineConfig(base_model="-")
_SERVER = ServerConfig()


def _pairs(text: object) -> object:
    """`a=1,b=2` as a mapping."""
    if not isinstance(text, str):
        return text
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise ValueError("must look like gold=4,trial=0.5")
    return {name.strip(): value.strip() for name, _, value in pairs}


class NodeSettings(BaseSettings):
    """`LORAPOOL_<NAME>` for each field; a flag of the same name goes before it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, env_ignore_empty=True, extra="ignore"
    )

    listen: str = _SERVER.listen
    """host:port of the gRPC server."""
    admin_listen: str = _SERVER.admin_listen
    """host:port of the gRPC server for operators, AdapterService; none when empty."""
    advertise: str = _SERVER.advertise
    """host:port at which clients reach `listen`, as the fleet is told; empty: `listen` itself."""
    metrics_listen: str = ""
    """host:port where Prometheus scrapes `/metrics`, over plain HTTP; nowhere when empty."""
    metrics_insecure: bool = False
    """Let scrapes come from beyond loopback: they tell names of tenants and adapters to anybody."""
    metrics_adapters: int = Field(default=50, ge=0)
    """Adapters that have series of their own; the others share one."""
    playground_listen: str = ""
    """host:port of the page for a browser on this machine; nowhere when empty."""
    insecure: bool = _SERVER.insecure
    """Listen beyond loopback although calls are not both encrypted and authenticated."""
    tls_cert_file: Path | None = None
    """The node's certificate chain, PEM; with `tls_key_file`, calls are encrypted."""
    tls_key_file: Path | None = None
    tls_key_passphrase: SecretStr | None = None
    tls_key_passphrase_file: Path | None = None
    tls_client_ca_file: Path | None = None
    """Callers must show a certificate that one of these authorities signed."""
    jwks_file: Path | None = None
    """Public keys of whoever issues bearer tokens (RFC 7517); read again when it changes."""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    """What tokens must name as `iss` and `aud`; both belong to `jwks_file`."""
    identities_file: Path | None = None
    """Which callers' certificates may do what, TOML; needs `tls_client_ca_file`."""
    quotas_file: Path | None = None
    """What each tenant may take, TOML; in force a tenth of a second after it changed."""
    base_model: str = ""
    """A transformers checkpoint folder or model id; empty for the bundled SmolLM2."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    linears: Literal["auto", "nf4", "dense"] = "auto"
    """`nf4`: products of 4-bit codes. `dense`: the same 4-bit values dequantised once."""
    kernels: Literal["auto", "fused", "native", "reference"] = "auto"
    """On CPU, `native`: in C, compiled at the first start. `reference`: in torch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    pool_mb: int = Field(default=_ENGINE.pool_bytes // MIB, ge=1)
    """Device memory for adapters, MiB."""
    pool_shares: Annotated[dict[str, float], NoDecode, BeforeValidator(_pairs)] = {}
    """Pages of a group of linears, in proportion: `gate_proj=0.05,down_proj=0.05`; else 1."""
    resident_mb: int = Field(default=_ENGINE.resident_bytes // MIB, ge=0)
    """On CUDA: device memory for base weights kept in bfloat16 too, where that is faster, MiB."""
    host_mb: int = Field(default=_ENGINE.host_bytes // MIB, ge=0)
    """Host memory for verified adapters, MiB."""
    cache_mb: int = Field(default=2048, ge=0)
    """Disk for verified chunks, MiB; 0 keeps none."""
    kv_tokens: int = Field(default=_ENGINE.kv_tokens, ge=1)
    """Tokens of KV cache shared by all running requests."""
    run_ahead: bool = _ENGINE.run_ahead
    """On CUDA: launch a step before the tokens of the last are read."""
    prefix_cache: bool = _ENGINE.prefix_cache
    """Compute the beginning that requests of one tenant to one adapter version share only once."""
    max_rows: int = Field(default=_ENGINE.max_rows, ge=1)
    """Requests decoded in one step."""
    step_tokens: int = Field(default=_ENGINE.step_tokens, ge=1)
    """Tokens in one step, prompt chunks included."""
    tenant_weights: Annotated[dict[str, float], NoDecode, BeforeValidator(_pairs)] = {}
    """Shares of tenants that compete: `gold=4,trial=0.5`; 1 for a tenant that is not named."""
    fair_lag_tokens: int = Field(default=_ENGINE.fair_lag_tokens, ge=1)
    """How far a waiting tenant or adapter may fall behind before it takes a row."""
    priority_aging_steps: int = Field(default=_ENGINE.priority_aging_steps, ge=1)
    """A priority class that waits so many steps rises by one."""
    max_context: int = Field(default=_ENGINE.max_context, ge=2)
    max_queue: int = Field(default=_ENGINE.max_queue, ge=1)
    max_rank: int = Field(default=_ENGINE.max_rank, ge=1, le=64)
    fetch_threads: int = Field(default=_ENGINE.fetch_threads, ge=1)
    poll_seconds: float = Field(default=_ENGINE.poll_seconds, gt=0)
    poll_seconds_without_hints: float = Field(default=_ENGINE.poll_seconds_without_hints, gt=0)
    headroom_pages: int | None = Field(default=_ENGINE.headroom_pages, ge=0)
    """Of each module group, left to next versions of served adapters; empty: as the largest."""
    page_wait_seconds: float = Field(default=_ENGINE.page_wait_seconds, ge=0)
    """For versions that wait longer for pages that requests hold, others make way, by turns."""
    max_staleness: float = Field(default=_ENGINE.max_staleness, ge=0)
    refuse_stale_after: float | None = Field(default=_ENGINE.refuse_stale_after, ge=0)
    """Refuse what the store could not confirm for so many seconds; unset: serve it all the same."""
    max_request_seconds: float = Field(default=_SERVER.max_request_seconds, gt=0)
    drain_delay: float = Field(default=_SERVER.drain_delay, ge=0)
    """Seconds between NOT_SERVING and refusing calls."""
    drain_seconds: float = Field(default=_SERVER.drain_seconds, ge=0)
    """Seconds that running calls get after that."""
    reflection: bool = _SERVER.reflection
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    traces: Literal["off", "otlp"] = "off"
    """`otlp`: spans to where OpenTelemetry's own OTEL_EXPORTER_OTLP_ENDPOINT says."""
    audit_file: Path | None = None
    """Gets a JSON line for every request that ended: which digest served whom."""

    def engine_config(self, base_model: str) -> EngineConfig:
        """Raises BadConfiguration when settings contradict each other."""
        return EngineConfig(
            base_model=base_model,
            device=self.device,
            linears=self.linears,
            kernels=self.kernels,
            dtype=self.dtype,
            pool_bytes=self.pool_mb * MIB,
            pool_shares=self.pool_shares,
            resident_bytes=self.resident_mb * MIB,
            host_bytes=self.host_mb * MIB,
            kv_tokens=self.kv_tokens,
            run_ahead=self.run_ahead,
            prefix_cache=self.prefix_cache,
            max_rows=self.max_rows,
            step_tokens=self.step_tokens,
            tenant_weights=self.tenant_weights,
            fair_lag_tokens=self.fair_lag_tokens,
            priority_aging_steps=self.priority_aging_steps,
            max_context=self.max_context,
            max_queue=self.max_queue,
            max_rank=self.max_rank,
            fetch_threads=self.fetch_threads,
            poll_seconds=self.poll_seconds,
            poll_seconds_without_hints=self.poll_seconds_without_hints,
            headroom_pages=self.headroom_pages,
            page_wait_seconds=self.page_wait_seconds,
            max_staleness=self.max_staleness,
            refuse_stale_after=self.refuse_stale_after,
        )

    def server_config(self) -> ServerConfig:
        """Raises BadConfiguration for an address that others reach without TLS and auth."""
        return ServerConfig(
            listen=self.listen,
            admin_listen=self.admin_listen,
            advertise=self.advertise,
            insecure=self.insecure,
            tls=self._tls(),
            auth=self._auth(),
            quotas=self.quotas_file,
            max_request_seconds=self.max_request_seconds,
            drain_delay=self.drain_delay,
            drain_seconds=self.drain_seconds,
            reflection=self.reflection,
        )

    def metrics_address(self) -> str:
        """Where scrapes are answered; empty for nowhere. Raises BadConfiguration."""
        listen = self.metrics_listen
        if not listen:
            return ""
        name = f"{PREFIX}METRICS_LISTEN"
        if listen.startswith("unix:"):
            raise BadConfiguration(f"{name} {listen!r} is not host:port")
        if not (is_loopback(listen, name) or self.metrics_insecure or self.insecure):
            raise BadConfiguration(
                f"{name}={listen!r} is reachable from other machines, and scrapes "
                "are neither encrypted nor authenticated",
                hint="listen on 127.0.0.1, or set LORAPOOL_METRICS_INSECURE=1 where the network "
                "lets only Prometheus in",
            )
        return listen

    def playground_address(self) -> str:
        """Where the page is; empty for nowhere. Raises BadConfiguration."""
        listen = self.playground_listen
        if not listen:
            return ""
        parse_address(listen, f"{PREFIX}PLAYGROUND_LISTEN")
        if not is_loopback(listen):
            raise BadConfiguration(
                f"{PREFIX}PLAYGROUND_LISTEN={listen!r} is reachable from other machines, and the "
                "page asks nobody who he is",
                hint="listen on 127.0.0.1 and forward a port to it: ssh -L",
            )
        if self._tls() is not None or self._auth() is not None:
            raise BadConfiguration(
                f"{PREFIX}PLAYGROUND_LISTEN is set, and the page has no credentials for this node",
                hint="unset it, or run a node without TLS, tokens and identities beside it",
            )
        if parse_address(self.listen, f"{PREFIX}LISTEN").is_name:
            raise BadConfiguration(
                f"{PREFIX}PLAYGROUND_LISTEN needs an IP address in {PREFIX}LISTEN"
            )
        return listen

    def _tls(self) -> TlsFiles | None:
        cert, key = self.tls_cert_file, self.tls_key_file
        if cert is None and key is None and self.tls_client_ca_file is None:
            return None
        if cert is None or key is None:
            missing = "CERT" if cert is None else "KEY"
            raise BadConfiguration(f"{PREFIX}TLS_{missing}_FILE is not set, other TLS files are")
        return TlsFiles(
            cert=cert,
            key=key,
            passphrase=_secret(
                "TLS_KEY_PASSPHRASE", self.tls_key_passphrase, self.tls_key_passphrase_file
            ),
            client_ca=self.tls_client_ca_file,
        )

    def _auth(self) -> AuthConfig | None:
        given = {"JWKS_FILE": self.jwks_file, "JWT_ISSUER": self.jwt_issuer}
        given["JWT_AUDIENCE"] = self.jwt_audience
        missing = [PREFIX + name for name, value in given.items() if not value]
        if 0 < len(missing) < len(given):
            raise BadConfiguration(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
                hint="tokens need their keys, their issuer and their audience",
            )
        tokens = None
        if self.jwks_file is not None:
            tokens = TokenRules(
                jwks=self.jwks_file, issuer=self.jwt_issuer, audience=self.jwt_audience
            )
        if tokens is None and self.identities_file is None:
            return None
        return AuthConfig(tokens=tokens, identities=self.identities_file)

    def checkpoint(self) -> str:
        """The base model's folder or id; makes the bundled one first when it is the one."""
        if self.base_model:
            return self.base_model
        from inference_node.model.default_base import ensure_default_base

        folder: Path = ensure_default_base()
        return str(folder)


@dataclass(frozen=True, slots=True)
class Configuration:
    """All settings, and where those that are not defaults came from."""

    node: NodeSettings
    store: Mapping[str, object]
    """What the settings file says of the store, where the environment says nothing."""
    sources: Mapping[str, str]
    """By name, without the prefix and in lower case."""


def load_settings(
    *,
    listen: str | None = None,
    insecure: bool | None = None,
    base_model: str | None = None,
    device: str | None = None,
) -> NodeSettings:
    """As `load_configuration`, the node's part."""
    flags = {"listen": listen, "insecure": insecure, "base_model": base_model, "device": device}
    return load_configuration(flags).node


def load_configuration(flags: Mapping[str, object], file: Path | None = None) -> Configuration:
    """Flags first, then the environment, then the file, `LORAPOOL_CONFIG` unless one is named.

    A flag that is None is not given. Raises BadConfiguration naming the variable or the file.
    """
    named = os.environ.get(f"{PREFIX}CONFIG")
    path = file or (Path(named) if named else None)
    said = {} if path is None else _read_file(path)
    in_environment = {name for name in _known() if os.environ.get(PREFIX + name.upper())}
    from_file = {name: value for name, value in said.items() if name not in in_environment}
    from_flags = {name: value for name, value in flags.items() if value is not None}
    sources = {
        **dict.fromkeys(from_file, str(path)),
        **dict.fromkeys(in_environment, "environment"),
        **dict.fromkeys(from_flags, "flag"),
    }
    given: dict[str, Any] = {**from_file, **from_flags}
    ours = {name: value for name, value in given.items() if name in NodeSettings.model_fields}
    try:
        node = NodeSettings(**ours)
    except ValidationError as error:
        raise BadConfiguration(
            "; ".join(_fault(fault, sources) for fault in error.errors())
        ) from None
    store = {name: value for name, value in from_file.items() if name in StoreSettings.model_fields}
    return Configuration(node, store, sources)


def _known() -> set[str]:
    return {*NodeSettings.model_fields, *StoreSettings.model_fields}


def _read_file(path: Path) -> dict[str, object]:
    """What a settings file says: the variables' names, in lower case and without the prefix."""
    try:
        said = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadConfiguration(f"settings file {path} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise BadConfiguration(f"settings file {path} is not TOML: {error}") from None
    except ValueError:
        raise BadConfiguration(f"settings file {path} is not UTF-8 text") from None
    unknown = sorted(set(said) - _known())
    if unknown:
        raise BadConfiguration(
            f"settings file {path}: {unknown[0]} is no setting",
            hint="`inference-node serve --print-config` lists them",
        )
    return said


def _fault(fault: ErrorDetails, sources: Mapping[str, str]) -> str:
    """Which setting is wrong, from where and why; what a secret was set to is not said."""
    name = str(fault["loc"][0])
    source = sources.get(name, "environment")
    where = (
        f"{PREFIX}{name.upper()}" if source in ("environment", "flag") else f"{name} in {source}"
    )
    told = "" if _is_secret(NodeSettings.model_fields[name]) else f"={fault['input']!r}"
    return f"{where}{told}: {fault['msg']}"


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


def _secret(name: str, value: SecretStr | None, file: Path | None) -> str:
    """A secret from its variable or from the file that another names. Raises BadConfiguration."""
    if file is None:
        return "" if value is None else value.get_secret_value()
    if value is not None:
        raise BadConfiguration(f"set {PREFIX}{name} or {PREFIX}{name}_FILE, not both")
    try:
        return file.read_text().rstrip("\n")
    except (OSError, ValueError):
        raise BadConfiguration(f"{PREFIX}{name}_FILE: {file} cannot be read") from None
