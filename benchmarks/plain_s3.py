"""What somebody without an adapter store writes: boto3 and nothing around it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from botocore.config import Config

from adapter_store.settings import Endpoints


class PlainS3:
    """One bucket through boto3 at its fastest: no checksum either way, nothing read back."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._bucket = endpoints.s3_bucket
        self._client = boto3.client(
            "s3",
            endpoint_url=endpoints.s3_endpoint,
            region_name=endpoints.s3_region,
            aws_access_key_id=endpoints.s3_access_key,
            aws_secret_access_key=endpoints.s3_secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                max_pool_connections=16,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def put(self, key: str, body: bytes) -> None:
        """put_object: one request."""
        self._client.put_object(Bucket=self._bucket, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        """get_object, read to its end: one request."""
        return bytes(self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read())

    def upload(self, key: str, path: Path) -> None:
        """upload_file: boto3's transfer manager, multipart from 8 MiB, 10 threads."""
        self._client.upload_file(str(path), self._bucket, key)

    def download(self, key: str, path: Path) -> None:
        """download_file: the same in the other direction."""
        self._client.download_file(self._bucket, key, str(path))

    def put_many(self, keys: Sequence[str], body: bytes, *, parallel: int) -> None:
        with ThreadPoolExecutor(parallel) as pool:
            list(pool.map(lambda key: self.put(key, body), keys))

    def delete_each(self, keys: Sequence[str], *, parallel: int) -> None:
        """delete_object of each: what an ObjectStore's `delete` is."""
        with ThreadPoolExecutor(parallel) as pool:
            delete = self._client.delete_object
            list(pool.map(lambda key: delete(Bucket=self._bucket, Key=key), keys))

    def delete_bulk(self, keys: Sequence[str]) -> None:
        """delete_objects, 1,000 a request."""
        for start in range(0, len(keys), 1000):
            doomed = [{"Key": key} for key in keys[start : start + 1000]]
            self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": doomed})
