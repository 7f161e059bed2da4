from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.adapter_store.adapter_files import config, pack, tensors, write_adapter
from tests.adapter_store.cli.shell import Shell

pytestmark = pytest.mark.services


def test_two_versions_differ_in_config_modules_and_weights(shell: Shell, tmp_path: Path) -> None:
    shell.ok("push", "one", "--name", "pirate", "--version", "v1")
    body = json.dumps(config(r=6, target_modules=["q_proj", "k_proj"])).encode()
    weights = pack(tensors(rank=6, leaves=("q_proj", "k_proj"), seed=3))
    write_adapter(tmp_path / "three", config_body=body, weights=weights)
    shell.ok("push", "three", "--name", "pirate", "--version", "v2")
    told = shell.document("diff", "diff", "pirate@v1", "pirate@v2")
    assert told["config"] == {
        "r": {"before": 4, "after": 6},
        "target_modules": {"before": ["q_proj", "v_proj"], "after": ["k_proj", "q_proj"]},
    }
    assert (told["before"]["rank"], told["after"]["rank"]) == (4, 6)
    assert [one["state"] for one in told["modules"]] == ["changed", "changed"]
    assert len(told["modules_added"]) == len(told["modules_removed"]) == 2
    shares = [one["relative"] for one in told["modules"]]
    assert shares == sorted(shares, reverse=True)
    lines = shell.ok("diff", "pirate@v1", "--top", "1").out.splitlines()
    assert lines[0].startswith("- pirate@v1  generation 1  sha256:")
    assert lines[1].startswith("+ pirate@v2  generation 2  sha256:")
    assert "r: 4 -> 6" in lines
    assert lines[-1].startswith("... and 1 more")


def test_a_folder_is_compared_with_what_is_served(shell: Shell, tmp_path: Path) -> None:
    shell.ok("push", "one", "--name", "pirate")
    assert "the same content" in shell.ok("diff", "pirate", "./one").out
    told = shell.document("diff", "diff", "./one", "pirate")
    assert told["same_content"]
    assert {one["change"] for one in told["modules"]} == {0.0}
    assert told["before"]["generation"] is None
    halved = {name: x * np.float32(0.5) if "_B" in name else x for name, x in ones().items()}
    write_adapter(tmp_path / "half", weights=pack(halved))
    told = shell.document("diff", "diff", "pirate", "./half")
    assert [one["relative"] for one in told["modules"]] == pytest.approx([0.5] * 4)
    assert "weights: 50 % of all modules together" in shell.ok("diff", "pirate", "./half").out


def ones() -> dict[str, np.ndarray]:
    return tensors(seed=1)


def test_what_cannot_be_compared_says_what_to_run(shell: Shell) -> None:
    ran = shell.run("diff", "one")
    assert ran.code == 3
    assert "a folder is named with a slash: ./one" in ran.err
    ran = shell.run("diff", "./one")
    assert ran.code == 2
    assert "adapter-store diff ./one <name>" in ran.err
    assert shell.run("diff", "./missing", "./one").code == 5
