"""Everything real: SeaweedFS, Valkey, and a node in a process of its own on a tiny base.

One node serves every test that leaves it alive, so each test names adapters of its own and leaves
no request behind.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from adapter_store.embedded import EmbeddedStack
from adapter_store.memory import MemoryStore
from adapter_store.redis_client import open_redis
from adapter_store.settings import Endpoints
from inference_node.client import Client
from inference_node.config import EngineConfig
from inference_node.engine.build import base_card
from inference_node.model.default_base import ensure_default_base
from tests.conftest import open_endpoint, remove_bucket
from tests.inference_node.harness import Node, start_node
from tests.inference_node.tiny import make_adapter, make_checkpoint
from tests.integration.node_process import NodeProcess
from tests.integration.site import Site
from tests.named_services import new_bucket

CONTEXT = 4096
VOICES = 3
_DATABASE = "/15"
_seeds = itertools.count(1000)

Truth = Callable[[Path | None, str, int], tuple[int, ...]]


@pytest.fixture(scope="session")
def engine_config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """A tiny random Llama with room for answers that outlast what happens meanwhile."""
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    make_checkpoint(folder, tokenizer_from=ensure_default_base())
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config))
    return EngineConfig(
        base_model=str(folder),
        device="cpu",
        linears="dense",
        dtype="float32",
        pool_bytes=2 * 2**20,
        kv_tokens=2 * CONTEXT,
        max_context=CONTEXT,
    )


@pytest.fixture(scope="session")
def site(
    services: Endpoints, engine_config: EngineConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A bucket and a Redis database for all tests of this folder."""
    redis_url = urlsplit(services.redis_url)._replace(path=_DATABASE).geturl()
    with open_redis(redis_url) as client:
        client.flushdb()
    bucket = new_bucket()
    endpoints = replace(services, s3_bucket=bucket, redis_url=redis_url)
    store = open_endpoint(endpoints)
    store.ensure_bucket()
    folder = tmp_path_factory.mktemp("site")
    yield Site(endpoints, Path(engine_config.base_model), base_card(engine_config), folder)
    remove_bucket(store)


@pytest.fixture(scope="session")
def node_process(site: Site) -> Iterator[NodeProcess]:
    node = site.node()
    yield node
    node.kill()


@pytest.fixture
def node(node_process: NodeProcess) -> NodeProcess:
    """The running node; one that a test has ended is started again."""
    if not node_process.is_running():
        node_process.start()
    return node_process


@pytest.fixture
def client(node: NodeProcess) -> Iterator[Client]:
    with node.client() as client:
        yield client


@pytest.fixture(scope="session")
def voices(site: Site) -> list[Path]:
    """Adapters of different ranks that give different answers."""
    modules = dict(site.card.modules)
    return [
        make_adapter(site.folder / f"voice{index}", modules, rank=8 * index + 3, seed=index)
        for index in range(VOICES)
    ]


@pytest.fixture
def unseen(site: Site, tmp_path: Path) -> Callable[[], Path]:
    """Makes adapters that no node holds or has cached, by any name."""
    modules = dict(site.card.modules)

    def make() -> Path:
        seed = next(_seeds)
        return make_adapter(tmp_path / f"unseen{seed}", modules, rank=5, seed=seed)

    return make


@pytest.fixture(scope="session")
def oracle(engine_config: EngineConfig) -> Iterator[Node]:
    """The same base in this process, without server and store."""
    node = start_node(engine_config, MemoryStore())
    yield node
    node.close()


@pytest.fixture(scope="session")
def truth(oracle: Node) -> Truth:
    """What a published folder, or the base, answers to a prompt when it is alone."""

    @cache
    def answer(folder: Path | None, prompt: str, tokens: int) -> tuple[int, ...]:
        if folder is not None:
            oracle.publish(folder.name, folder)
        name = folder.name if folder is not None else ""
        return tuple(oracle.ask(name, prompt, tokens=tokens).tokens)

    return answer


@pytest.fixture
def own_services(services: Endpoints, request: pytest.FixtureRequest) -> EmbeddedStack:
    """The services, to be killed and restarted."""
    stack: EmbeddedStack = request.getfixturevalue("stack")
    if services.s3_endpoint != stack.endpoints.s3_endpoint or (
        urlsplit(services.redis_url).netloc != urlsplit(stack.endpoints.redis_url).netloc
    ):
        pytest.skip("the services named by the environment are not this session's to stop")
    return stack
