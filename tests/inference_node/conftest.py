"""Nodes over an in-memory store: tiny random bases for logic, the real base for exactness."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapter_store.memory import MemoryStore
from inference_node.cli import main
from inference_node.config import EngineConfig
from inference_node.model.default_base import ensure_default_base
from tests.inference_node.cli.program import Ran, Run
from tests.inference_node.harness import Node, start_node
from tests.inference_node.rpc.running_node import running_node
from tests.inference_node.rpc.scripted_engine import ScriptedEngine
from tests.inference_node.step_audit import StepAudit, audited_steps
from tests.inference_node.tattoo import make_tattoo_base
from tests.inference_node.tiny import make_checkpoint

StartTiny = Callable[..., Node]


@pytest.fixture(scope="package", autouse=True)
def every_step() -> Iterator[StepAudit]:
    """Wraps every engine of these tests; `step_audit` is what a test sees of it."""
    with audited_steps() as audit:
        yield audit


@pytest.fixture(autouse=True)
def step_audit(every_step: StepAudit) -> Iterator[StepAudit]:
    """Fails a test in which a step left slots, pages, blocks or leases that do not add up.

    The control of a bug that breaks them says so with `expect_broken`.
    """
    with every_step.of_one_test() as audit:
        yield audit


@pytest.fixture
def engine() -> ScriptedEngine:
    """What a node serves where only its edge is looked at."""
    return ScriptedEngine()


@pytest.fixture
def address(engine: ScriptedEngine) -> Iterator[str]:
    """A node over `engine`, in the clear."""
    with running_node(engine) as address:
        yield address


@pytest.fixture(scope="session")
def default_base() -> Path:
    return ensure_default_base()


@pytest.fixture(scope="session")
def tiny_base(default_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    return make_checkpoint(folder, tokenizer_from=default_base)


@pytest.fixture(scope="session")
def tattoo_base(default_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base for the adapters of tattoo.py; `start_tiny(base_model=str(tattoo_base))`."""
    folder = tmp_path_factory.mktemp("bases") / "tattoo"
    return make_tattoo_base(folder, tokenizer_from=default_base)


@pytest.fixture(scope="session")
def tiny_config(tiny_base: Path) -> EngineConfig:
    """Exact arithmetic: the 4-bit values in float32."""
    return EngineConfig(
        base_model=str(tiny_base),
        linears="dense",
        dtype="float32",
        pool_bytes=2 * 2**20,
        kv_tokens=2048,
        max_context=512,
    )


@pytest.fixture
def start_tiny(tiny_config: EngineConfig) -> Iterator[StartTiny]:
    """Starts nodes on the tiny base; keyword arguments change its settings."""
    nodes: list[Node] = []

    def start(store: MemoryStore | None = None, **changes: object) -> Node:
        config = replace(tiny_config, **changes)  # type: ignore[arg-type]
        nodes.append(start_node(config, store or MemoryStore()))
        return nodes[-1]

    torch.set_num_threads(2)
    yield start
    for node in nodes:
        node.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The program as the shell would call it."""

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["inference-node", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        code = left.value.code
        return Ran(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run
