"""What a tenant may take, by a clock that only moves when told."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_node.errors import BadConfiguration, QuotaExceeded
from inference_node.quotas import IDLE_TENANTS, Quota, QuotaTable
from inference_node.rpc.quotas import Quotas, read_quotas


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def book(clock: Clock, *, acme: Quota | None = None, **limits: float) -> Quotas:
    table = QuotaTable(Quota(**limits), {"acme": acme} if acme else {})
    return Quotas(lambda: table, clock=clock)


def call(quotas: Quotas, *, tenant: str = "t", tokens: int = 1, used: int | None = None) -> None:
    with quotas.stay(tenant, tokens=tokens) as stay:
        stay.used = tokens if used is None else used


def refused(quotas: Quotas, *, tenant: str = "t", tokens: int = 1) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        call(quotas, tenant=tenant, tokens=tokens)
    return caught.value


def test_calls_beyond_the_burst_are_told_when_to_come_back(clock: Clock) -> None:
    quotas = book(clock, requests_per_second=2, burst_seconds=5)
    for _ in range(10):
        call(quotas)
    error = refused(quotas)
    assert error.details == {"quota": "requests_per_second", "limit": "2"}
    assert error.retry_after == pytest.approx(0.5)
    clock.now += 0.49
    refused(quotas)
    clock.now += 0.02
    call(quotas)
    refused(quotas)


def test_tokens_are_taken_before_and_given_back_when_not_used(clock: Clock) -> None:
    quotas = book(clock, tokens_per_second=10, burst_seconds=10)
    call(quotas, tokens=100, used=40)
    call(quotas, tokens=60)
    assert refused(quotas, tokens=20).retry_after == pytest.approx(2.0)
    clock.now += 2.0
    call(quotas, tokens=20)


def test_a_call_that_fails_gives_back_what_it_has_not_used(clock: Clock) -> None:
    quotas = book(clock, tokens_per_second=10, concurrent=1, burst_seconds=10)

    def fail() -> None:
        with quotas.stay("t", tokens=100) as stay:
            stay.used = 10
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    call(quotas, tokens=90)


def test_a_call_over_the_whole_burst_waits_for_it_and_leaves_a_debt(clock: Clock) -> None:
    quotas = book(clock, tokens_per_second=10, burst_seconds=10)
    call(quotas, tokens=1000)
    assert refused(quotas).retry_after == pytest.approx(90.1)
    clock.now += 95
    assert refused(quotas, tokens=1000).retry_after == pytest.approx(5.0)
    clock.now += 5.1
    call(quotas, tokens=1000)


def test_so_many_calls_at_once_and_no_more(clock: Clock) -> None:
    quotas = book(clock, concurrent=2)
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(quotas.stay("t", tokens=1))
        assert refused(quotas).details["quota"] == "concurrent"
        call(quotas, tenant="other")
    call(quotas)


def test_what_is_refused_costs_nothing(clock: Clock) -> None:
    quotas = book(clock, requests_per_second=1, tokens_per_second=10, burst_seconds=2)
    call(quotas, tokens=20)
    for _ in range(50):
        refused(quotas, tokens=5)
    clock.now += 0.5
    call(quotas, tokens=5)


def test_each_tenant_has_its_own_and_a_named_one_its_own_measure(clock: Clock) -> None:
    quotas = book(
        clock,
        acme=Quota(requests_per_second=3, burst_seconds=1),
        requests_per_second=1,
        burst_seconds=1,
    )
    for tenant, allowed in (("a", 1), ("b", 1), ("acme", 3)):
        for _ in range(allowed):
            call(quotas, tenant=tenant)
        refused(quotas, tenant=tenant)


def test_nothing_is_kept_of_tenants_without_limits_nor_of_idle_ones(clock: Clock) -> None:
    unlimited = book(clock)
    call(unlimited, tokens=10**9)
    assert len(unlimited) == 0
    quotas = book(clock, requests_per_second=1, burst_seconds=1)
    for number in range(IDLE_TENANTS * 2):
        clock.now += 1.5
        call(quotas, tenant=f"t{number}")
    assert len(quotas) <= IDLE_TENANTS


def test_a_tenant_in_debt_is_not_forgotten(clock: Clock) -> None:
    quotas = book(clock, tokens_per_second=1, burst_seconds=1)
    call(quotas, tenant="heavy", tokens=10_000)
    for number in range(IDLE_TENANTS * 2):
        clock.now += 0.5
        call(quotas, tenant=f"t{number}")
    refused(quotas, tenant="heavy")


def test_a_clock_that_forgets_debts_would_be_caught(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_node.quotas._owes_nothing", lambda *_: True)
    with pytest.raises(pytest.fail.Exception):
        test_a_tenant_in_debt_is_not_forgotten(clock)


@given(
    rate=st.floats(0.5, 100),
    asks=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 50)), min_size=1, max_size=60),
)
def test_no_tenant_takes_more_than_its_rate_and_one_burst(
    rate: float, asks: list[tuple[float, int]]
) -> None:
    clock = Clock()
    quotas = book(clock, tokens_per_second=rate, burst_seconds=4)
    begun, taken = clock.now, 0
    for pause, tokens in asks:
        clock.now += pause
        try:
            call(quotas, tokens=tokens)
        except QuotaExceeded:
            continue
        taken += tokens
        burst = max(1.0, rate * 4)
        # The last call may have left a debt.
        assert taken - tokens <= (clock.now - begun) * rate + burst + 1e-6


FILE = """
[default]
requests_per_second = 20
concurrent = 32

[tenant.acme]
requests_per_second = 0.5
burst_seconds = 2
"""


def test_a_file_says_who_may_take_what(tmp_path: Path) -> None:
    path = tmp_path / "quotas.toml"
    path.write_text(FILE)
    table = read_quotas(path)
    assert table.of("anybody") == Quota(requests_per_second=20, concurrent=32)
    assert table.of("acme") == Quota(requests_per_second=0.5, concurrent=32, burst_seconds=2)


@pytest.mark.parametrize(
    "text",
    [
        "[default",
        "[other]",
        "default = 1",
        "tenant = 1",
        "[tenant]\nacme = 1",
        "[default]\nrequests = 1",
        "[default]\nconcurrent = 0",
        "[default]\nconcurrent = true",
        "[default]\nconcurrent = nan",
        '[default]\nconcurrent = "many"',
    ],
)
def test_what_a_file_cannot_say_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "quotas.toml"
    path.write_text(text)
    with pytest.raises(BadConfiguration, match=r"quotas\.toml"):
        read_quotas(path)
