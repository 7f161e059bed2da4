"""Who calls, and what they may: decided here for every RPC, and nowhere else.

    call -> Gate.intercept_service -> who is it?          UNAUTHENTICATED
                                   -> POLICIES[method]    PERMISSION_DENIED, adapters unseen
         -> servicer -> grant(tenant, adapter)            NOT_FOUND, see below

What a caller must not see is answered like what does not exist, and takes as long: the request goes
the whole way under a name that nobody can have published, counted for a tenant of the caller's own,
and the answer is told in the words of the question.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from inference_node.errors import (
    CredentialsExpired,
    Forbidden,
    InvalidRequest,
    NodeError,
    Unauthenticated,
)
from inference_node.rpc.handlers import Around, Wrapping
from inference_node.rpc.identities import Identities, known_as, read_identities
from inference_node.rpc.reloaded import Reloaded
from inference_node.rpc.scopes import EVERYTHING, Role, Scope
from inference_node.rpc.status import Answering
from inference_node.rpc.tokens import (
    Claims,
    Keys,
    TokenExpired,
    TokenRefused,
    TokenRules,
    Verified,
    read_keys,
)

HINT = "send a bearer token for this node (--token-file), or a certificate that it knows"
Context = grpc.aio.ServicerContext[Any, Any]
_log = logging.getLogger(__name__)


class Anyone(Enum):
    """Policies that ask for no role."""

    CALLER = "whoever is authenticated"
    STRANGER = "everybody: probes carry no credentials"


Policy = Role | Anyone

POLICIES: Mapping[str, Policy] = {
    "/lorapool.v1.InferenceService/Generate": Role.GENERATE,
    "/lorapool.v1.InferenceService/StreamGenerate": Role.GENERATE,
    "/lorapool.v1.InferenceService/Tokenize": Role.GENERATE,
    "/lorapool.v1.InferenceService/GetModelInfo": Anyone.CALLER,
    "/lorapool.v1.CatalogService/GetAdapter": Role.CATALOG,
    "/lorapool.v1.CatalogService/ListAdapters": Role.CATALOG,
    "/lorapool.v1.CatalogService/ListVersions": Role.CATALOG,
    "/lorapool.v1.CatalogService/ResolveAdapter": Role.CATALOG,
    "/lorapool.v1.AdapterService/PreloadAdapter": Role.OPERATE,
    "/lorapool.v1.AdapterService/PinAdapter": Role.OPERATE,
    "/lorapool.v1.AdapterService/UnpinAdapter": Role.OPERATE,
    "/lorapool.v1.AdapterService/UnloadAdapter": Role.OPERATE,
    "/lorapool.v1.AdapterService/ListLoadedAdapters": Role.OPERATE,
    "/lorapool.v1.AdapterService/GetPoolStatus": Role.OPERATE,
    "/lorapool.v1.AdapterService/WatchPool": Role.OPERATE,
    "/grpc.health.v1.Health/Check": Anyone.STRANGER,
    # A stream that lasts holds one of the calls a node can have.
    "/grpc.health.v1.Health/Watch": Anyone.CALLER,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Anyone.CALLER,
}
"""Every RPC there is. One that is missing here is refused to everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """How callers prove who they are: a token where they send one, else their certificate."""

    tokens: TokenRules | None = None
    identities: Path | None = None
    """Which certificates may do what; see identities.py."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    name: str
    scope: Scope


NOBODY = Caller("", EVERYTHING)
"""Who calls a node that asks for no credentials."""
_caller: ContextVar[Caller] = ContextVar("caller", default=NOBODY)
_secret = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class Grant:
    """Under which names a request goes on."""

    tenant: str
    adapter: str
    _asked: str
    _stands_in: str
    """What the engine knows `_asked` by: another name, where it is not to be seen."""

    def in_words_of_the_question(self) -> AbstractContextManager[None]:
        """What the body raises names what was asked for, never what stands in for it."""
        return _Retelling(self)

    def retold(self, error: NodeError) -> NodeError:
        def told(text: str) -> str:
            return text.replace(self._stands_in, self._asked)

        return type(error)(
            told(str(error)),
            hint=told(error.hint),
            retry_after=error.retry_after,
            details={key: told(value) for key, value in error.details.items()},
        )


class _Retelling(AbstractContextManager[None]):
    __slots__ = ("_granted",)

    def __init__(self, granted: Grant) -> None:
        self._granted = granted

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, NodeError) and not isinstance(error, InvalidRequest):
            raise self._granted.retold(error) from None


def caller() -> Caller:
    """Who makes the call that is being served."""
    return _caller.get()


def check_priority(priority: int) -> None:
    """Raises InvalidRequest when the present caller may not ask for so much."""
    most = caller().scope.max_priority
    if priority > most:
        raise InvalidRequest(
            "priority",
            f"is above {most}, the highest that you may ask for",
            hint="ask for less, or ask whoever issues your credentials for a higher max_priority",
        )


def grant(tenant: str, adapter: str) -> Grant:
    """What the present caller gets who asks for `adapter`, a checked reference, of `tenant`."""
    scope = caller().scope
    if scope is EVERYTHING:
        return Grant(tenant, adapter, "", "")
    name, at, version = adapter.partition("@")
    asked = name or f"of tenant {tenant!r}"
    digest = hashlib.blake2b(f"{tenant}/{name}".encode(), key=_secret, digest_size=20).hexdigest()
    if scope.covers(tenant, name):
        # As much work as below, here and in the telling.
        return Grant(tenant, adapter, asked, name or asked)
    own = tenant if scope.covers(tenant) else scope.home or f"nobody-{digest[:32]}"
    stands_in = f"forbidden-{digest}"
    return Grant(own, f"{stands_in}{at}{version}", asked, stands_in)


class Gate(Wrapping):
    """Lets in whom `config` lets in; everybody, as NOBODY, where there is none."""

    def __init__(
        self, config: AuthConfig | None, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """Raises BadConfiguration when a file is missing or malformed."""
        super().__init__()
        self._open = config is None
        self._wall_clock = wall_clock
        self._keys: Reloaded[Keys] | None = None
        self._verified: Verified | None = None
        self._identities: Reloaded[Identities] | None = None
        if config and (rules := config.tokens):
            self._verified = Verified(rules)
            self._keys = Reloaded("JWKS file", (rules.jwks,), lambda: read_keys(rules.jwks))
        if config and (path := config.identities):
            self._identities = Reloaded("identities file", (path,), lambda: read_identities(path))

    def around(self, method: str) -> Around | None:
        return None if self._open else partial(_Admitted, self, method)

    def admit(self, method: str, context: Context) -> Caller:
        """Who calls `method`. Raises Unauthenticated and Forbidden."""
        policy = POLICIES.get(method)
        if policy is Anyone.STRANGER:
            return Caller("", Scope())
        found = self._authenticate(context)
        if policy is None or (isinstance(policy, Role) and policy not in found.scope.roles):
            needed = policy.value if policy else "none"
            raise Forbidden(
                f"{method.rpartition('/')[2]} is not for you",
                hint="ask whoever issues your credentials for the role it needs",
                details={"role": needed},
            )
        return found

    def _authenticate(self, context: Context) -> Caller:
        given = [
            value for key, value in context.invocation_metadata() or () if key == "authorization"
        ]
        try:
            if given:
                claims = self._verify(given)
                return Caller(f"token:{claims.subject}", claims.scope)
            return self._by_certificate(context)
        except TokenExpired:
            raise CredentialsExpired(
                "the token has expired", hint="get a new one and try again"
            ) from None
        except TokenRefused as error:
            _log.info("refused %s: %s", context.peer(), error)
            raise Unauthenticated("the credentials are not accepted", hint=HINT) from None

    def _verify(self, given: list[str | bytes]) -> Claims:
        if self._keys is None or self._verified is None:
            raise TokenRefused("a token, and this node takes none")
        scheme, _, token = str(given[0]).partition(" ")
        if len(given) != 1 or scheme.lower() != "bearer":
            raise TokenRefused("an authorization that is not one bearer token")
        return self._verified.verify(token, self._keys.now, now=self._wall_clock())

    def _by_certificate(self, context: Context) -> Caller:
        if self._identities is None:
            raise TokenRefused("no token")
        identities = self._identities.now
        # gRPC fills these in from a certificate that it has verified, and from nothing else.
        proven = context.auth_context()
        names = [
            f"{kind}:{name.decode(errors='replace')}"
            for kind in ("dns", "uri")
            for name in proven.get(f"peer_{kind}", ())
        ]
        known = known_as(names, identities)
        if known is None:
            raise TokenRefused(f"neither a token nor a certificate that is known ({names[:4]})")
        return Caller(known, identities[known])


class _Admitted:
    """One call, made by whom the gate has let in."""

    __slots__ = ("_context", "_gate", "_method")

    def __init__(self, gate: Gate, method: str, context: Context) -> None:
        self._gate = gate
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        async with Answering(self._context):
            _caller.set(self._gate.admit(self._method, self._context))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
