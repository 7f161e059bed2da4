"""One line for every request that ended: who asked, what served it, how it went; never what was
said."""

from __future__ import annotations

import logging

from inference_node.ended import Ended, Outcome
from inference_node.telemetry.lines import FIELDS

log = logging.getLogger("inference_node.requests")


class RequestLog:
    """A witness of the server's calls."""

    def ended(self, ended: Ended) -> None:
        level = logging.WARNING if ended.outcome is Outcome.FAILED else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, _sentence(ended), extra={FIELDS: told(ended)})

    def answered(self, method: str, code: str) -> None: ...

    def leaving(self) -> None: ...


def told(ended: Ended) -> dict[str, object]:
    """The request by fields, as logs and audits have them."""
    fields: dict[str, object] = {
        "method": ended.method,
        "request_id": ended.request_id,
        "caller": ended.caller,
        "tenant": ended.tenant,
        "asked": ended.adapter,
        "outcome": ended.outcome.value,
        "reason": ended.reason,
        "prompt_tokens": ended.prompt_tokens,
        "cached_tokens": ended.cached_tokens,
        "generated_tokens": ended.generated_tokens,
        "seconds": round(ended.seconds, 6),
    }
    if (served := ended.served) is not None:
        fields |= {
            "adapter": served.adapter,
            "version": served.version,
            "generation": served.generation,
            "digest": served.digest,
        }
    if ended.first_token is not None:
        fields["first_token_seconds"] = round(ended.first_token, 6)
    if (timings := ended.timings) is not None:
        fields |= {
            "queue_seconds": round(timings.queue, 6),
            "adapter_load_seconds": round(timings.adapter_load, 6),
            "decode_seconds": round(timings.decode, 6),
        }
    return fields


def _sentence(ended: Ended) -> str:
    served = ended.served
    by = "nothing"
    if served is not None:
        by = "the base"
        if served.adapter:
            by = f"{served.adapter}@{served.version} gen {served.generation} {served.digest[:12]}"
    return (
        f"request {ended.request_id or '-'} of {ended.tenant or '-'} {ended.outcome.value} "
        f"{ended.reason}, served by {by}, {ended.prompt_tokens}+{ended.generated_tokens} tokens "
        f"in {ended.seconds:.3f} s"
    )
