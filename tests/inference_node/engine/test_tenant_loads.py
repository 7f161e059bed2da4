"""What one tenant may load: its own quotas, and what they leave to others."""

from __future__ import annotations

import pytest

from adapter_store.layout import AdapterRef
from inference_node.adapters.allowance import Allowance
from inference_node.adapters.versions import VersionKey
from inference_node.engine import brought
from inference_node.engine.claims import Claim
from inference_node.engine.sequence import Sequence
from inference_node.errors import NodeError, QuotaExceeded
from inference_node.quotas import Quota, QuotaTable
from tests.inference_node.engine.scripted_admission import ScriptedAdmission, target


def desk(*, pages: int = 8, **limits: float) -> ScriptedAdmission:
    """Tenant `t` is limited, others are not."""
    table = QuotaTable(tenants={"t": Quota(**limits)})
    return ScriptedAdmission(pages=pages, quotas=lambda: table)


def cold(desk: ScriptedAdmission, name: str, *, tenant: str = "t") -> Sequence:
    """A request for an adapter that is nowhere on the node, as far as its look-up if it has one."""
    sequence = desk.ask(name, tenant=tenant)
    if sequence not in desk.failed:
        desk.resolve(target(name, tenant=tenant))
    return sequence


def quota(error: NodeError) -> tuple[str, float | None]:
    assert isinstance(error, QuotaExceeded)
    return error.details["quota"], error.retry_after


def flood(desk: ScriptedAdmission, tenant: str) -> int:
    """Ask for 50 cold adapters in a second; how many are fetched."""
    for number in range(50):
        cold(desk, f"cold-{number}", tenant=tenant)
    return len(desk.fetching())


def test_a_flood_of_cold_names_is_held_to_the_tenants_loads_and_told_when_to_come_back() -> None:
    busy = desk(cold_loads_per_minute=6)
    assert flood(busy, "t") == 6
    assert {quota(error) for error in busy.failed.values()} == {("cold_loads_per_minute", 10.0)}
    assert len(busy.failed) == 44
    cold(busy, "other", tenant="u")
    assert busy.fetching()[-1] == ("other", 1), "another tenant has its own"
    busy.now += 10.0
    cold(busy, "later")
    assert busy.fetching()[-1] == ("later", 1)


def test_control_without_the_allowance_a_flood_fetches_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Allowance, "_over", lambda *_: None)
    assert flood(desk(cold_loads_per_minute=6), "t") == 50


def test_once_its_loads_are_spent_the_store_is_not_asked_about_names_that_were_never_here() -> None:
    busy = desk(pages=1, cold_loads_per_minute=1)
    busy.end(busy.load(target("ada")))
    busy.end(busy.load(target("theirs", tenant="u")))
    assert busy.serves("ada") is None
    refused = busy.ask("ben")
    assert quota(busy.failed[refused]) == ("cold_loads_per_minute", 60.0)
    assert busy.loader.lookups == []
    busy.ask("ada")
    assert [one.ref.adapter for one in busy.loader.lookups] == ["ada"], "it may be on the host"
    busy.resolve(target("ada"))
    busy.now += 60.0
    busy.ask("ben")
    assert [one.ref.adapter for one in busy.loader.lookups] == ["ben"]


def test_who_is_ordered_to_be_here_is_looked_up_whatever_its_tenant_has_spent() -> None:
    busy = desk(cold_loads_per_minute=1)
    cold(busy, "ada")
    refused: list[NodeError] = []
    ordered = Claim(
        "order",
        AdapterRef("t", "ben"),
        0,
        bind=lambda entry: None,
        grant=lambda: None,
        refuse=refused.append,
        patient=True,
    )
    busy.admission.claim(ordered)
    assert [one.ref.adapter for one in busy.loader.lookups] == ["ben"]
    assert refused == []


def test_names_that_were_here_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brought, "REMEMBERED", 2)
    busy = desk(cold_loads_per_minute=3)
    for name in ("a", "b", "c"):
        busy.end(busy.load(target(name)))
    known = busy.admission.arrivals._brought
    assert [name for _, name in known._names] == ["b", "c"]


def test_what_is_here_or_on_its_way_costs_no_load() -> None:
    busy = desk(cold_loads_per_minute=1)
    first, second = cold(busy, "ada"), busy.ask("ada")
    busy.resolve(target("ada"))
    busy.fetched()
    busy.filled()
    third = busy.ask("ada")
    busy.resolve(target("ada"))
    assert all(sequence.lease is not None for sequence in (first, second, third))
    assert busy.failed == {}


def test_a_next_version_is_brought_over_the_quota_and_paid_for_later() -> None:
    busy = desk(cold_loads_per_minute=1)
    busy.end(busy.load(target("ada")))
    busy.learn("ada", 2)
    assert busy.fetching() == [("ada", 2)]
    busy.now += 60.0
    refused = cold(busy, "ben")
    assert quota(busy.failed[refused]) == ("cold_loads_per_minute", 60.0)


def test_a_tenant_at_its_pages_replaces_its_own_and_nobody_elses() -> None:
    busy = desk(pages=8, resident_pages=2)
    for name in ("a", "b"):
        busy.end(busy.load(target(name)))
    busy.end(busy.load(target("theirs", tenant="u"), pages=2))
    for name in ("c", "d", "e"):
        busy.end(busy.load(target(name)))
        assert busy.slots.pages_of("t") <= 2
    assert busy.serves("theirs", tenant="u") == 1
    assert (busy.serves("a"), busy.serves("e")) == (None, 1)
    assert busy.slots.allocator.free == (4,), "there was room for more"


def test_control_without_the_allowance_a_tenant_takes_the_whole_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Allowance, "_most", lambda *_: float("inf"))
    with pytest.raises(AssertionError):
        test_a_tenant_at_its_pages_replaces_its_own_and_nobody_elses()


def test_who_waits_for_its_own_tenants_pages_holds_up_no_other() -> None:
    busy = desk(pages=4, resident_pages=1)
    holder = busy.load(target("a"))
    waiting = cold(busy, "b")
    busy.fetched()
    assert (waiting.lease, busy.loader.fills) == (None, [])
    busy.load(target("theirs", tenant="u"))
    busy.now += 60.0
    busy.admission.relieve([holder, waiting], lambda sequence: None)
    assert holder.lease is not None, "its own quota takes no pages from anybody"
    told = busy.admission.withdraw(waiting)
    assert told is not None
    assert quota(told) == ("resident_pages", 1.0)
    again = cold(busy, "b")
    assert again.lease is None
    busy.end(holder)
    busy.filled()
    assert again.lease is not None


def test_a_version_over_all_its_pages_is_refused_and_a_swap_is_not() -> None:
    busy = desk(resident_pages=2)
    large = cold(busy, "large")
    busy.fetched(3)
    assert quota(busy.failed[large]) == ("resident_pages", None)
    busy.end(busy.load(target("ada"), pages=2))
    busy.learn("ada", 2)
    busy.fetched(2)
    busy.filled()
    assert busy.serves("ada") == 2


def test_bytes_are_taken_by_the_second() -> None:
    table = QuotaTable(Quota(fetch_bytes_per_second=100, burst_seconds=10))
    now = [1000.0]
    here: set[VersionKey] = set()
    allowance = Allowance(
        lambda: table,
        desk().slots,
        on_host=lambda key: key if key in here else None,
        clock=lambda: now[0],
    )
    key = VersionKey("t", "v")
    assert allowance.refusal(key, 600) is None
    allowance.begun(key, 600)
    refused = allowance.refusal(key, 600)
    assert refused is not None
    assert quota(refused) == ("fetch_bytes_per_second", 2.0)
    here.add(key)
    assert allowance.refusal(key, 600) is None, "it is on the host"
    here.clear()
    now[0] += 2.0
    assert allowance.refusal(key, 600) is None
