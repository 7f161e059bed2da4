"""Ids for requests that bring none: 128 random bits, which nobody guesses."""

from __future__ import annotations

import secrets

DRAWN = 64
"""At once: drawing is a system call, and gives the turn to other threads."""
_DIGITS = 32


class RequestIds:
    """Each call makes one. Safe for threads."""

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def __call__(self) -> str:
        while True:
            try:
                return self._drawn.pop()
            except IndexError:
                digits = secrets.token_hex(DRAWN * _DIGITS // 2)
                self._drawn.extend(
                    [digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS)]
                )
