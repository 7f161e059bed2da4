"""A canary is promoted, taken back or left alone, and whatever ends its watcher it stays whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from adapter_store.arms import ArmCount
from adapter_store.cli import canary
from adapter_store.commit import Publisher
from adapter_store.errors import FleetUnseen, StoreUnavailable
from adapter_store.fleet import Copy, Holding, Standing
from adapter_store.reader import Reader
from adapter_store.record import Record, RecordKind
from adapter_store.registry import FleetRegistry, open_registry
from adapter_store.s3 import S3Store
from adapter_store.settings import Endpoints
from tests.adapter_store.adapter_files import CARD
from tests.adapter_store.cli.shell import Shell
from tests.adapter_store.fleet_cards import card

pytestmark = pytest.mark.services
NODE = "n1"
QUICK = ("canary", "pirate", "v2", "--for", "0.3", "--min-answers", "20")


@dataclass
class Traffic:
    """A node that tells how requests of both versions go."""

    registry: FleetRegistry
    store: S3Store
    versions: Mapping[str, str]
    """Digests by label."""
    totals: dict[str, ArmCount] = field(default_factory=dict)

    def head(self) -> Record:
        return Reader(self.store).head("default", "pirate")

    def served(self, **each: ArmCount) -> None:
        """So many more requests."""
        for label, more in each.items():
            digest = self.versions[label]
            self.totals[digest] = self.totals.get(digest, ArmCount()) + more
        held = {digest: Copy(label, Standing.DEVICE) for label, digest in self.versions.items()}
        serving = Holding("default", "pirate", 1, self.versions["v1"], held)
        self.registry.tell(NODE, [serving], lease_s=60)
        self.registry.announce(card(NODE, base=CARD.fingerprint), lease_s=60)
        self.registry.tell_arms(NODE, {("default", "pirate"): dict(self.totals)}, lease_s=60)

    @contextmanager
    def flowing(self, **each: ArmCount) -> Iterator[None]:
        """Such requests again and again."""
        stop = threading.Event()

        def flow() -> None:
            while not stop.wait(0.05):
                self.served(**each)

        thread = threading.Thread(target=flow)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def answered(number: int, *, pace: float = 0.02, failed: int = 0) -> ArmCount:
    return ArmCount(number, failed, 0, number * 20, number * 20 * pace)


@pytest.fixture
def traffic(
    shell: Shell, endpoints: Endpoints, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Traffic]:
    """v1 is served, v2 is staged; requests of long ago went badly."""
    monkeypatch.setattr(canary, "LOOK_S", 0.1)
    first = shell.document("push", "push", "one", "--name", "pirate", "--version", "v1")
    second = shell.document("push", "stage", "two", "--name", "pirate", "--version", "v2")
    versions = {"v1": first["digest"], "v2": second["digest"]}
    traffic = Traffic(open_registry(endpoints.redis_url), s3_store, versions)
    traffic.served(v1=answered(10), v2=answered(10, failed=500))
    yield traffic
    traffic.registry.leave(NODE)


def test_a_canary_that_does_well_is_promoted(shell: Shell, traffic: Traffic) -> None:
    with traffic.flowing(v1=answered(9), v2=answered(2)):
        done = shell.document("canary", *QUICK)
    assert (done["kind"], done["version"], done["split"]) == ("activate", "v2", [])
    seen = done["canary"]
    assert (seen["active"]["version"], seen["canary"]["version"]) == ("v1", "v2")
    assert (seen["canary"]["failed"], seen["canary"]["completed"] >= 20) == (0, True)
    active = traffic.head().active
    assert active is not None
    assert active.label == "v2"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (answered(2, failed=1), "requests failed"),
        (answered(2, pace=0.5), "seconds a token"),
    ],
)
def test_a_canary_that_breaks_a_bound_is_taken_back_at_once(
    shell: Shell, traffic: Traffic, bad: ArmCount, why: str
) -> None:
    with traffic.flowing(v1=answered(9), v2=bad):
        ran = shell.run("canary", "pirate", "v2", "--for", "600", "--min-answers", "20", "--json")
    error = ran.document("error")["error"]
    assert (ran.code, error["kind"]) == (4, "CanaryStopped")
    assert "v2 was taken back, v1 serves everybody under generation 4" in error["message"]
    assert why in error["message"]
    head = traffic.head()
    assert head.active is not None
    assert (head.kind, head.active.label, head.split) == (RecordKind.ROLLBACK, "v1", ())


def test_control_a_judge_who_sees_no_failures_promotes_a_broken_canary(
    shell: Shell, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "breaches", lambda active, canary, bounds: [])
    with traffic.flowing(v1=answered(9), v2=answered(2, failed=20)):
        assert shell.document("canary", *QUICK)["version"] == "v2"


def test_a_canary_nobody_asks_for_is_neither_promoted_nor_taken_back(
    shell: Shell, traffic: Traffic
) -> None:
    ran = shell.run(*QUICK, "--patience", "0.3")
    assert (ran.code, "the split stands at generation 3" in ran.err) == (4, True)
    assert "0 requests of v2 and 0 of v1 ended, 20 of each are needed" in ran.err
    assert traffic.head().kind is RecordKind.SPLIT


def test_what_somebody_else_does_meanwhile_ends_the_watch_and_stays(
    shell: Shell, traffic: Traffic
) -> None:
    watcher = shell.start("canary", "pirate", "v2", "--for", "600")
    try:
        assert watcher.stderr is not None
        assert "v2 gets 5 of 100 callers" in watcher.stderr.readline()
        shell.ok("push", "one", "--name", "pirate", "--version", "v3")
        assert watcher.wait(60) == 4
        assert "is at generation 4, a publish by" in watcher.stderr.read()
    finally:
        watcher.kill()
        watcher.communicate()
    head = traffic.head()
    assert head.active is not None
    assert (head.gen, head.active.label) == (4, "v3")


@pytest.mark.parametrize("moment", ["breaches", "await_ready"])
def test_what_somebody_else_does_at_the_last_moment_is_neither_undone_nor_built_upon(
    shell: Shell, traffic: Traffic, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    judged = getattr(canary, moment)

    def meanwhile(*arguments: object, **named: object) -> object:
        other = Publisher(traffic.store, actor="somebody else", warn=print)
        other.split("default", "pirate", {"v1": 50, "v2": 50})
        return judged(*arguments, **named)

    monkeypatch.setattr(canary, moment, meanwhile)
    broken = moment == "breaches"
    with traffic.flowing(v1=answered(9), v2=answered(2, failed=20 * broken)):
        ran = shell.run(*QUICK)
    assert (ran.code, "is at generation 4" in ran.err) == (4, True), ran.err
    assert [arm.weight for arm in traffic.head().split] == [50, 50]


def test_a_canary_that_is_out_of_sight_when_its_time_is_over_is_not_promoted(
    shell: Shell, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = canary.Trial.look

    def look_until_enough(trial: canary.Trial) -> tuple[ArmCount, ArmCount]:
        active, ours = trial.counts()
        if min(active.ended, ours.ended) >= 20:
            raise FleetUnseen("Redis is away")
        return look(trial)

    monkeypatch.setattr(canary.Trial, "look", look_until_enough)
    with traffic.flowing(v1=answered(90), v2=answered(20)):
        ran = shell.run(*QUICK, "--patience", "0.3")
    assert (ran.code, "could not be seen; the split stands at generation 3" in ran.err) == (4, True)
    assert traffic.head().kind is RecordKind.SPLIT


def test_a_store_that_is_away_for_a_moment_does_not_keep_a_bad_canary(
    shell: Shell, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollback, tried = Publisher.rollback, []

    def second_time(publisher: Publisher, tenant: str, adapter: str, *, expect_gen: int) -> object:
        tried.append(expect_gen)
        if len(tried) == 1:
            raise StoreUnavailable("the store is away")
        return rollback(publisher, tenant, adapter, expect_gen=expect_gen)

    monkeypatch.setattr(Publisher, "rollback", second_time)
    with traffic.flowing(v1=answered(9), v2=answered(2, failed=20)):
        ran = shell.run("canary", "pirate", "v2", "--for", "600")
    assert (ran.code, "v2 was taken back" in ran.err) == (4, True), ran.err
    assert (tried, traffic.head().kind) == ([3, 3], RecordKind.ROLLBACK)


def test_a_killed_watcher_leaves_a_split_that_the_next_one_goes_on_with(
    shell: Shell, traffic: Traffic
) -> None:
    watcher = shell.start("canary", "pirate", "v2", "--for", "600")
    assert watcher.stderr is not None
    assert "v2 gets 5 of 100 callers" in watcher.stderr.readline()
    watcher.send_signal(signal.SIGKILL)
    watcher.communicate()
    head = traffic.head()
    assert [(arm.version.label, arm.weight) for arm in head.split] == [("v1", 95), ("v2", 5)]
    with traffic.flowing(v1=answered(9), v2=answered(2)):
        ran = shell.ok(*QUICK, "--no-promote")
    assert "is split like that already" in ran.out
    assert traffic.head().gen == head.gen


def test_without_redis_or_anything_to_compare_no_split_is_made(
    shell: Shell, traffic: Traffic
) -> None:
    ran = shell.run("canary", "pirate", "v1")
    assert (ran.code, "v1 is what everybody gets already" in ran.err) == (2, True)
    ran = shell.run("canary", "pirate", "v9")
    assert ran.code == 3
    shell.monkeypatch.setenv("LORAPOOL_REDIS_URL", "redis://127.0.0.1:1/0")
    assert shell.run("canary", "pirate", "v2").code == 6
    shell.monkeypatch.setenv("LORAPOOL_REDIS_URL", "")
    assert shell.run("canary", "pirate", "v2").code == 6
    assert traffic.head().gen == 2
