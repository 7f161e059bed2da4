"""ObjectStore over any S3 that honours `If-None-Match: *`.

The one place where boto3 is spoken and where its exceptions become ours:

answer                              reading            put_new
connection never made               StoreUnavailable   StoreUnavailable
sent, no usable answer; 5xx         StoreUnavailable   OutcomeUnknown
412                                 -                  AlreadyExists
409 (a conflicting write ran)       -                  sent again, then StoreUnavailable
404 of a key                        NotFound           -
404 of the bucket, 400, 401, 403    StoreRefused       StoreRefused
400 bad digest or slow body, 429    StoreUnavailable   StoreUnavailable
501                                 StoreUnfit         StoreUnfit

`put_new` sends once: a client that silently repeats a conditional PUT reports 412 for its own
success. After a 409 nothing was stored, so the same PUT may go out again.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProxyConnectionError,
)
from botocore.parsers import ResponseParserError

from adapter_store import layout
from adapter_store.errors import (
    AlreadyExists,
    IntegrityError,
    NotFound,
    OutcomeUnknown,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUnfit,
)
from adapter_store.layout import CHUNK_BYTES
from adapter_store.objects import Damage, ListPage, ObjectHead

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2RequestTypeDef

CONFLICT_TRIES = 6
DAMAGED_TRIES = 3
"""Of reading an object whose bytes are not those that were stored."""
_CHECKED: dict[str, Any] = {"ChecksumMode": "ENABLED"}
"""What is read is compared with the sha256 it was stored under; who reads a chunk knows its own."""
_FOREIGN = (ClientError, BotoCoreError, ResponseParserError)
_NEVER_SENT = (ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError)
_MISUSED = (NoCredentialsError, PartialCredentialsError, ParamValidationError)
_MISMATCHED = {"SignatureDoesNotMatch", "XAmzContentSHA256Mismatch", "BadDigest"}
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "RequestTimeout"}


class S3Store:
    """An ObjectStore in one bucket."""

    def __init__(
        self,
        client: S3Client,
        *,
        writer: S3Client,
        bucket: str,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`client` may retry; `writer` must send each request once."""
        self._pause = pause
        self._client = client
        self._writer = writer
        self.bucket = bucket

    def get(self, key: str) -> bytes:
        checked = {} if layout.names_content(key) else _CHECKED
        for left in reversed(range(DAMAGED_TRIES)):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=key, **checked)
                size = answer["ContentLength"]
                if size > CHUNK_BYTES:
                    answer["Body"].close()
                    raise IntegrityError(f"{key} has {size} bytes; none is so large")
                return answer["Body"].read()
            except FlexibleChecksumError as error:
                if not left:
                    raise IntegrityError(
                        f"{key} comes back with another sha256: {error}"
                    ) from error
            except _FOREIGN as error:
                raise self._translated(error, key) from error
        raise AssertionError("the last try returns or raises")

    def put_new(self, key: str, body: bytes) -> None:
        checksum = _base64_sha256(body)
        for attempt in range(CONFLICT_TRIES):
            try:
                self._put(key, body, checksum)
            except ClientError as error:
                if _status(error) == 409:
                    self._pause(random.uniform(0.5, 1.0) * min(0.05 * 2**attempt, 1.0))
                    continue
                if _status(error) == 412:
                    raise AlreadyExists(f"{key} is taken") from error
                if _status(error) >= 500 and _status(error) != 501:
                    raise OutcomeUnknown(f"no usable answer to PUT {key}: {error}") from error
                raise self._translated(error, key) from error
            except (BotoCoreError, ResponseParserError) as error:
                if isinstance(error, _NEVER_SENT + _MISUSED):
                    raise self._translated(error, key) from error
                raise OutcomeUnknown(f"no answer to PUT {key}: {error}") from error
            else:
                return
        raise StoreUnavailable(f"PUT {key} met conflicting writes {CONFLICT_TRIES} times")

    def head(self, key: str) -> ObjectHead:
        try:
            answer = self._client.head_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
        except _FOREIGN as error:
            raise self._translated(error, key) from error
        return ObjectHead(
            key=key,
            size=answer["ContentLength"],
            sha256=_hex_sha256(answer.get("ChecksumSHA256", "")),
            modified=answer["LastModified"].timestamp(),
        )

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        request: ListObjectsV2RequestTypeDef = {
            "Bucket": self.bucket,
            "Prefix": prefix,
            "MaxKeys": limit,
        }
        if delimiter:
            request["Delimiter"] = delimiter
        if token is not None:
            request["ContinuationToken"] = token
        try:
            answer = self._client.list_objects_v2(**request)
        except _FOREIGN as error:
            raise self._translated(error, prefix) from error
        return ListPage(
            heads=tuple(
                ObjectHead(item["Key"], item["Size"], None, item["LastModified"].timestamp())
                for item in answer.get("Contents", [])
            ),
            folders=tuple(item["Prefix"] for item in answer.get("CommonPrefixes", [])),
            next_token=answer["NextContinuationToken"] if answer.get("IsTruncated") else None,
        )

    def delete(self, key: str) -> None:
        try:
            self._client.delete_object(Bucket=self.bucket, Key=key)
        except _FOREIGN as error:
            translated = self._translated(error, key)
            if not isinstance(translated, NotFound):
                raise translated from error

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there. Raises StoreRefused, StoreUnavailable."""
        region = self._client.meta.region_name
        try:
            if region == "us-east-1":
                self._client.create_bucket(Bucket=self.bucket)
            else:
                self._client.create_bucket(
                    Bucket=self.bucket,
                    CreateBucketConfiguration={"LocationConstraint": region},  # type: ignore[typeddict-item]
                )
        except ClientError as error:
            if _status(error) != 409:
                raise self._translated(error, self.bucket) from error
        except (BotoCoreError, ResponseParserError) as error:
            raise self._translated(error, self.bucket) from error

    def accepts_damaged(self, key: str, damage: Damage) -> bool:
        """Whether the store takes a body other than the one announced."""
        sent, arrived = b"what was sent " * 512, b"what arrived  " * 512
        request: dict[str, Any] = {"ChecksumSHA256": _base64_sha256(sent)}
        altered: bytes | _Breaks = sent
        if damage is Damage.WRONG_SHA256:
            altered, sent = arrived, arrived
        elif damage is Damage.WRONG_MD5:
            request = {"ContentMD5": _base64_md5(arrived)}
        elif damage is Damage.FLIPPED_BYTE:
            altered = arrived
        else:
            altered = _Breaks(sent[:-1])
        try:
            with self._altered(key, altered):
                self._writer.put_object(
                    Bucket=self.bucket, Key=key, Body=sent, IfNoneMatch="*", **request
                )
        except ClientError as error:
            if _status(error) == 400 or _code(error) in _MISMATCHED:
                return False
            raise self._translated(error, key) from error
        except (BotoCoreError, ResponseParserError) as error:
            if damage is Damage.TRUNCATED and not isinstance(error, _NEVER_SENT + _MISUSED):
                return False
            raise self._translated(error, key) from error
        return True

    def put_unheard(self, key: str, body: bytes) -> None:
        """Send a conditional PUT whole and hang up before it is answered."""
        with self._altered(key, _Breaks(body)), contextlib.suppress(BotoCoreError, ClientError):
            self._put(key, body, _base64_sha256(body))

    @contextlib.contextmanager
    def _altered(self, key: str, body: bytes | _Breaks) -> Iterator[None]:
        """What goes out in place of the body of a PUT of `key`, signed and summed as it was."""

        def alter(request: AWSPreparedRequest, **_: object) -> None:
            if request.url.endswith(key):
                request.body = body

        events, name = self._writer.meta.events, "before-send.s3.PutObject"
        events.register(name, alter)
        try:
            yield
        finally:
            events.unregister(name, alter)

    def _put(self, key: str, body: bytes, checksum: str) -> None:
        self._writer.put_object(
            Bucket=self.bucket, Key=key, Body=body, IfNoneMatch="*", ChecksumSHA256=checksum
        )

    def _translated(self, error: Exception, key: str) -> StoreError:
        if not isinstance(error, ClientError):
            if isinstance(error, _MISUSED):
                return StoreRefused(str(error), hint="check the bucket name and the credentials")
            return StoreUnavailable(str(error), hint="is the store running and reachable?")
        code, status = error.response.get("Error", {}).get("Code", ""), _status(error)
        if code == "NoSuchBucket":
            return StoreRefused(
                f"bucket {self.bucket!r} does not exist",
                hint="create it, or set LORAPOOL_S3_BUCKET",
            )
        if status == 404:
            return NotFound(f"{key} does not exist")
        if status == 501:
            return StoreUnfit(f"the store does not implement what {key} needs: {error}")
        if status in (408, 429) or status >= 500 or code in _DAMAGED:
            return StoreUnavailable(f"{key}: {error}")
        return StoreRefused(f"{key}: {error}", hint="check credentials, permissions and the clock")


def open_s3(
    *,
    endpoint: str | None,
    bucket: str,
    region: str = "us-east-1",
    access_key: str | None = None,
    secret_key: str | None = None,
    connect_timeout_s: float = 2.0,
    read_timeout_s: float = 10.0,
) -> S3Store:
    """A store at `endpoint`, or at AWS when it is None; sends nothing yet.

    Without keys, boto3's own search applies (environment, profile, instance role).
    Raises StoreRefused on an endpoint that is no URL.
    """

    def client(attempts: int) -> S3Client:
        made: S3Client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(
                connect_timeout=connect_timeout_s,
                read_timeout=read_timeout_s,
                retries={"total_max_attempts": attempts, "mode": "standard"},
                s3={"addressing_style": "path"},
                signature_version="s3v4",
                max_pool_connections=16,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        return made

    try:
        return S3Store(client(3), writer=client(1), bucket=bucket)
    except ValueError as error:
        raise StoreRefused(str(error), hint="check LORAPOOL_S3_ENDPOINT") from error


class _Breaks(io.BytesIO):
    """A body that ends in a broken connection."""

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        if not part:
            raise OSError("hung up")
        return part


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _base64_md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _base64_sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def _hex_sha256(checksum: str) -> str | None:
    """Hex of a whole-object checksum; None for a composite one (`...-3`) or none at all."""
    try:
        digest = base64.b64decode(checksum, validate=True)
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == hashlib.sha256().digest_size else None
