"""Services that the environment names, for tests to run against in place of embedded ones.

LORAPOOL_TEST_S3_ENDPOINT       http://host:port or https://host
LORAPOOL_TEST_S3_KEY, _SECRET   may make, empty and remove buckets
LORAPOOL_TEST_S3_REGION         default us-east-1
LORAPOOL_TEST_S3_BUCKET_PREFIX  default lorapool-test-; no other bucket is touched
LORAPOOL_TEST_REDIS_URL         databases 1 to 15 are emptied

What is not named is embedded: an endpoint alone is tested beside an embedded Valkey.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace

from adapter_store.settings import DEFAULT_REGION, Endpoints

PREFIX = "LORAPOOL_TEST_"
S3_ENDPOINT = PREFIX + "S3_ENDPOINT"
S3_KEY = PREFIX + "S3_KEY"
S3_SECRET = PREFIX + "S3_SECRET"
S3_REGION = PREFIX + "S3_REGION"
S3_BUCKET_PREFIX = PREFIX + "S3_BUCKET_PREFIX"
REDIS_URL = PREFIX + "REDIS_URL"


class NotNamed(Exception):
    """The environment names a store by halves; the message says which variable is missing."""


def named_or(
    embedded: Callable[[], Endpoints], *, environ: Mapping[str, str] = os.environ
) -> Endpoints:
    """The services that the environment names; for what it does not name, `embedded`."""
    s3, redis = named_s3(environ), environ.get(REDIS_URL, "")
    if s3 is not None and redis:
        return replace(s3, redis_url=redis)
    own = embedded()
    return replace(s3 or own, redis_url=redis or own.redis_url)


def named_s3(environ: Mapping[str, str]) -> Endpoints | None:
    """The S3 of the environment, None when it names none. Raises NotNamed without its keys."""
    if not environ.get(S3_ENDPOINT):
        return None
    for needed in (S3_KEY, S3_SECRET):
        if not environ.get(needed):
            raise NotNamed(f"{S3_ENDPOINT} is set and {needed} is not")
    return Endpoints(
        s3_endpoint=environ[S3_ENDPOINT],
        s3_access_key=environ[S3_KEY],
        s3_secret_key=environ[S3_SECRET],
        s3_region=environ.get(S3_REGION) or DEFAULT_REGION,
        redis_url="",
    )


def new_bucket(environ: Mapping[str, str] = os.environ) -> str:
    """A bucket name that nobody uses."""
    return (environ.get(S3_BUCKET_PREFIX) or "lorapool-test-") + secrets.token_hex(8)
