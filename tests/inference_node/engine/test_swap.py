"""Publishing under load: who started on a version ends on it, who comes after gets the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter_store.layout import DEFAULT_TENANT, log_key
from inference_node.adapters.versions import Resident
from inference_node.engine.admission import Admission
from inference_node.engine.sequence import Sequence
from inference_node.errors import AdapterCorrupt
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import Answer, Node
from tests.inference_node.tiny import make_adapter

SWAPS = 50
STREAMS = 8
VOICES = 4


def make_voices(node: Node, folder: Path) -> list[Path]:
    """Adapters of different ranks that give different answers."""
    modules = dict(node.card.modules)
    return [
        make_adapter(folder / f"voice{index}", modules, rank=8 * index + 3, seed=index)
        for index in range(VOICES)
    ]


def test_a_running_request_ends_on_the_version_it_started_on(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny()
    first, second, *_ = make_voices(node, tmp_path)
    node.publish("a", first, label="v1")
    undisturbed = node.ask("a", tokens=160).tokens
    running = node.ask("a", tokens=160).wait(tokens=3)
    generation = node.publish("a", second, label="v2")
    after = node.ask("a", tokens=24, min_generation=generation).wait()
    assert not running.ended, "the swap must happen while the first request runs"
    assert after.completed.served.version == "v2"
    assert running.completed.served.version == "v1"
    assert running.token_ids == undisturbed
    assert after.token_ids != undisturbed[:24]
    node.settle()


def test_a_rollback_serves_the_old_content_under_a_higher_generation(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny()
    first, second, *_ = make_voices(node, tmp_path)
    node.publish("a", first, label="v1")
    before = node.ask("a").wait()
    node.publish("a", second, label="v2")
    rolled = node.publisher.rollback(DEFAULT_TENANT, "a", to="v1")
    after = node.ask("a", min_generation=rolled.gen).wait()
    assert after.token_ids == before.token_ids
    assert after.completed.served.generation == rolled.gen == 3
    assert after.completed.served.digest == before.completed.served.digest
    assert after.completed.served.version == "v1"


def test_a_pinned_reference_is_served_whatever_is_current(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny()
    first, second, *_ = make_voices(node, tmp_path)
    node.publish("a", first, label="v1")
    old = node.ask("a").wait()
    node.publish("a", second, label="v2")
    by_label = node.ask("a@v1").wait()
    by_digest = node.ask(f"a@sha256:{old.completed.served.digest}").wait()
    assert by_label.token_ids == by_digest.token_ids == old.token_ids


def test_a_record_nobody_can_read_leaves_the_last_good_version_serving(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny(max_staleness=0.0)
    first, *_ = make_voices(node, tmp_path)
    node.publish("a", first, label="v1")
    before = node.ask("a").tokens
    node.store.put_new(log_key(DEFAULT_TENANT, "a", 2), b"no record")
    for name in ("a", "a@v1"):
        after = node.ask(name).wait()
        assert after.token_ids == before
        assert after.completed.served.generation == 1
    assert isinstance(node.ask("a", min_generation=2).error, AdapterCorrupt)
    assert isinstance(node.ask("a@v2").error, AdapterCorrupt)
    node.settle()


def swap_under_load(node: Node, folders: list[Path], *, swaps: int) -> list[Answer]:
    """Publish again and again while streams run; every answer, when all have ended."""
    streams = [node.ask("a", tokens=20) for _ in range(STREAMS)]
    answers = list(streams)
    for swap in range(swaps):
        generation = node.publish("a", folders[swap % len(folders)])
        answers.append(node.ask("a", tokens=4, min_generation=generation).wait())
        for index, stream in enumerate(streams):
            if stream.ended:
                streams[index] = node.ask("a", tokens=20)
                answers.append(streams[index])
    return [answer.wait() for answer in answers]


def wrong(answers: list[Answer], truth: dict[str, list[int]]) -> list[Answer]:
    """Answers that are not what the version they name gives alone."""
    return [
        answer
        for answer in answers
        if answer.token_ids != truth[answer.completed.served.digest][: len(answer.token_ids)]
    ]


def truth_of(node: Node, folders: list[Path]) -> dict[str, list[int]]:
    """What each version answers with nothing else running."""
    truth = {}
    for index, folder in enumerate(folders):
        node.publish(f"alone{index}", folder)
        alone = node.ask(f"alone{index}", tokens=20).wait()
        truth[alone.completed.served.digest] = alone.token_ids
    assert len({tuple(tokens) for tokens in truth.values()}) == len(folders)
    return truth


def test_50_swaps_under_8_streams_give_no_wrong_answer(
    start_tiny: StartTiny, tmp_path: Path
) -> None:
    node = start_tiny()
    folders = make_voices(node, tmp_path)
    truth = truth_of(node, folders)
    node.publish("a", folders[-1])
    answers = swap_under_load(node, folders, swaps=SWAPS)
    assert len(answers) >= SWAPS + STREAMS
    assert wrong(answers, truth) == []
    assert len({answer.completed.served.generation for answer in answers}) > SWAPS // 2
    node.settle()


def test_control_a_request_that_follows_its_name_is_caught(
    start_tiny: StartTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded bug: rows run on whatever their name serves now, not on the version they hold."""
    node = start_tiny()
    folders = make_voices(node, tmp_path)
    truth = truth_of(node, folders)
    node.publish("a", folders[-1])
    runner = node.engine._runner
    routing = runner._pool.routing
    admission: Admission = node.engine._admission

    def follow_the_name(held: Resident) -> object:
        for sequence in node.engine._active.values():
            if sequence.lease is held:
                return routing(current_of(admission, sequence) or held)
        return routing(held)

    monkeypatch.setattr(runner._pool, "routing", follow_the_name)
    answers = swap_under_load(node, folders, swaps=12)
    assert wrong(answers, truth)


def current_of(admission: Admission, sequence: Sequence) -> Resident | None:
    assert sequence.entry is not None
    entry = admission._slots.serving(sequence.entry.tenant, sequence.entry.adapter)
    return None if entry is None else admission._slots.resident(entry.key)
