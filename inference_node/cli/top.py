"""`inference-node top`: a node at work, live, or the whole fleet."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer

from inference_node.cli import fleet
from inference_node.cli.board import Board
from inference_node.cli.console import out, say
from inference_node.cli.reach import (
    DEFAULT_ADDRESS,
    Address,
    Ca,
    Cert,
    Key,
    Tls,
    TokenFile,
    open_client,
    open_operator,
)
from inference_node.errors import NodeError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from inference_node.client import Client, Operator, PoolUse

REFRESH = 0.5
SHOWN = 16


def top(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Look for --seconds, print, leave.")] = False,
    seconds: Annotated[float, typer.Option(min=0.05, help="How long --once looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: one JSON object.")] = False,
    whole_fleet: Annotated[
        bool,
        typer.Option("--fleet", help="Every node that tells of itself in LORAPOOL_REDIS_URL."),
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    admin: Annotated[
        str,
        typer.Option(
            envvar="LORAPOOL_ADMIN_LISTEN",
            help="The node's address for operators; without, adapters are not shown.",
        ),
    ] = "",
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Watch a node: tokens a second, the queue, the pool's tiers, hot adapters, swaps.

    With --fleet: every node's load and rate, and adapters that nodes serve in different
    generations. Ctrl-C leaves.
    """
    if as_json and not once:
        raise typer.BadParameter("goes with --once", param_hint="--json")
    if whole_fleet:
        fleet.refuse_node_options(context)
        with contextlib.suppress(KeyboardInterrupt):
            fleet.watch(seconds=seconds if once else None, as_json=as_json)
        return
    client = open_client(address, tls=tls, ca=ca, cert=cert, key=key, token_file=token_file)
    operator = None
    if admin:
        operator = open_operator(admin, tls=tls, ca=ca, cert=cert, key=key, token_file=token_file)
    with client:
        feed = Feed(client, operator)
        try:
            feed.start()
            if once:
                feed.look_for(seconds)
                _print(feed.board, as_json=as_json)
            else:
                _live(feed)
        except KeyboardInterrupt:
            pass
        finally:
            feed.stop()


class Feed:
    """Fills a board from a node on threads of its own."""

    def __init__(self, client: Client, operator: Operator | None) -> None:
        self.board = Board()
        self._client = client
        self._operator = operator
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: NodeError | None = None
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """The first look. Raises NodeError where the node does not answer."""
        self.refresh()
        if self._operator is not None:
            self._watching.start()

    def refresh(self) -> None:
        """Ask what any caller may know. Raises NodeError, also what ended the watch."""
        if self._error is not None:
            raise self._error
        info = self._client.model_info()
        with self._lock:
            self.board.take_info(info, at=time.monotonic())

    def look_for(self, seconds: float) -> None:
        """Go on looking so long. Raises NodeError."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._stop.wait(min(left, REFRESH))
            self.refresh()

    def stop(self) -> None:
        self._stop.set()
        if self._operator is not None:
            self._operator.close()
            if self._watching.is_alive():
                self._watching.join(2.0)

    def _watch(self) -> None:
        assert self._operator is not None
        try:
            for change in self._operator.watch():
                with self._lock:
                    self.board.take(change, at=time.monotonic())
        except NodeError as error:
            if not self._stop.is_set():
                self._error = error


def _print(board: Board, *, as_json: bool) -> None:
    if as_json:
        out(board.document(time.monotonic()))
        return
    from rich.console import Console

    Console().print(_picture(board))


def _live(feed: Feed) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not sys.stdout.isatty():
        say("this is no terminal: --once prints one picture")
    with Live(_picture(feed.board), console=console, screen=console.is_terminal) as live:
        while True:
            feed.look_for(REFRESH)
            live.update(_picture(feed.board), refresh=True)


def _picture(board: Board) -> RenderableType:
    from rich.console import Group

    now = time.monotonic()
    parts: list[RenderableType] = [*_head(board, now), ""]
    if board.pool is None:
        parts.append("adapters are shown with --admin (LORAPOOL_ADMIN_LISTEN)")
    else:
        parts += [*_pool(board.pool), "", *_versions(board, now)]
    if board.swaps:
        parts += ["", *_swaps(board, now)]
    return Group(*parts)


def _head(board: Board, now: float) -> list[str]:
    info = board.info
    lines = [] if info is None else [f"{info.name}  {info.device}  {info.kernel}"]
    work = (
        f"{board.tokens_per_second(now):8.1f} tokens/s   {board.running} running   "
        f"{board.waiting} waiting"
    )
    if board.load is not None:
        work += f"   {board.load.completed} answered   {board.load.failed} failed"
    elif info is not None:
        work += f"   {info.pool.pages_free} of {info.pool.pages_total} pages free"
    return [*lines, work]


def _pool(pool: PoolUse) -> list[RenderableType]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("PAGES")
    for name in ("TOTAL", "FREE", "IDLE", "HELD", "PINNED", "HEADROOM"):
        table.add_column(name, justify="right")
    for group in pool.groups:
        numbers = (group.total, group.free, group.idle, group.held, group.pinned, group.headroom)
        table.add_row(group.name, *map(str, numbers))
    tiers = (
        f"{pool.resident} on the device, {pool.leases} leases, {pool.fetching} fetched now, "
        f"{pool.waiting} wait for pages; host {pool.host_versions}, "
        f"{pool.host_bytes / 2**20:.0f} of {pool.host_budget / 2**20:.0f} MiB; "
        f"names confirmed {pool.stale_seconds:.0f} s ago at most"
    )
    return [table, tiers]


def _versions(board: Board, now: float) -> list[RenderableType]:
    from rich.table import Table

    rates = dict(board.hottest(now))
    table = Table(box=None, pad_edge=False)
    for name in ("ADAPTER", "VERSION", "TIER", "STATE"):
        table.add_column(name)
    for name in ("LEASES", "TOKENS/S"):
        table.add_column(name, justify="right")
    hot = sorted(
        board.versions,
        key=lambda v: -rates.get((v.served.tenant, v.served.adapter), 0.0),
    )
    for version in hot[:SHOWN]:
        served = version.served
        rate = rates.get((served.tenant, served.adapter), 0.0)
        table.add_row(
            served.adapter if served.tenant == "default" else f"{served.tenant}/{served.adapter}",
            f"{served.version} ({served.generation})",
            f"{version.tier.value}{', pinned' if version.pinned else ''}",
            version.state.value,
            str(version.leases),
            f"{rate:.1f}" if rate else "",
        )
    if len(hot) > SHOWN:
        return [table, f"and {len(hot) - SHOWN} more: inference-node adapters ls"]
    return [table]


def _swaps(board: Board, now: float) -> list[str]:
    return [
        f"{swap.adapter}: {swap.before} -> {swap.after} (generation {swap.generation}), "
        f"{now - swap.at:.0f} s ago"
        for swap in reversed(board.swaps)
    ]
