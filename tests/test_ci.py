"""What runs on every change: the workflow, what it runs, and what the audit makes of an answer.

The programs here only stand where pip-audit would, with words that it has said.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
TEXT = WORKFLOW.read_text()
PINNED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40}")
NEEDED = {"lint", "breaking", "test", "audit"}
PINS = "accelerate==1.15.0\nurllib3==1.26.0\n"
CLEAN = {"name": "accelerate", "version": "1.15.0", "vulns": []}
UNKNOWN = {
    "name": "accelerate",
    "skip_reason": "Dependency not found on PyPI and could not be audited: accelerate (1.15.0)",
}
ADVISORY = {
    "id": "PYSEC-2021-108",
    "fix_versions": ["1.26.5"],
    "aliases": ["CVE-2021-33503"],
    "description": "a URL with many @ takes long",
}
SOUND = {"name": "urllib3", "version": "1.26.0", "vulns": []}
NAMED = {**SOUND, "vulns": [ADVISORY]}


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def breaches(text: str) -> list[str]:
    """What is wrong with a workflow that its schema allows."""
    workflow = yaml.safe_load(text)
    run = " ; ".join(step.get("run", "") for step in steps(workflow))
    made = set(re.findall(r"\bmake ([\w-]+)", run))
    there = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = [f"there is no target {name}" for name in sorted(made - there)]
    found += [f"nobody runs {name}" for name in sorted(NEEDED - made)]
    found += [
        f"{step['uses']} is not pinned to a commit"
        for step in steps(workflow)
        if "uses" in step and not PINNED.fullmatch(step["uses"])
    ]
    jobs = workflow["jobs"]
    found += [f"{name} never ends" for name, job in jobs.items() if "timeout-minutes" not in job]
    granted = [each["permissions"] for each in (workflow, *jobs.values()) if "permissions" in each]
    if granted != [{"contents": "read"}]:
        found.append("it may do more than read")
    return found


def test_the_workflow_is_valid_and_a_typo_in_it_is_refused(tmp_path: Path) -> None:
    typo = tmp_path / "typo.yml"
    typo.write_text(TEXT.replace("runs-on:", "run-on:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.github-workflows", str(WORKFLOW), str(typo)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert set(re.findall(r"(\S+)::\$", done.stdout)) == {str(typo)}


def test_the_workflow_runs_what_there_is_reads_alone_and_takes_actions_by_their_commit() -> None:
    assert breaches(TEXT) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("make test", "make tests"),
        ("- run: make audit", "- run: echo"),
        ("- run: make breaking", ""),
        ("@de0fac2e4500dabe0009e67214ff5f5447ce83dd", "@v6"),
        ("contents: read", "contents: write"),
        ("timeout-minutes: 60", ""),
    ],
)
def test_a_workflow_that_promises_less_would_be_caught(before: str, after: str) -> None:
    assert before in TEXT
    assert breaches(TEXT.replace(before, after)) != []


def test_lint_holds_the_protos_to_their_rules_and_to_what_callers_were_promised() -> None:
    command = ["make", "--dry-run", "lint", "breaking"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for needed in ("buf lint", "buf breaking --against protos/baseline.binpb", "ref=origin/main"):
        assert needed in told


@pytest.mark.parametrize(
    ("said", "code", "shown"),
    [
        ([CLEAN, SOUND], 0, "no advisory names any of the 2 packages"),
        ([CLEAN, NAMED], 1, "urllib3 1.26.0: PYSEC-2021-108 (mended in 1.26.5)"),
        ([UNKNOWN, NAMED], 1, "for 1 of 2 packages"),
        ([UNKNOWN, SOUND], 3, "for 1 of 2 packages"),
        ([SOUND], 3, "for 1 of 2 packages"),
        (None, 3, "for 2 of 2 packages"),
    ],
)
def test_advisories_that_cannot_be_had_are_no_clean_bill_and_no_finding(
    tmp_path: Path, said: object, code: int, shown: str
) -> None:
    answer = "" if said is None else json.dumps({"dependencies": said, "fixes": []})
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit 1\n")
    program.chmod(0o755)
    pins = tmp_path / "constraints.txt"
    pins.write_text(PINS)
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), str(program), str(pins)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert shown in done.stdout + done.stderr
