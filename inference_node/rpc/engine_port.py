"""What the wire needs of an engine; `inference_node.engine.loop.EngineLoop` is the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from inference_node.request import ModelInfo, OnEvent, Request
from inference_node.text import ChatMessage


class PromptEncoder(Protocol):
    """The part of `inference_node.text.Tokenizer` that turns prompts into tokens."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> tuple[int, ...]: ...

    def written(self, token_ids: Sequence[int]) -> str:
        """What tokens look like, special ones too."""
        ...

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Raises InvalidRequest when the model has no chat template."""
        ...


class Engine(Protocol):
    """Accepts requests on any thread and answers each with events that end in one last event."""

    @property
    def tokenizer(self) -> PromptEncoder: ...

    def submit(self, request: Request, on_event: OnEvent) -> None:
        """Queue a request without blocking. Raises QueueFull, Draining, EngineFailure."""
        ...

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step; unknown and ended ids are fine."""
        ...

    def info(self) -> ModelInfo: ...

    def healthy(self) -> bool:
        """False once the engine cannot serve any more."""
        ...

    def drain(self, timeout: float) -> bool:
        """Take no new work and block until the rest has ended; False when time ran out."""
        ...

    def stop(self) -> None:
        """End at once; whatever still runs is told so."""
        ...
