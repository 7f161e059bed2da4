"""A node process killed at the worst moment of a swap: there is nothing it has to be told after."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

from inference_node.client import Client, NodeUnreachable
from inference_node.errors import NodeError
from tests.chaos.bench import ROOT
from tests.integration.asking import PROMPT, begin, exactly
from tests.integration.conftest import Truth
from tests.integration.dying_node import KEEPING, POINTS
from tests.integration.node_process import NodeProcess, with_kernels
from tests.integration.site import Site


@pytest.fixture
def own_site(site: Site, tmp_path: Path) -> Site:
    """The same store, seen from a folder with a cache of its own."""
    own = replace(site, folder=tmp_path)
    with_kernels(own.cache)
    return own


@dataclass(frozen=True, slots=True)
class Doomed:
    """A running node that dies at its point once the file `order` is there."""

    node: NodeProcess
    order: Path


@contextlib.contextmanager
def dying(site: Site, point: str, *bugs: str) -> Iterator[Doomed]:
    order = site.folder / "now"
    program = (sys.executable, "-m", "tests.integration.dying_node", point, str(order), *bugs)
    node = site.node(program)
    node.environment = {**node.environment, "PYTHONPATH": str(ROOT)}
    try:
        yield Doomed(node.start(), order)
    finally:
        node.kill()
        order.unlink(missing_ok=True)


def kill_in_swap(site: Site, doomed: Doomed, name: str, folder: Path, label: str) -> None:
    """Publish a version beside a running stream; loading it is the end of the node."""
    with doomed.node.client() as client:
        stream = begin(client, name)
        doomed.order.touch()
        site.publish(name, folder, label=label)
        assert doomed.node.exit_code() == -signal.SIGKILL
        with pytest.raises(NodeUnreachable):
            _ = stream.result


def whole(client: Client, name: str, label: str, truth: tuple[int, ...]) -> bool:
    """Whether this version answers, as it does when it is alone."""
    answer = client.generate(PROMPT, adapter=name, stopping=exactly(len(truth)))
    return answer.served.version == label and answer.token_ids == truth


def test_a_node_killed_in_the_middle_of_a_swap_starts_again_with_a_whole_version(
    own_site: Site, voices: list[Path], truth: Truth
) -> None:
    versions = [(f"v{index}", voices[index % len(voices)]) for index in range(len(POINTS) + 1)]
    own_site.publish("dies", versions[0][1], label=versions[0][0])
    for point, ((before, voice), (after, unseen)) in zip(POINTS, pairwise(versions), strict=True):
        with dying(own_site, point) as doomed:
            with doomed.node.client() as client:
                assert whole(client, "dies", before, truth(voice, PROMPT, 24)), point
            kill_in_swap(own_site, doomed, "dies", unseen, after)
    last, voice = versions[-1]
    survivor = own_site.node()
    try:
        with survivor.start().client() as client:
            assert whole(client, "dies", last, truth(voice, PROMPT, 24))
    finally:
        survivor.kill()


def test_control_a_cache_that_writes_in_place_is_noticed_once_its_node_was_killed(
    own_site: Site, voices: list[Path], truth: Truth
) -> None:
    own_site.publish("believes", voices[0], label="v0")
    with dying(own_site, KEEPING, "--in-place") as doomed:
        kill_in_swap(own_site, doomed, "believes", voices[1], "v1")
    with dying(own_site, KEEPING, "--in-place") as doomed, doomed.node.client() as client:
        try:
            noticed = not whole(client, "believes", "v1", truth(voices[1], PROMPT, 24))
        except NodeError:
            noticed = True
    assert noticed
