"""`keygen` and `reclaim`, and how a command is told which key signs and whom to trust."""

from __future__ import annotations

import os
import secrets
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter_store.cli.console import Json, Name, Tenant, out, say, tell
from adapter_store.cli.outcome import next_steps
from adapter_store.cli.session import user, warn_once
from adapter_store.cli.store import open_configured

if TYPE_CHECKING:
    from adapter_store.record import Record

SIGN_KEY_VARIABLE = "LORAPOOL_SIGN_KEY_FILE"
TRUST_VARIABLE = "LORAPOOL_TRUST_FILE"


def _setting(variable: str) -> Any:
    """An option is the variable of the same meaning, for this run of the program."""

    def keep(file: Path | None) -> Path | None:
        if file is not None:
            os.environ[variable] = str(file)
        return file

    return keep


SignKey = Annotated[
    Path | None,
    typer.Option(
        help=f"Sign with this private key; {SIGN_KEY_VARIABLE}.",
        callback=_setting(SIGN_KEY_VARIABLE),
    ),
]
Trust = Annotated[
    Path | None,
    typer.Option(
        help=f"Believe only keys of this file; {TRUST_VARIABLE}.",
        callback=_setting(TRUST_VARIABLE),
    ),
]


def keygen(
    file: Annotated[Path, typer.Option("--out", help="Where the private key goes.")] = Path(
        "signing-key.pem"
    ),
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Make a signing key, and print the entry that makes a trust file of it.

    The private key lands in a file that only you may read, and never replaces another one. Paste
    the entry into the trust file of nodes and publishers, and narrow its scope.

    \b
    Example:
      adapter-store keygen --out alice.pem >> trust.toml
      adapter-store push ./pirate --name pirate --sign-key alice.pem
    """
    from adapter_store.layout import DEFAULT_TENANT, check_id
    from adapter_store.provenance import generate_key, trust_entry

    with next_steps():
        owner = check_id("tenant", tenant or os.environ.get("LORAPOOL_TENANT") or DEFAULT_TENANT)
        signer = generate_key(file)
    entry = trust_entry(signer, name=f"{user()}@{socket.gethostname()}", tenant=owner)
    if json:
        out({"key": signer.key_id, "file": str(file), "trust_entry": entry})
        return
    say(f"key {signer.key_id} is in {file}; paste this into the trust file:")
    typer.echo(entry)


def reclaim(
    name: Name,
    empty: Annotated[
        bool, typer.Option("--empty", help="Serve nothing, whatever was served last.")
    ] = False,
    sign_key: SignKey = None,
    trust: Trust = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Take an adapter back after somebody wrote records that no trusted key signed.

    Writes one signed record on top of them that says what the last trusted one said. Nothing of
    theirs is adopted; afterwards publishing goes on as before.

    \b
    Example:
      adapter-store reclaim pirate --sign-key alice.pem --trust trust.toml
    """
    from adapter_store.check import check_store
    from adapter_store.draft import Author
    from adapter_store.errors import InvalidSetting
    from adapter_store.layout import check_id
    from adapter_store.reclaim import reclaim as take_back

    def author() -> Author:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Author(secrets.token_hex(16), 1, f"{user()}@{socket.gethostname()}", now)

    with next_steps():
        settings, store = open_configured()
        owner = check_id("tenant", tenant or settings.tenant)
        signer, verifier = settings.open_signer(), settings.open_verifier(warn_once())
        if signer is None or verifier is None:
            raise InvalidSetting(
                "reclaim needs a signing key and a trust file",
                hint="give --sign-key and --trust, or set their variables: "
                "adapter-store reclaim --help",
            )
        check_store(store)
        done = take_back(
            store,
            tenant=owner,
            adapter=check_id("adapter", name),
            signer=signer,
            verifier=verifier,
            author=author,
            clock=time.monotonic,
            sleep=time.sleep,
            empty=empty,
        )
    if done is not None:
        settings.open_announcer().announce(owner, name, done.gen)
    if json:
        out(_document(owner, name, done, signer.key_id))
    elif done is None:
        tell(f"the newest record of {name} is trusted, nothing to do")
    else:
        serves = done.active.label if done.active else "nothing"
        tell(f"took {name} back  generation {done.gen} serves {serves}")


def _document(tenant: str, name: str, done: Record | None, key_id: str) -> dict[str, Any]:
    active = done.active if done else None
    return {
        "tenant": tenant,
        "adapter": name,
        "reclaimed": done is not None,
        "generation": done.gen if done else None,
        "version": active.label if active else None,
        "key": key_id,
    }
