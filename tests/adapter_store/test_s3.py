from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

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
from adapter_store.objects import Damage
from adapter_store.s3 import CONFLICT_TRIES, DAMAGED_TRIES, S3Store, open_s3
from adapter_store.settings import Endpoints
from tests.adapter_store.fault_proxy import FaultProxy, answering, fault_proxy
from tests.adapter_store.object_store_contract import ObjectStoreContract
from tests.chaos.proxy import Fault, proxied
from tests.conftest import open_endpoint

pytestmark = pytest.mark.services
StoreAt = Callable[..., S3Store]


class TestS3Store(ObjectStoreContract):
    @pytest.fixture
    def store(self, s3_store: S3Store) -> S3Store:
        return s3_store


@pytest.fixture
def proxy(endpoints: Endpoints) -> Iterator[FaultProxy]:
    url = urlsplit(endpoints.s3_endpoint)
    assert url.hostname is not None
    if url.scheme != "http":
        pytest.skip("the fault proxy cannot stand between TLS and its server")
    with fault_proxy(url.hostname, url.port or 80) as running:
        yield running


def test_a_put_whose_answer_was_lost_is_an_unknown_outcome_and_may_have_landed(
    store_at: StoreAt, s3_store: S3Store, proxy: FaultProxy
) -> None:
    store = store_at(s3_endpoint=f"http://127.0.0.1:{proxy.port}")
    proxy.swallow(1)
    with pytest.raises(OutcomeUnknown):
        store.put_new("v1/a", b"body")
    assert proxy.swallowed == 1
    assert s3_store.get("v1/a") == b"body"


def test_a_writer_that_retries_would_take_its_own_success_for_a_conflict(
    store_at: StoreAt, s3_store: S3Store, proxy: FaultProxy
) -> None:
    store = store_at(s3_endpoint=f"http://127.0.0.1:{proxy.port}")
    retrying = S3Store(store._client, writer=store._client, bucket=store.bucket)
    proxy.swallow(1)
    with pytest.raises(AlreadyExists):
        retrying.put_new("v1/a", b"body")
    assert s3_store.get("v1/a") == b"body"


def test_reads_survive_a_lost_answer(
    store_at: StoreAt, s3_store: S3Store, proxy: FaultProxy
) -> None:
    s3_store.put_new("v1/a", b"body")
    store = store_at(s3_endpoint=f"http://127.0.0.1:{proxy.port}")
    for read in (store.get, store.head, store.list):
        proxy.swallow(1)
        read("v1/a")
    assert proxy.swallowed == 3


def test_a_put_that_never_left_is_certain_to_have_stored_nothing(store_at: StoreAt) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = store_at(s3_endpoint=f"http://127.0.0.1:{port}")
    with pytest.raises(StoreUnavailable):
        store.put_new("v1/a", b"body")


def test_wrong_credentials_are_refused_by_every_verb(store_at: StoreAt) -> None:
    store = store_at(s3_secret_key="wrong")
    for act in (
        lambda: store.put_new("v1/a", b"x"),
        lambda: store.get("v1/a"),
        lambda: store.head("v1/a"),
        lambda: store.list("v1/"),
        lambda: store.delete("v1/a"),
    ):
        with pytest.raises(StoreRefused):
            act()


def test_a_missing_bucket_is_refused_with_the_way_out(store_at: StoreAt) -> None:
    store = store_at(s3_bucket="lorapool-test-absent")
    for act in (
        lambda: store.put_new("v1/a", b"x"),
        lambda: store.get("v1/a"),
        lambda: store.list("v1/"),
    ):
        with pytest.raises(StoreRefused, match="does not exist") as refused:
            act()
        assert "LORAPOOL_S3_BUCKET" in refused.value.hint


def test_making_a_bucket_that_is_there_changes_nothing(s3_store: S3Store) -> None:
    s3_store.put_new("v1/a", b"x")
    s3_store.ensure_bucket()
    assert s3_store.get("v1/a") == b"x"


@pytest.mark.parametrize("damage", list(Damage))
def test_a_body_that_is_not_what_was_announced_is_not_stored(
    s3_store: S3Store, damage: Damage
) -> None:
    assert not s3_store.accepts_damaged("v1/a", damage)
    with pytest.raises(NotFound):
        s3_store.get("v1/a")


ANSWERS = [
    (412, "PreconditionFailed", AlreadyExists, 1),
    (409, "ConditionalRequestConflict", StoreUnavailable, CONFLICT_TRIES),
    (500, "InternalError", OutcomeUnknown, 1),
    (503, "SlowDown", OutcomeUnknown, 1),
    (501, "NotImplemented", StoreUnfit, 1),
    (400, "BadDigest", StoreUnavailable, 1),
    (400, "RequestTimeout", StoreUnavailable, 1),
    (400, "InvalidRequest", StoreRefused, 1),
    (403, "AccessDenied", StoreRefused, 1),
    (403, "RequestTimeTooSkewed", StoreRefused, 1),
    (404, "NoSuchBucket", StoreRefused, 1),
    (429, "TooManyRequests", StoreUnavailable, 1),
]


@pytest.mark.parametrize(("status", "code", "expected", "sent"), ANSWERS)
def test_every_answer_to_a_put_has_one_meaning(
    status: int, code: str, expected: type[StoreError], sent: int
) -> None:
    with answering(status, code) as server:
        store = _impatient(server.url)
        with pytest.raises(StoreError) as raised:
            store.put_new("v1/a", b"body")
        assert type(raised.value) is expected
        assert server.requests == sent


def test_reads_try_again_while_the_store_is_busy() -> None:
    with answering(503, "SlowDown") as server:
        store = _impatient(server.url)
        with pytest.raises(StoreUnavailable):
            store.get("v1/a")
        assert server.requests > 1


def test_an_answer_that_is_not_s3_is_an_unknown_outcome() -> None:
    with answering(500, "<<<") as server, pytest.raises(OutcomeUnknown):
        _impatient(server.url).put_new("v1/a", b"body")


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(StoreRefused):
        open_s3(endpoint="nowhere", bucket="adapters")


def _impatient(url: str) -> S3Store:
    store = open_s3(endpoint=url, bucket="adapters", access_key="a", secret_key="b")
    return S3Store(
        store._client, writer=store._writer, bucket=store.bucket, pause=lambda seconds: None
    )


@pytest.mark.parametrize(("times", "heals"), [(1, True), (DAMAGED_TRIES, False)])
def test_a_byte_that_flips_on_the_way_is_never_believed(
    endpoints: Endpoints, times: int, heals: bool
) -> None:
    plain, key = open_endpoint(endpoints), "v1/t/default/a/pirate/log/1"
    plain.put_new(key, b'{"actor":"test"}')
    left = [Fault.FLIPPED_BYTE] * times
    with proxied(endpoints, lambda request: left.pop() if left else None) as (_, behind):
        store = open_endpoint(behind)
        if heals:
            assert store.get(key) == plain.get(key)
        else:
            with pytest.raises(IntegrityError, match="another sha256"):
                store.get(key)
    assert left == []
