"""Requests by the version that served them, for whoever watches a canary."""

from __future__ import annotations

import threading
from collections import OrderedDict

from adapter_store.arms import ArmCount, Arms
from adapter_store.fleet import Name
from inference_node.ended import Ended, Outcome
from inference_node.rpc.accounts import Witness

KEPT_ADAPTERS = 256
"""Those that were served last."""
KEPT_VERSIONS = 4
"""Of one adapter."""
_COUNTED = (Outcome.COMPLETED, Outcome.FAILED, Outcome.EXPIRED)


class ArmBook:
    """A witness that counts and passes on. Safe for several threads."""

    def __init__(self, beside: Witness) -> None:
        self._beside = beside
        self._lock = threading.Lock()
        self._of: OrderedDict[Name, OrderedDict[str, ArmCount]] = OrderedDict()

    def ended(self, ended: Ended) -> None:
        if ended.served is not None and ended.served.adapter and ended.outcome in _COUNTED:
            with self._lock:
                self._count(ended)
        self._beside.ended(ended)

    def answered(self, method: str, code: str) -> None:
        self._beside.answered(method, code)

    def leaving(self) -> None:
        self._beside.leaving()

    def arms(self) -> dict[Name, Arms]:
        """Of each adapter that more than one version has served."""
        with self._lock:
            return {name: dict(arms) for name, arms in self._of.items() if len(arms) > 1}

    def _count(self, ended: Ended) -> None:
        assert ended.served is not None
        name = (ended.served.tenant, ended.served.adapter)
        arms = self._of.setdefault(name, OrderedDict())
        digest = ended.served.digest
        count, before = _as_count(ended), arms.get(digest)
        arms[digest] = count if before is None else before + count
        arms.move_to_end(digest)
        self._of.move_to_end(name)
        if len(arms) > KEPT_VERSIONS:
            arms.popitem(last=False)
        if len(self._of) > KEPT_ADAPTERS:
            self._of.popitem(last=False)


def _as_count(ended: Ended) -> ArmCount:
    match ended.outcome:
        case Outcome.COMPLETED:
            return ArmCount(completed=1, tokens=ended.generated_tokens, seconds=ended.seconds)
        case Outcome.FAILED:
            return ArmCount(failed=1)
        case _:
            return ArmCount(late=1)
