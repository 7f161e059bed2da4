"""Pages on the device, be it card or host, hold what was published, after every turn."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from adapter_store.draft import local_content
from adapter_store.validate import check_content, read_adapter_dir
from inference_node.adapters import pool
from inference_node.adapters.versions import Residency
from inference_node.adapters.weights import host_adapter
from tests.inference_node.conftest import StartTiny
from tests.inference_node.harness import Node
from tests.inference_node.tiny import make_adapter

VERSIONS = 24
STREAMS = 4
READ = (Residency.RESIDENT, Residency.DRAINING)
"""A step may read these."""

Checksums = tuple[int, ...]


def checksums(tensors: Iterable[torch.Tensor]) -> Checksums:
    """CRC-32 of each tensor's memory."""
    return tuple(
        zlib.crc32(tensor.cpu().contiguous().view(torch.uint8).numpy()) for tensor in tensors
    )


@dataclass
class PageAudit:
    """Reads every page that steps may read back from the device, between any two turns."""

    node: Node
    published: dict[str, Checksums] = field(default_factory=dict)
    """By digest: A and B of each group."""
    read: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        turn = self.node.engine._turn

        def watched() -> bool:
            stuck = turn()
            self._look()
            return stuck

        self.node.engine._turn = watched  # type: ignore[method-assign]

    def publish(self, name: str, folder: Path) -> int:
        """As `Node.publish`; what the pages must hold is worked out from the files."""
        card, decoder = self.node.card, self.node.engine._runner._decoder
        local = read_adapter_dir(folder, card=card)
        checked = check_content(
            local.files, config=local.spec.allow_listed(), card_modules=card.modules
        )
        host = host_adapter(checked, decoder.module_map, dtype=decoder.base.dtype)
        groups = [group for group in host.groups if group is not None]
        assert len(groups) == len(host.groups)
        vdig = local_content(local, None).vdig
        self.published[vdig] = checksums(factor for one in groups for factor in (one.a, one.b))
        return self.node.publish(name, folder)

    def _look(self) -> None:
        engine = self.node.engine
        for held in engine._slots.holders():
            if held.state not in READ:
                continue
            found = checksums(
                factor for pair in engine._runner._pool.read_back(held) for factor in pair
            )
            self.read += 1
            if found != self.published[held.key.vdig]:
                self.wrong.append(f"{held.key} as {held.state.name}")


def swap_beside_streams(audit: PageAudit, folders: Sequence[Path]) -> None:
    """Two adapters change their version in turn while others' answers run."""
    node = audit.node
    streams = []
    for turn, folder in enumerate(folders):
        name = f"a{turn % 2}"
        gen = audit.publish(name, folder)
        streams.append(node.ask(name, tokens=48, min_generation=gen))
        if len(streams) > STREAMS:
            streams.pop(0).wait()
    for stream in streams:
        stream.wait()
    node.settle()


@pytest.fixture
def node(start_tiny: StartTiny) -> Node:
    """With room for a few versions."""
    return start_tiny(pool_bytes=2**20)


@pytest.fixture
def versions(node: Node, tmp_path: Path) -> list[Path]:
    """Many, of different ranks."""
    modules = dict(node.card.modules)
    return [
        make_adapter(tmp_path / f"v{seed}", modules, rank=5 + 7 * (seed % 3), seed=seed)
        for seed in range(VERSIONS)
    ]


def test_every_page_on_the_device_has_the_checksum_of_what_was_published_through_all_swaps(
    node: Node, versions: list[Path]
) -> None:
    audit = PageAudit(node)
    swap_beside_streams(audit, versions)
    assert audit.wrong == []
    assert len(audit.published) == VERSIONS
    assert audit.read > 10 * VERSIONS
    assert len(node.engine._slots.holders()) < VERSIONS, "no page ever changed hands"


def test_control_a_copy_that_changes_one_byte_of_one_page_is_seen(
    node: Node, versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, copies = pool._copy, iter(range(10_000))

    def damaged(source: torch.Tensor, target: torch.Tensor) -> None:
        copy(source, target)
        if next(copies) == 30:
            target.view(torch.uint8).view(-1)[-1] ^= 1

    monkeypatch.setattr(pool, "_copy", damaged)
    audit = PageAudit(node)
    swap_beside_streams(audit, versions[:8])
    assert audit.wrong
