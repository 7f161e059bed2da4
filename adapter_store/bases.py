"""Cards of base models: written once by a node that has the model, read by every publisher."""

from __future__ import annotations

import time
from collections.abc import Callable

from adapter_store import layout
from adapter_store.errors import IntegrityError, NotFound
from adapter_store.objects import ObjectStore
from adapter_store.record import BaseCard, decode_base_card
from adapter_store.upload import put_once


def register_base(
    store: ObjectStore, card: BaseCard, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Write a base model's card; the same card again is fine.

    Raises IntegrityError when another card has this fingerprint, StoreUnavailable, StoreRefused.
    """
    key, body = layout.base_card_key(card.fingerprint), card.encode()
    put_once(store, key, body, sleep=sleep)
    if store.get(key) != body:
        raise IntegrityError(
            f"base model {card.fingerprint} is registered with another card",
            hint="a fingerprint names one base; was it computed by another version?",
        )


def load_base(store: ObjectStore, fingerprint: str) -> BaseCard:
    """The card of one base model. Raises NotFound, IntegrityError."""
    try:
        card = decode_base_card(store.get(layout.base_card_key(fingerprint)))
    except NotFound as error:
        raise NotFound(
            f"base model {fingerprint} is not registered", hint="register it from a node first"
        ) from error
    if card.fingerprint != fingerprint:
        raise IntegrityError(f"the card of base model {fingerprint} is another's")
    return card


def list_bases(store: ObjectStore) -> list[BaseCard]:
    """Every registered base model. Raises IntegrityError on a damaged card."""
    prefix = layout.base_cards_prefix()
    cards: list[BaseCard] = []
    token: str | None = None
    while True:
        page = store.list(prefix, token=token)
        for key in page.keys:
            cards.append(load_base(store, key.removeprefix(prefix).removesuffix(".json")))
        token = page.next_token
        if token is None:
            return cards
