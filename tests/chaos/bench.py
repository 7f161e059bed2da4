"""What a row works on: a folder of its own, and real services."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from adapter_store.embedded import EmbeddedStack
from adapter_store.redis_client import open_redis
from adapter_store.s3 import S3Store
from adapter_store.settings import Endpoints
from tests.conftest import open_endpoint, remove_bucket
from tests.named_services import named_or, named_s3, new_bucket

ROOT = Path(__file__).resolve().parents[2]


def child_environment(endpoints: Endpoints) -> dict[str, str]:
    """What a child process of a row needs to import this code and to find the services."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORAPOOL_")}
    return {**kept, **endpoints.environment(), "PYTHONPATH": str(ROOT)}


class Bench:
    """Services are started when first asked for; `services` gives the ones to share."""

    def __init__(self, folder: Path, services: Callable[[], Endpoints]) -> None:
        self.folder = folder
        self._services = services
        self._databases = itertools.cycle(range(1, 16))
        self._stacks = itertools.count()

    @contextlib.contextmanager
    def endpoints(self) -> Iterator[Endpoints]:
        """An empty bucket and an empty Redis database, for as long as the block."""
        base = self._services()
        url = urlsplit(base.redis_url)._replace(path=f"/{next(self._databases)}").geturl()
        with open_redis(url) as client:
            client.flushdb()
        own = replace(base, s3_bucket=new_bucket(), redis_url=url)
        store = open_endpoint(own)
        store.ensure_bucket()
        try:
            yield own
        finally:
            # Services that were started for this row go with all that is in them.
            if named_s3(os.environ) is not None:
                remove_bucket(store)

    @contextlib.contextmanager
    def store(self) -> Iterator[S3Store]:
        """An empty store."""
        with self.endpoints() as own:
            yield open_endpoint(own)

    @contextlib.contextmanager
    def own_stack(self) -> Iterator[EmbeddedStack]:
        """Services of this row alone, for it to kill."""
        with EmbeddedStack(self.folder / f"stack-{next(self._stacks)}") as stack:
            yield stack


@contextlib.contextmanager
def open_bench(folder: Path) -> Iterator[Bench]:
    """A bench whose shared services are the ones the environment names, or started here."""
    with contextlib.ExitStack() as started:

        @cache
        def services() -> Endpoints:
            return named_or(
                lambda: started.enter_context(EmbeddedStack(folder / "services")).endpoints
            )

        yield Bench(folder, services)
