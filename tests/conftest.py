"""Real services for every test that asks: one embedded stack per session and xdist worker.

LORAPOOL_TEST_S3_ENDPOINT, _S3_KEY, _S3_SECRET and LORAPOOL_TEST_REDIS_URL name other services to
test against. Buckets named `lorapool-test-*` are made and removed there, and Redis databases 1 to
15 are emptied.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from redis import Redis

from adapter_store.embedded import EmbeddedStack
from adapter_store.redis_client import open_redis
from adapter_store.s3 import S3Store, open_s3
from adapter_store.settings import Endpoints

_databases = itertools.cycle(range(1, 16))


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
    own = replace(services, s3_bucket=f"lorapool-test-{secrets.token_hex(8)}", redis_url=redis_url)
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


def open_endpoint(endpoints: Endpoints) -> S3Store:
    return open_s3(
        endpoint=endpoints.s3_endpoint,
        bucket=endpoints.s3_bucket,
        region=endpoints.s3_region,
        access_key=endpoints.s3_access_key,
        secret_key=endpoints.s3_secret_key,
    )


def named_or(embedded: Callable[[], Endpoints]) -> Endpoints:
    """The services that the environment names; for what it does not name, `embedded`."""
    s3, redis = _named_s3(), os.environ.get("LORAPOOL_TEST_REDIS_URL", "")
    if s3 is not None and redis:
        return replace(s3, redis_url=redis)
    own = embedded()
    return replace(s3 or own, redis_url=redis or own.redis_url)


def _named_s3() -> Endpoints | None:
    endpoint = os.environ.get("LORAPOOL_TEST_S3_ENDPOINT")
    if not endpoint:
        return None
    return Endpoints(
        s3_endpoint=endpoint,
        s3_access_key=os.environ["LORAPOOL_TEST_S3_KEY"],
        s3_secret_key=os.environ["LORAPOOL_TEST_S3_SECRET"],
        redis_url="",
    )


def remove_bucket(store: S3Store) -> None:
    while keys := store.list("").keys:
        for key in keys:
            store.delete(key)
    store._client.delete_bucket(Bucket=store.bucket)
