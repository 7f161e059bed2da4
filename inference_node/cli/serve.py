"""`inference-node serve`: wire store, engine and server together and run until told to leave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inference_node.cli.console import say
from inference_node.errors import BadConfiguration

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapter_store.errors import Untrusted
    from adapter_store.objects import ObjectStore
    from adapter_store.reader import Reader
    from adapter_store.record import BaseCard
    from adapter_store.settings import StoreSettings
    from adapter_store.signing import Verifier
    from inference_node.cli.settings import Configuration, NodeSettings
    from inference_node.engine.loop import EngineLoop
    from inference_node.request import ModelInfo
    from inference_node.telemetry.node import Metrics
    from inference_node.telemetry.refused import RefusedRecords

NO_METRICS = "nowhere: LORAPOOL_METRICS_LISTEN is not set"


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
        "insecure": insecure,
        "base_model": base_model,
        "device": device,
    }
    configuration = load_configuration(flags, config)
    if print_config:
        _print(configuration, as_json=as_json)
    else:
        run(configuration)


def _log(level: str) -> None:
    """To stderr. Others' loggers say warnings at most: botocore writes down what signs requests."""
    import logging

    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    for ours in ("inference_node", "adapter_store"):
        logging.getLogger(ours).setLevel(level)


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
    import asyncio
    import contextlib
    import logging
    import secrets

    settings = configuration.node
    _log(settings.log_level)
    server_config = settings.server_config()
    metrics_address = settings.metrics_address()

    from adapter_store.settings import load_settings as load_store_settings

    store_settings = load_store_settings(given=configuration.store)
    store = store_settings.open_store()
    verifier = store_settings.open_verifier(logging.getLogger("inference_node.store").warning)

    from adapter_store.reader import Reader
    from inference_node.engine.build import build_engine
    from inference_node.rpc.accounts import NOBODY
    from inference_node.rpc.server import Membership
    from inference_node.rpc.server import serve as serve_engine
    from inference_node.telemetry.refused import RefusedRecords

    say("loading the base model ...")
    config = settings.engine_config(settings.checkpoint())
    node, registry = secrets.token_hex(8), store_settings.open_registry()
    refused = RefusedRecords()
    engine = build_engine(
        config,
        reader=_reader(store, settings, store_settings, verifier, on_refused=refused.note),
        hints=store_settings.open_hints(node=node),
    )
    _meet(store, engine.card)
    host = server_config.listen.rpartition(":")[0]
    metrics = _metrics(engine, settings, metrics_address, refused) if metrics_address else None
    scraped = f"http://{metrics.address}/metrics" if metrics else NO_METRICS
    with metrics or contextlib.nullcontext():
        engine.start()
        asyncio.run(
            serve_engine(
                engine,
                server_config,
                on_ready=lambda port: _banner(
                    engine.info(),
                    f"{host}:{port}" if port else server_config.listen,
                    server_config.admin_listen,
                    scraped,
                    store_settings,
                ),
                open_reader=lambda: Reader(store, verifier=verifier),
                control=engine,
                fleet=None if registry is None else Membership(registry, node),
                witness=metrics or NOBODY,
            )
        )
    say("drained")


def _metrics(
    engine: EngineLoop, settings: NodeSettings, listen: str, refused: RefusedRecords
) -> Metrics:
    """Raises BadConfiguration when there is no Prometheus client, or the address cannot be had."""
    try:
        from inference_node.telemetry.node import Metrics
    except ModuleNotFoundError as error:
        raise BadConfiguration(
            f"LORAPOOL_METRICS_LISTEN is set, and {error.name} is not installed",
            hint="pip install 'lorapool[node]'",
        ) from error
    return Metrics(
        engine, listen=listen, adapters=settings.metrics_adapters, records_refused=refused
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


def _meet(store: ObjectStore, card: BaseCard) -> None:
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
        say(f"warning: the store does not answer ({error}); adapters are served once it does")
    except StoreRefused as error:
        say(f"warning: the store was not checked, this node may only read it ({error})")


def _banner(info: ModelInfo, address: str, admin: str, scraped: str, store: StoreSettings) -> None:
    saved = 100 * (1 - info.base_bytes / info.base_bytes_bf16)
    pool = info.pool
    say(f"serving   {info.name} ({info.architecture}), base {info.base_fingerprint[:12]}")
    say(f"device    {info.device}, {info.kernel}")
    say(
        f"base      {info.base_bytes / 2**20:.0f} MiB in 4-bit beside "
        f"{info.base_bytes_bf16 / 2**20:.0f} MiB in bf16 ({saved:.0f} % less)"
    )
    say(
        f"pool      {pool.pages_total} pages of 8 ranks in {len(info.groups)} module groups, "
        f"rank up to {info.max_rank}"
    )
    say(f"store     {store.s3_endpoint or 'AWS'}, bucket {store.s3_bucket}")
    hints = "on" if store.redis_url else "none configured: the store is polled"
    say(f"hints     {hints}")
    say(f"trust     {store.trust_file or 'no trust file: signatures are not checked'}")
    say(f"orders    {admin or 'nowhere: LORAPOOL_ADMIN_LISTEN is not set'}")
    say(f"metrics   {scraped}")
    say(f"ready     {address} (gRPC: lorapool.v1, health, reflection)")
