"""The check after every step sees each kind of sum that can go wrong. Controls of that check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from inference_node.adapters.host_tier import HostTier
from inference_node.adapters.pages import PageAllocator
from inference_node.adapters.reports import Target
from inference_node.adapters.slots import SlotTable
from inference_node.adapters.versions import Entry, Resident
from inference_node.engine.admission import Admission
from inference_node.engine.arrivals import Arrivals
from inference_node.engine.claims import Claim
from inference_node.engine.kv_blocks import BlockAllocator
from inference_node.engine.names import Names
from inference_node.engine.sequence import Sequence
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import Node
from tests.inference_node.step_audit import StepAudit
from tests.inference_node.tiny import make_adapter

Patch = Callable[[pytest.MonkeyPatch], None]


def keep_a_page(patch: pytest.MonkeyPatch) -> None:
    release = PageAllocator.release
    patch.setattr(
        PageAllocator,
        "release",
        lambda self, pages: release(self, [group[1:] for group in pages]),
    )


def free_a_page_twice(patch: pytest.MonkeyPatch) -> None:
    release = PageAllocator.release
    patch.setattr(
        PageAllocator,
        "release",
        lambda self, pages: release(self, [[*group, *group[:1]] for group in pages]),
    )


def keep_a_block(patch: pytest.MonkeyPatch) -> None:
    release = BlockAllocator.release

    def all_but_one(self: BlockAllocator, blocks: list[int]) -> None:
        release(self, blocks[1:])

    patch.setattr(BlockAllocator, "release", all_but_one)


def keep_a_lease(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Admission, sequence: Sequence) -> None:
        sequence.lease = None

    patch.setattr(Admission, "release", forget)


def hold_a_lease_too_many(patch: pytest.MonkeyPatch) -> None:
    lease = SlotTable.lease

    def twice(self: SlotTable, key: object) -> Resident:
        lease(self, key)  # type: ignore[arg-type]
        return lease(self, key)  # type: ignore[arg-type]

    patch.setattr(SlotTable, "lease", twice)


def hand_out_anothers_version(patch: pytest.MonkeyPatch) -> None:
    def first(self: SlotTable, key: object) -> Resident:
        found = next(iter(self._residents.values()))
        found.leases += 1
        self.lease_count += 1
        return found

    patch.setattr(SlotTable, "lease", first)


def lose_a_claim(patch: pytest.MonkeyPatch) -> None:
    claim = Arrivals.claim

    def forgetful(self: Arrivals, one: Claim, target: Target) -> None:
        claim(self, one, target)
        if target.entry.adapter == "n2":
            self.withdraw(one)

    patch.setattr(Arrivals, "claim", forgetful)


def keep_more_on_the_host_than_there_is_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HostTier, "_drop", lambda self, key: self._kept.pop(key))


def go_back_to_an_older_version(patch: pytest.MonkeyPatch) -> None:
    serve = Names.serve

    def backwards(self: Names, entry: Entry) -> None:
        serve(self, entry)
        name = entry.tenant, entry.adapter
        older = replace(self._slots._serving[name], gen=entry.gen - 2)
        if entry.gen == 2:
            self._slots._serving[name] = older
            self._reached[name] = older.gen

    patch.setattr(Names, "serve", backwards)


def busy(start_tiny: StartTiny, folder: Path) -> None:
    """Requests of several adapters side by side and one after the other, pages re-used."""
    page_bytes = start_tiny().engine.info().pool.page_bytes
    node: Node = start_tiny(pool_bytes=10 * page_bytes, host_bytes=7 * page_bytes)
    names = [f"n{seed}" for seed in range(4)]
    for seed, name in enumerate(names):
        made = make_adapter(folder / name, dict(node.card.modules), rank=24, seed=seed)
        node.publish(name, made)
    long = node.ask(names[0], tokens=60).wait(tokens=2)
    for name in names[1:]:
        node.ask(name, tokens=3, deadline_in=1.0).wait()
    long.wait()
    node.ask("", tokens=2).wait()
    generation = node.publish(names[0], folder / names[1])
    node.ask(names[0], tokens=2, min_generation=generation, deadline_in=5.0).wait()


def test_sound_steps_are_all_checked_and_all_add_up(
    start_tiny: StartTiny, tmp_path: Path, step_audit: StepAudit
) -> None:
    before = step_audit.checks
    busy(start_tiny, tmp_path)
    assert step_audit.checks - before >= 60
    assert step_audit.broken == []


@pytest.mark.parametrize(
    "seed_bug",
    [
        keep_a_page,
        free_a_page_twice,
        keep_a_block,
        keep_a_lease,
        hold_a_lease_too_many,
        hand_out_anothers_version,
        lose_a_claim,
        keep_more_on_the_host_than_there_is_room,
        go_back_to_an_older_version,
    ],
)
def test_control_a_sum_that_is_off_is_seen_in_the_step_that_broke_it(
    start_tiny: StartTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step_audit: StepAudit,
    seed_bug: Patch,
) -> None:
    seed_bug(monkeypatch)
    busy(start_tiny, tmp_path)
    assert step_audit.expect_broken()
