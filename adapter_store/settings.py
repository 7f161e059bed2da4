"""Every setting of the store, read from the environment in this one place.

With no LORAPOOL_S3_* variable set, the services that `make up` runs in this folder are used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapter_store.coordination import Announcer, NoAnnouncer, NoLock, PublishLock
from adapter_store.errors import FleetUnseen, InvalidName, InvalidSetting, StoreUnavailable
from adapter_store.layout import DEFAULT_TENANT, check_id
from adapter_store.processes import ProcessId

if TYPE_CHECKING:
    from adapter_store.notify import HintStream
    from adapter_store.provenance import KeySigner, TrustFile
    from adapter_store.registry import FleetRegistry
    from adapter_store.s3 import S3Store

PREFIX = "LORAPOOL_"
STATE_DIR = Path(".lorapool")
STACK_FILE = "stack.json"
S3_SERVICE = "seaweedfs"
REDIS_SERVICE = "valkey"
DEFAULT_BUCKET = "adapters"
DEFAULT_REGION = "us-east-1"
NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the services are and what opens them."""

    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str
    redis_url: str
    s3_bucket: str = DEFAULT_BUCKET
    s3_region: str = DEFAULT_REGION

    def environment(self) -> dict[str, str]:
        """The same as the variables `load_settings` reads, for a child process."""
        return {PREFIX + name.upper(): value for name, value in asdict(self).items() if value}

    def __repr__(self) -> str:
        return f"Endpoints({self.s3_endpoint}, bucket {self.s3_bucket})"


@dataclass(frozen=True, slots=True)
class StackFile:
    """What a running stack leaves in its state folder, so that other commands find it."""

    endpoints: Endpoints
    processes: Mapping[str, ProcessId]
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Where they listen, of those that were started with an address."""

    def write(self, state_dir: Path) -> None:
        """Replace the file at once; only the owner may read it."""
        write_private(state_dir / STACK_FILE, json.dumps(asdict(self), indent=2))

    def is_running(self, name: str) -> bool:
        """Whether the process of that name is still the one that was started."""
        return name in self.processes and self.processes[name].is_alive()

    def is_whole(self) -> bool:
        """Whether everything that was started is still running."""
        return all(map(self.is_running, self.processes))


def read_stack(state_dir: Path) -> StackFile | None:
    """The stack last started in `state_dir`; None when there is none that can be understood."""
    try:
        value = json.loads((state_dir / STACK_FILE).read_text())
        return StackFile(
            Endpoints(**value["endpoints"]),
            {name: ProcessId(**process) for name, process in value["processes"].items()},
            dict(value.get("addresses", {})),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def forget_stack(state_dir: Path) -> None:
    (state_dir / STACK_FILE).unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; it is never readable by anyone but its owner."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _url(*schemes: str) -> AfterValidator:
    def check(value: str | SecretStr) -> str | SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not _is_url(text, schemes):
            raise ValueError("not a URL like " + " or ".join(f"{s}://host:port" for s in schemes))
        return value

    return AfterValidator(check)


def _is_url(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        # Its message quotes the URL, and a URL may hold a password.
        return False
    # An S3 endpoint is printed; its keys have variables of their own.
    leaky = parts.scheme in ("http", "https") and parts.username is not None
    return parts.scheme in schemes and bool(parts.netloc or parts.path) and not leaky


def _tenant(value: str) -> str:
    try:
        return check_id("tenant", value)
    except InvalidName as error:
        raise ValueError(f"{error} ({error.hint})") from error


def _default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorapool"


class StoreSettings(BaseSettings):
    """Where adapters live and where this machine keeps copies."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, env_ignore_empty=True, extra="ignore"
    )

    s3_endpoint: Annotated[str, _url("http", "https")] | None = None
    """URL of the S3 service; unset for AWS, when another LORAPOOL_S3_* is set."""
    s3_bucket: str = Field(default=DEFAULT_BUCKET, pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    s3_region: str = DEFAULT_REGION
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    redis_url: Annotated[SecretStr, _url("redis", "rediss", "unix")] | None = None
    """Redis for the publish lock and hints; unset: publishers go without, nodes poll."""
    redis_username: str | None = None
    """The ACL user, unless the URL names one."""
    redis_password: SecretStr | None = None
    redis_password_file: Path | None = None
    redis_ca_file: Path | None = None
    """Certificates that a rediss:// server's may be signed by; unset: those of the system."""
    sign_key_file: Path | None = None
    """The private key that signs what is published from here; see `adapter-store keygen`."""
    trust_file: Path | None = None
    """Whose signatures count; unset: signatures are not looked at."""
    cache_dir: Path = Field(default_factory=_default_cache_dir)
    tenant: Annotated[str, AfterValidator(_tenant)] = DEFAULT_TENANT

    def open_store(self) -> S3Store:
        """The configured store; sends nothing yet."""
        from adapter_store.s3 import open_s3

        return open_s3(
            endpoint=self.s3_endpoint,
            bucket=self.s3_bucket,
            region=self.s3_region,
            access_key=_revealed(self.s3_access_key),
            secret_key=_revealed(self.s3_secret_key),
        )

    def full_redis_url(self) -> str | None:
        """The URL with all that is set beside it; its text may hold the password.

        None without Redis. Raises InvalidSetting naming the variable.
        """
        if self.redis_url is None:
            return None
        return redis_access(
            self.redis_url.get_secret_value(),
            username=self.redis_username,
            password=self._redis_password(),
            ca_file=self.redis_ca_file,
        )

    def _redis_password(self) -> str | None:
        if self.redis_password_file is None:
            return _revealed(self.redis_password)
        try:
            return self.redis_password_file.read_text().rstrip("\n")
        except (OSError, ValueError):
            raise InvalidSetting(
                f"{PREFIX}REDIS_PASSWORD_FILE: {self.redis_password_file} cannot be read"
            ) from None

    def open_lock(
        self,
        *,
        who: str = "",
        on_wait: Callable[[str, float], None] = lambda holder, left_s: None,
    ) -> PublishLock:
        """The configured lock, or NoLock; for `who` and `on_wait` see locks.RedisLock."""
        url = self.full_redis_url()
        if url is None:
            return NoLock()
        from adapter_store.locks import open_lock

        return open_lock(url, who=who, on_wait=on_wait)

    def open_announcer(self) -> Announcer:
        """The configured announcer, or NoAnnouncer."""
        url = self.full_redis_url()
        if url is None:
            return NoAnnouncer()
        from adapter_store.notify import open_announcer

        return open_announcer(url)

    def open_signer(self) -> KeySigner | None:
        """The configured signing key; None without. Raises InvalidSetting."""
        if self.sign_key_file is None:
            return None
        from adapter_store.provenance import load_signer

        return load_signer(self.sign_key_file)

    def open_verifier(self, warn: Callable[[str], None]) -> TrustFile | None:
        """Who is trusted, as configured; None without. Raises InvalidSetting."""
        if self.trust_file is None:
            return None
        from adapter_store.provenance import TrustFile

        return TrustFile(self.trust_file, warn=warn)

    def open_hints(self, *, node: str = "") -> HintStream | None:
        """The configured hint stream; None without Redis. `node` is who listens."""
        url = self.full_redis_url()
        if url is None:
            return None
        from adapter_store.notify import open_hints

        return open_hints(url, node=node)

    def open_registry(self) -> FleetRegistry | None:
        """Where nodes tell of themselves; None without Redis."""
        url = self.full_redis_url()
        if url is None:
            return None
        from adapter_store.registry import open_registry

        return open_registry(url)


def redis_access(
    url: str, *, username: str | None, password: str | None, ca_file: Path | None
) -> str:
    """`url` with credentials and certificates put in; what it names itself stays.

    Raises InvalidSetting naming the variable.
    """
    parts = urlsplit(url)
    user = parts.username or quote(username or "", safe="")
    secret = parts.password or quote(password or "", safe="")
    host = parts.netloc.rpartition("@")[2]
    query = parts.query
    if ca_file is not None:
        if parts.scheme != "rediss":
            raise InvalidSetting(
                f"{PREFIX}REDIS_CA_FILE is set, and {PREFIX}REDIS_URL is no rediss:// URL"
            )
        if not ca_file.is_file():
            raise InvalidSetting(f"{PREFIX}REDIS_CA_FILE: {ca_file} is no file")
        query = "&".join(filter(None, (query, urlencode({"ssl_ca_certs": str(ca_file)}))))
    netloc = f"{user}:{secret}@{host}" if user or secret else host
    return parts._replace(netloc=netloc, query=query).geturl()


def load_settings(
    *, state_dir: Path = STATE_DIR, given: Mapping[str, object] = NOTHING
) -> StoreSettings:
    """Settings from `given`, else the environment, or from the stack running in `state_dir`.

    Raises InvalidSetting naming the variable, and StoreUnavailable when there is neither.
    """
    known: dict[str, Any] = dict(given)
    try:
        settings = StoreSettings(**known)
        if any(name.startswith("s3_") for name in settings.model_fields_set):
            return settings
        stack = read_stack(state_dir)
        if stack is None or not stack.is_running(S3_SERVICE):
            raise StoreUnavailable(
                "no store is configured and none is running here",
                hint="run `make up` in this folder, or set LORAPOOL_S3_ENDPOINT, "
                "LORAPOOL_S3_ACCESS_KEY and LORAPOOL_S3_SECRET_KEY",
            )
        said = settings.model_dump(exclude_unset=True)
        return StoreSettings(**{**asdict(stack.endpoints), **said})
    except ValidationError as error:
        raise InvalidSetting(_named(error)) from None


def open_fleet(*, state_dir: Path = STATE_DIR) -> FleetRegistry:
    """Where nodes tell of themselves, by the environment or the stack running in `state_dir`.

    Needs no S3 setting. Raises InvalidSetting, and FleetUnseen without any Redis.
    """
    try:
        settings = StoreSettings()
        if settings.redis_url is None and (stack := read_stack(state_dir)) is not None:
            said = settings.model_dump(exclude_unset=True)
            settings = StoreSettings(**{"redis_url": stack.endpoints.redis_url, **said})
        registry = settings.open_registry()
    except ValidationError as error:
        raise InvalidSetting(_named(error)) from None
    except ValueError:
        # Not from the cause: its text may hold the password.
        raise InvalidSetting(f"{PREFIX}REDIS_URL is not a Redis URL") from None
    if registry is None:
        raise FleetUnseen("no Redis is configured, and that is where nodes tell of themselves")
    return registry


def tenant_setting() -> str:
    """LORAPOOL_TENANT, for what needs no store. Raises InvalidSetting."""
    try:
        return StoreSettings().tenant
    except ValidationError as error:
        raise InvalidSetting(_named(error)) from None


def _named(error: ValidationError) -> str:
    """Which variables are wrong and why, without their values: one of them may be a secret."""
    return "; ".join(
        f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
