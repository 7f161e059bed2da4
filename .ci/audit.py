"""Does an advisory name a package that a file pins? `python .ci/audit.py PIP_AUDIT FILE`.

Exits with 0 when all were looked up and none is named, with 1 when one is, and with 3 when some
could not be looked up, which is neither a finding nor a clean bill. `make audit` shows the code as
`Error 1` or `Error 3`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CLEAN, VULNERABLE, UNREACHED = 0, 1, 3


def main(program: str, file: str) -> int:
    # Not --strict, which ends at the first package that cannot be looked up.
    command = [program, "--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"]
    done = subprocess.run([*command, "-r", file], stdout=subprocess.PIPE, text=True, check=False)
    pinned = sum("==" in line for line in Path(file).read_text().splitlines())
    looked_up = [one for one in _told(done.stdout) if "vulns" in one]
    found = list(_advisories(looked_up))
    sys.stdout.writelines(f"{line}\n" for line in found)
    unknown = pinned - len(looked_up)
    if unknown:
        sys.stderr.write(
            f"no advisories could be had for {unknown} of {pinned} packages: pypi.org was not "
            "reached, or a mirror without advisories was; run it where it can be reached\n"
        )
    if found:
        return VULNERABLE
    if unknown:
        return UNREACHED
    sys.stdout.write(f"no advisory names any of the {pinned} packages of {file}\n")
    return CLEAN


def _told(text: str) -> list[dict[str, Any]]:
    """One entry for each package; none where there was no answer."""
    try:
        told: list[dict[str, Any]] = json.loads(text)["dependencies"]
    except ValueError:
        return []
    return told


def _advisories(packages: list[dict[str, Any]]) -> list[str]:
    return [
        f"{package['name']} {package['version']}: {advisory['id']} "
        f"(mended in {', '.join(advisory['fix_versions']) or 'no version yet'})"
        for package in packages
        for advisory in package["vulns"]
    ]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
