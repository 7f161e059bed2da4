"""Text to tokens and back: the checkpoint's tokenizer, incremental decoding, stop strings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inference_node.errors import InvalidRequest, UnsupportedModel


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


class Tokenizer:
    """A checkpoint's own tokenizer. Safe to share between threads: nothing here changes it."""

    def __init__(self, checkpoint: str) -> None:
        """Load from a folder or model id. Raises UnsupportedModel without a fast tokenizer."""
        from transformers import AutoTokenizer

        self._chat = AutoTokenizer.from_pretrained(checkpoint)
        backend = getattr(self._chat, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedModel(f"{checkpoint} has no fast tokenizer (tokenizer.json)")
        self._backend: Any = backend
        self.vocab_size: int = len(self._chat)
        self.eos_token_ids = _eos_token_ids(checkpoint, self._chat.eos_token_id)
        self.special_token_ids = frozenset(
            index
            for index, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, with the special tokens the model puts before a prompt."""
        return tuple(self._backend.encode(text).ids)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of a conversation up to where the model speaks.

        Raises InvalidRequest when the model has no chat template, or the template refuses.
        """
        from jinja2 import TemplateError

        if not self._chat.chat_template:
            raise InvalidRequest(
                "chat", "the base model has no chat template", hint="send `prompt` instead"
            )
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self._chat.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidRequest("chat", f"the chat template refuses: {error}") from error
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids` without special tokens."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=True))

    def written(self, token_ids: Sequence[int]) -> str:
        """What `token_ids` look like, special ones too; U+FFFD for part of a character."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=False))

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self)


def _eos_token_ids(checkpoint: str, own: int | None) -> frozenset[int]:
    """Every id that any of the checkpoint's files calls end of text."""
    from transformers.utils.hub import cached_file

    found: set[int] = set() if own is None else {own}
    for name in ("generation_config.json", "config.json"):
        path = cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        with open(path, encoding="utf-8") as file:
            value: Any = json.load(file).get("eos_token_id")
        found.update([value] if isinstance(value, int) else value or ())
    return frozenset(found)


class Detokenizer:
    """Decodes one token at a time, whole characters only, in constant time per token.

    A token alone has no text of its own: a character may span tokens, and some decoders strip a
    space at the start of what they are given. So a short window of tokens is decoded each time,
    and only what lies past the part already handed out, and cannot change any more, is new.
    """

    _LIMIT = 16
    """Longest window at the end of a character, twice that in a run of broken ones. Trimming to
    half keeps the cost constant."""
    _SETTLED = 4
    """A character has at most 4 bytes, so after 4 more tokens a broken one stays broken."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._given = 0
        """Characters of the decoded window already handed out."""
        self._unsettled = 0
        """Tokens since the window last ended in a whole character."""
        self._ends: list[int] = []
        """Positions in the window where it ended in a whole character: it may be cut there."""

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty inside a character and for special tokens."""
        if token_id in self._tokenizer.special_token_ids:
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        whole = text.rstrip("\ufffd")
        self._unsettled = 0 if whole == text else self._unsettled + 1
        if self._unsettled == 0:
            self._ends.append(len(self._window))
        if self._unsettled > self._SETTLED:
            whole = text[:-1]
        new = whole[self._given :]
        self._given += len(new)
        room = self._LIMIT if self._unsettled == 0 else 2 * self._LIMIT
        if len(self._window) > room:
            self._trim(pending=len(text) - self._given)
        return new

    def flush(self) -> str:
        """What is left at the end, a broken last character shown as U+FFFD."""
        rest = self._tokenizer.decode(self._window)[self._given :]
        self._window, self._given, self._unsettled, self._ends = [], 0, 0, []
        return rest

    def _trim(self, pending: int) -> None:
        # A decoder that falls back to bytes shows a whole run of them as broken while its last
        # character is incomplete, so cut between characters, unless the bytes make none at all.
        half = self._LIMIT // 2
        cut = max((end for end in self._ends if end <= half), default=half)
        self._window = self._window[cut:]
        self._ends = [end - cut for end in self._ends if end > cut]
        self._given = len(self._tokenizer.decode(self._window)) - pending


@dataclass(frozen=True, slots=True)
class StopScan:
    """What one piece of text leads to."""

    emit: str
    """Text that is certainly not part of a stop string."""
    matched: str | None
    """The stop string that came up; the answer ends at `emit`."""


class StopMatcher:
    """Finds stop strings in text that arrives in pieces, the same however it is cut.

    The stop string that is completed first wins; of those completed by the same character, the
    longest. Text that may be the beginning of one is held back. One Knuth-Morris-Pratt automaton
    per stop string: time is linear in the text, whatever the strings.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """Raises ValueError on an empty stop string."""
        self._stops = sorted(set(stops), key=len, reverse=True)
        self.never = not self._stops
        """There is nothing to find, and nothing is held."""
        if "" in self._stops:
            raise ValueError("an empty stop string would end every answer at once")
        self._failure = [_failure_table(stop) for stop in self._stops]
        self._state = [0] * len(self._stops)
        self._held = ""

    def feed(self, text: str, *, heed: bool = True) -> StopScan:
        """Take the next piece. After a match the matcher is spent.

        Unless `heed`, a stop string that this piece completes is text like any other.
        """
        if self.never:
            return StopScan(text, None)
        buffer = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            matched = self._step(character)
            if matched is not None and heed:
                self._held = ""
                return StopScan(buffer[: end - len(matched)], matched)
        split = len(buffer) - max(self._state)
        self._held = buffer[split:]
        return StopScan(buffer[:split], None)

    def flush(self) -> str:
        """Held text, once no more is coming."""
        rest, self._held = self._held, ""
        self._state = [0] * len(self._stops)
        return rest

    def _step(self, character: str) -> str | None:
        """Advance every automaton; the longest stop string this character completes."""
        matched = None
        for index, stop in enumerate(self._stops):
            state = self._state[index]
            while state and stop[state] != character:
                state = self._failure[index][state - 1]
            state += stop[state] == character
            self._state[index] = state
            if state == len(stop):
                matched = matched or stop
                self._state[index] = self._failure[index][state - 1]
        return matched


def _failure_table(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix too."""
    table = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[length] != stop[index]:
            length = table[length - 1]
        length += stop[length] == stop[index]
        table[index] = length
    return table
