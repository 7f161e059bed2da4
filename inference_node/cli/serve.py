"""`inference-node serve`: wire store, engine and server together and run until told to leave."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adapter_store.errors import Untrusted
    from adapter_store.objects import ObjectStore
    from adapter_store.reader import Reader
    from adapter_store.record import BaseCard
    from adapter_store.settings import StoreSettings
    from adapter_store.signing import Verifier
    from inference_node.cli.settings import Configuration, NodeSettings
    from inference_node.cli.telling import Telling
    from inference_node.engine.loop import EngineLoop
    from inference_node.request import ModelInfo
    from inference_node.rpc.limits import ServerConfig
    from inference_node.tracing import Tracing

PLAYGROUND = "127.0.0.1:8090"


def serve(
    listen: Annotated[str | None, typer.Option(help="host:port; LORAPOOL_LISTEN.")] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder or model id; LORAPOOL_BASE_MODEL. Default: bundled."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; LORAPOOL_DEVICE.")] = None,
    metrics_listen: Annotated[
        str | None,
        typer.Option(help="host:port where Prometheus scrapes; LORAPOOL_METRICS_LISTEN."),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="text or json; LORAPOOL_LOG_FORMAT.")
    ] = None,
    playground: Annotated[
        bool, typer.Option("--playground", help=f"A page to try it, http://{PLAYGROUND}/.")
    ] = False,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure", help="Listen beyond loopback, in the clear; LORAPOOL_INSECURE=1."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help='Settings as TOML, e.g. listen = "127.0.0.1:1"; LORAPOOL_CONFIG.'),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Only say what is set and by what; secrets not."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --print-config: one JSON document.")
    ] = False,
) -> None:
    """Serve the base model and every adapter of the store over gRPC.

    All settings are LORAPOOL_* variables; a flag goes before a variable, a variable before the
    settings file. SIGTERM drains: running answers are finished.
    """
    from inference_node.cli.settings import load_configuration

    flags = {
        "listen": listen,
        "metrics_listen": metrics_listen,
        "log_format": log_format,
        "playground_listen": PLAYGROUND if playground else None,
        "insecure": insecure,
        "base_model": base_model,
        "device": device,
    }
    configuration = load_configuration(flags, config)
    if print_config:
        _print(configuration, as_json=as_json)
        return
    from inference_node.telemetry.lines import logging_to

    node = configuration.node
    with logging_to(sys.stderr, level=node.log_level, format=node.log_format):
        run(configuration)


def _print(configuration: Configuration, *, as_json: bool) -> None:
    from dataclasses import asdict

    from inference_node.cli.console import out
    from inference_node.cli.effective import effective

    settings = list(effective(configuration))
    if as_json:
        out({"settings": [asdict(setting) for setting in settings]})
        return
    for setting in settings:
        typer.echo(f"{setting.variable} = {setting.value}  ({setting.source})")


def run(configuration: Configuration) -> None:
    """Raises NodeError or StoreError when it cannot start; returns once drained."""
    import contextlib
    import logging
    import os

    from adapter_store.settings import load_settings as load_store_settings
    from inference_node.openmp import wait_briefly

    wait_briefly(os.environ)
    settings = configuration.node
    server_config = settings.server_config()
    settings.metrics_address()
    settings.playground_address()
    store_settings = load_store_settings(given=configuration.store)
    store = store_settings.open_store()
    verifier = store_settings.open_verifier(logging.getLogger("inference_node.store").warning)

    from inference_node.cli.page import open_playground
    from inference_node.cli.telling import open_audit, open_traces, telling, words
    from inference_node.engine.build import build_engine
    from inference_node.rpc.quotas import quota_table
    from inference_node.telemetry.refused import RefusedRecords

    tell, refused = words(settings), RefusedRecords()
    with contextlib.ExitStack() as stack:
        audit = stack.enter_context(open_audit(settings))
        traced = stack.enter_context(open_traces(settings))
        tell("loading the base model ...")
        config = settings.engine_config(settings.checkpoint())
        node = secrets.token_hex(8)
        engine = build_engine(
            config,
            reader=_reader(store, settings, store_settings, verifier, on_refused=refused.note),
            hints=store_settings.open_hints(node=node),
            quotas=quota_table(server_config.quotas),
            tracing=traced.tracing,
        )
        _meet(store, engine.card, tell)
        told = stack.enter_context(
            telling(settings, engine, refused=refused, audit=audit, traced=traced)
        )
        stack.enter_context(open_playground(settings, tell))
        engine.start()
        _serve(
            engine,
            server_config,
            store=store,
            store_settings=store_settings,
            verifier=verifier,
            node=node,
            told=told,
            tracing=traced.tracing,
            tell=tell,
        )
    tell("drained")


def _serve(
    engine: EngineLoop,
    config: ServerConfig,
    *,
    store: ObjectStore,
    store_settings: StoreSettings,
    verifier: Verifier | None,
    node: str,
    told: Telling,
    tracing: Tracing,
    tell: Callable[[str], None],
) -> None:
    import asyncio

    from adapter_store.reader import Reader
    from inference_node.rpc.server import Membership
    from inference_node.rpc.server import serve as serve_engine

    host, registry = config.listen.rpartition(":")[0], store_settings.open_registry()

    def ready(port: int) -> None:
        address = f"{host}:{port}" if port else config.listen
        for line in _banner(
            engine.info(), address, config.admin_listen, told.metrics, store_settings
        ):
            tell(line)

    asyncio.run(
        serve_engine(
            engine,
            config,
            on_ready=ready,
            open_reader=lambda: Reader(store, verifier=verifier),
            control=engine,
            fleet=None if registry is None else Membership(registry, node),
            witness=told.witness,
            tracing=tracing,
        )
    )


def _reader(
    store: ObjectStore,
    settings: NodeSettings,
    store_settings: StoreSettings,
    verifier: Verifier | None,
    *,
    on_refused: Callable[[], None],
) -> Reader:
    import logging

    from adapter_store.cache import ContentCache
    from adapter_store.reader import Reader
    from inference_node.cli.settings import MIB

    log = logging.getLogger("inference_node.store")
    cache = None
    if settings.cache_mb:
        cache = ContentCache(
            store_settings.cache_dir / "chunks",
            budget_bytes=settings.cache_mb * MIB,
            warn=log.warning,
        )

    def refused(error: Untrusted) -> None:
        on_refused()
        log.warning("a record is refused: %s", error)

    return Reader(store, cache=cache, verifier=verifier, on_refused=refused)


def _meet(store: ObjectStore, card: BaseCard, tell: Callable[[str], None]) -> None:
    """Check the store and register the base there, so that publishers can check against it.

    A store that breaks its promises is refused. One that is away, or only lets this node read,
    is not: the node serves what it can, and says so.
    """
    from adapter_store.bases import register_base
    from adapter_store.check import check_store
    from adapter_store.errors import StoreRefused, StoreUnavailable

    try:
        check_store(store)
        register_base(store, card)
    except StoreUnavailable as error:
        tell(f"warning: the store does not answer ({error}); adapters are served once it does")
    except StoreRefused as error:
        tell(f"warning: the store was not checked, this node may only read it ({error})")


def _banner(
    info: ModelInfo, address: str, admin: str, scraped: str, store: StoreSettings
) -> Iterator[str]:
    saved = 100 * (1 - info.base_bytes / info.base_bytes_bf16)
    pool = info.pool
    yield f"serving   {info.name} ({info.architecture}), base {info.base_fingerprint[:12]}"
    yield f"device    {info.device}, {info.kernel}"
    yield (
        f"base      {info.base_bytes / 2**20:.0f} MiB in 4-bit beside "
        f"{info.base_bytes_bf16 / 2**20:.0f} MiB in bf16 ({saved:.0f} % less)"
    )
    yield (
        f"pool      {pool.pages_total} pages of 8 ranks in {len(info.groups)} module groups, "
        f"rank up to {info.max_rank}"
    )
    yield f"store     {store.s3_endpoint or 'AWS'}, bucket {store.s3_bucket}"
    hints = "on" if store.redis_url else "none configured: the store is polled"
    yield f"hints     {hints}"
    yield f"trust     {store.trust_file or 'no trust file: signatures are not checked'}"
    yield f"orders    {admin or 'nowhere: LORAPOOL_ADMIN_LISTEN is not set'}"
    yield f"metrics   {scraped}"
    yield f"ready     {address} (gRPC: lorapool.v1, health, reflection)"
