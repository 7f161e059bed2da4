"""What is said of an answer beside its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_node.client import Answer, Served


def version(served: Served) -> str:
    """Which version answered."""
    if not served.adapter:
        return "base model"
    return (
        f"{served.adapter}@{served.version} generation {served.generation} "
        f"sha256:{served.digest[:12]}"
    )


def rate(answer: Answer) -> float:
    """Tokens a second after the first one."""
    decode = answer.timings.decode
    return (answer.usage.completion_tokens - 1) / decode if decode > 0 else 0.0
