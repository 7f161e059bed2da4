"""Real services for every test that asks: one embedded stack per session and xdist worker.

Variables LORAPOOL_TEST_* name other services to test against: named_services.py lists them.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis

from adapter_store.embedded import EmbeddedStack
from adapter_store.redis_client import open_redis
from adapter_store.s3 import S3Store, open_s3
from adapter_store.settings import Endpoints
from inference_node.errors import BadConfiguration
from inference_node.gateway import program
from inference_node.openmp import wait_briefly
from tests.named_services import S3_ENDPOINT, named_or, new_bucket
from tests.triton_mode import INTERPRETED

wait_briefly(os.environ)  # Before any test file imports torch.
_databases = itertools.cycle(range(1, 16))


def pytest_configure() -> None:
    """Interrupts reach the programs under test, also where the suite runs in the background.

    A shell starts background jobs with SIGINT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    triton = "interpreted" if INTERPRETED else "on the card"
    return f"S3: {os.environ.get(S3_ENDPOINT) or 'embedded SeaweedFS'}, Triton: {triton}"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """The embedded services themselves, for tests that look at or restart them."""
    with EmbeddedStack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def services(request: pytest.FixtureRequest) -> Endpoints:
    """Where the services of this session are, embedded or named by the environment."""
    return named_or(lambda: request.getfixturevalue("stack").endpoints)


@pytest.fixture
def endpoints(services: Endpoints, redis_url: str) -> Iterator[Endpoints]:
    """A bucket and a Redis database of this test's own; `.environment()` hands them to a child."""
    own = replace(services, s3_bucket=new_bucket(), redis_url=redis_url)
    store = open_endpoint(own)
    store.ensure_bucket()
    yield own
    remove_bucket(store)


@pytest.fixture
def s3_store(endpoints: Endpoints) -> S3Store:
    """An empty S3 store."""
    return open_endpoint(endpoints)


@pytest.fixture
def redis_url(services: Endpoints) -> str:
    """An empty Redis database."""
    url = urlsplit(services.redis_url)._replace(path=f"/{next(_databases)}").geturl()
    with open_redis(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[Redis]:
    with open_redis(redis_url) as client:
        yield client


@pytest.fixture
def store_at(endpoints: Endpoints) -> Callable[..., S3Store]:
    """Opens this test's bucket with some endpoints changed: another address, other keys."""

    def opened(**changes: str) -> S3Store:
        return open_endpoint(replace(endpoints, **changes))

    return opened


@pytest.fixture(scope="session")
def envoy() -> Path:
    """The program, where its wheel is installed."""
    try:
        return program.envoy()
    except BadConfiguration as error:
        pytest.skip(f"{error}: {error.hint}")


def open_endpoint(endpoints: Endpoints) -> S3Store:
    return open_s3(
        endpoint=endpoints.s3_endpoint,
        bucket=endpoints.s3_bucket,
        region=endpoints.s3_region,
        access_key=endpoints.s3_access_key,
        secret_key=endpoints.s3_secret_key,
    )


def remove_bucket(store: S3Store) -> None:
    while keys := store.list("", limit=100).keys:
        store._client.delete_objects(
            Bucket=store.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
        )
    store._client.delete_bucket(Bucket=store.bucket)
