"""T15: every RPC with every kind of credential, over mutual TLS, on a node with a real engine.

The RPCs are read from the protos' descriptors: one without a case here, or without a policy in the
product, is a violation. What is forbidden must answer byte for byte like what does not exist, and
as soon (Kolmogorov-Smirnov).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any
from unittest import mock

import grpc

from adapter_store.errors import NotFound
from inference_node.adapters.outcomes import as_node_error
from inference_node.errors import Forbidden, Unauthenticated
from inference_node.rpc import auth, servicers, tokens
from inference_node.rpc.auth import POLICIES, Anyone, Grant
from inference_node.rpc.scopes import Role, Scope
from tests.chaos.bench import Bench
from tests.chaos.credentials import ADAPTER, CREDENTIALS, TENANT, Credential, Verdict
from tests.chaos.guarded_node import (
    CASES,
    GENERATE,
    GET_ADAPTER,
    HIDDEN,
    Guarded,
    guarded_node,
)
from tests.chaos.isolation import ACROSS, ATTEMPTS, SENSITIVE, same_spread
from tests.chaos.row import Row
from tests.inference_node.rpc.rpcs import every_rpc

SAMPLES, FEW = 1000, 100
"""For the clock, at scale 1 and at least."""
# Unpinning and unloading say of what is not on the node that it is not, whether it exists or not.
NOT_THERE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
ABSENT = "absent"
"""As long as ADAPTER: the answers are compared byte by byte."""


def run(scale: float, seed: int, bench: Bench) -> Row:
    """Every credential with every RPC, whatever the scale; at scale 1, 1,000 samples each."""
    samples = max(FEW, round(SAMPLES * scale))
    with guarded_node(bench.folder) as guarded:
        violations = _table(guarded, CASES)
        clocks = {path: _clock(guarded, path, samples, seed) for path in (GENERATE, GET_ADAPTER)}
        violations += [
            f"seed {seed}: {path}: forbidden takes another time than absent: {clock.p:.1e}"
            for path, clock in clocks.items()
            if clock.p <= ACROSS
        ]
        controls = _controls(guarded, seed)
    return Row(
        id="T15",
        cases=len(every_rpc()) * len(CREDENTIALS),
        unit="RPCs with credentials",
        violations=violations,
        controls=controls,
        seeds=str(seed),
        figures={
            "rpcs": len(every_rpc()),
            "credentials": len(CREDENTIALS),
            "samples": samples,
            **_figures("generate", clocks[GENERATE]),
            **_figures("get_adapter", clocks[GET_ADAPTER]),
        },
    )


def _figures(name: str, clock: Clock) -> dict[str, float]:
    return {
        f"{name}_audits": clock.attempts,
        f"{name}_p_forbidden_absent": clock.p,
        f"{name}_median_ms_forbidden": round(clock.forbidden * 1000, 3),
        f"{name}_median_ms_absent": round(clock.absent * 1000, 3),
    }


def _table(guarded: Guarded, paths: Iterable[str]) -> list[str]:
    """Every credential with these RPCs; what came out otherwise than it must."""
    found = [f"{path} has no case here" for path in every_rpc() if path not in CASES]
    found += [f"{path} has no policy" for path in every_rpc() if path not in POLICIES]
    for path in paths:
        absent = guarded.call(path, CREDENTIALS[0], adapter=ABSENT)
        for credential in CREDENTIALS:
            before = len(guarded.asked)
            answer = guarded.call(path, credential)
            expected = _expected(path, credential.verdict)
            where = f"{path.rpartition('/')[2]} with {credential.name}"
            if credential.verdict is Verdict.UNSEEN and CASES[path].names:
                if answer != absent.renamed(ABSENT, ADAPTER) or answer.code not in NOT_THERE:
                    found.append(f"{where}: {answer}, and for what does not exist {absent}")
            elif answer.code is not expected:
                found.append(f"{where}: {answer.code.name}, not {expected.name}")
            elif credential.verdict is Verdict.UNSEEN and ADAPTER.encode() in answer.body:
                found.append(f"{where}: the answer names what is not to be seen")
            elif expected is not grpc.StatusCode.OK and len(guarded.asked) != before:
                found.append(f"{where}: refused, and the engine had it all the same")
    return found


def _expected(path: str, verdict: Verdict) -> grpc.StatusCode:
    code, policy = grpc.StatusCode, POLICIES.get(path)
    if verdict is Verdict.UNHEARD:
        return code.UNAVAILABLE
    if policy is Anyone.STRANGER:
        return code.OK
    if verdict is Verdict.UNKNOWN:
        return code.UNAUTHENTICATED
    if verdict is Verdict.ROLELESS and isinstance(policy, Role):
        return code.PERMISSION_DENIED
    return code.OK


@dataclass(frozen=True, slots=True)
class Clock:
    """What the times of forbidden and absent names told."""

    p: float
    attempts: int
    forbidden: float
    absent: float


def _clock(guarded: Guarded, path: str, samples: int, seed: int, *, names: int = HIDDEN) -> Clock:
    """One caller asks for adapters that are hidden from it, and for as many that do not exist."""
    scope = {"tenants": [TENANT], "adapters": ["absent-*"], "roles": ["generate", "catalog"]}
    looker = Credential("looker", Verdict.UNSEEN, lambda i: i.token(lorapool=scope))
    chance, attempts = random.Random(seed), 0
    while attempts < ATTEMPTS:
        attempts += 1
        times: dict[str, list[float]] = {"hidden": [], "absent": []}
        for number in range(attempts * samples, (attempts + 1) * samples):
            for kind in chance.sample(sorted(times), 2):
                begun = time.perf_counter()
                answer = guarded.call(path, looker, adapter=f"{kind}-{number % names}")
                times[kind].append(time.perf_counter() - begun)
                assert answer.code is grpc.StatusCode.NOT_FOUND, answer
        p = same_spread(times["hidden"], times["absent"])
        if p > ACROSS:
            break
    return Clock(p, attempts, median(times["hidden"]), median(times["absent"]))


def _controls(guarded: Guarded, seed: int) -> dict[str, bool]:
    """Each bug, and whether the table or the clock shows it."""

    def shown(*bug: Any) -> bool:
        with ExitStack() as bugs:
            for patch in bug:
                bugs.enter_context(patch)
            # What a bug has let in is not to be remembered when the next one has its turn.
            bugs.callback(guarded.issuer.jwks.touch)
            guarded.issuer.jwks.touch()
            return bool(_table(guarded, [GENERATE]))

    def patched(room: Any, name: str, bug: Any) -> Any:
        return mock.patch.object(room, name, bug)

    found = {
        "the scope is not looked at": shown(patched(Scope, "covers", lambda *_: True)),
        "the role is not looked at": shown(
            patched(auth.Gate, "admit", lambda gate, _, context: gate._authenticate(context))
        ),
        "the token names its algorithm": shown(patched(tokens.jwt, "decode", _trusting)),
        "the audience is not looked at": shown(patched(tokens.jwt, "decode", _deaf)),
        "the time is not looked at": shown(patched(tokens, "_times", lambda *_: (-inf, inf))),
        "a bad token counts as none": shown(patched(auth.Gate, "_authenticate", _forgiving)),
        "forbidden says so": shown(patched(servicers, "grant", _saying_so)),
    }
    with mock.patch.dict(POLICIES):  # type: ignore[arg-type]
        del POLICIES[GENERATE]  # type: ignore[attr-defined]
        found["an RPC without a policy"] = bool(_table(guarded, ()))
    with patched(servicers, "grant", _at_once):
        assert not _table(guarded, [GENERATE]), "this bug is for the clock alone"
        # What a look-up takes where the store is not this process's memory, of names never asked.
        guarded.store.delay = 0.005
        clock = _clock(guarded, GENERATE, FEW, seed, names=ATTEMPTS * FEW)
        found["forbidden answers at once"] = clock.p < SENSITIVE
    return found


_decode = tokens.jwt.decode


def _trusting(token: str, key: Any, **how: Any) -> Any:
    """Signatures by whatever algorithm the token names; HS256 with the key's PEM for a secret."""
    if tokens.jwt.get_unverified_header(token)["alg"] in ("none", "HS256"):
        return _decode(token, options={"verify_signature": False})
    return _decode(token, key, **how)


def _deaf(token: str, key: Any, **how: Any) -> Any:
    how["options"] = {**how["options"], "verify_aud": False}
    return _decode(token, key, **{name: how[name] for name in how if name != "audience"})


_authenticate = auth.Gate._authenticate


def _forgiving(gate: auth.Gate, context: Any) -> auth.Caller:
    try:
        return _authenticate(gate, context)
    except Unauthenticated:
        with suppress(tokens.TokenRefused):
            return gate._by_certificate(context)
        raise


def _saying_so(tenant: str, adapter: str) -> Grant:
    if not auth.caller().scope.covers(tenant, adapter):
        raise Forbidden("not for you")
    return Grant(tenant, adapter, "", "")


def _at_once(tenant: str, adapter: str) -> Grant:
    if not auth.caller().scope.covers(tenant, adapter):
        raise as_node_error(NotFound("not to be seen"), adapter)
    return Grant(tenant, adapter, "", "")
