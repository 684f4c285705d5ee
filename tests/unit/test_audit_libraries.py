# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""scripts/audit-libraries, with a pip-audit that says what the real one would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit-libraries"


def audit(directory: Path, said: str, accepted: str = "", status: int = 0) -> tuple[int, str]:
    """Run a copy of the script in a project that accepts some; ``said`` is pip-audit's output."""
    (directory / "scripts").mkdir()
    copy = directory / "scripts" / "audit-libraries"
    copy.write_text(SCRIPT.read_text())
    (directory / "pyproject.toml").write_text(f"[tool.mozpool.accepted-vulnerabilities]\n{accepted}\n")
    (directory / "output").write_text(said)
    program = directory / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat {directory}/output\necho 'a last word' >&2\nexit {status}\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, copy], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def report(*libraries: dict[str, Any]) -> str:
    return json.dumps({"dependencies": list(libraries), "fixes": []})


CLEAN = {"name": "flask", "version": "3.1.0", "vulns": []}
HOLE = {
    "name": "waitress",
    "version": "3.0.0",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["3.0.1"], "aliases": ["CVE-2026-1"], "description": "bad"}],
}
UNKNOWN = {"name": "odd", "skip_reason": "Dependency not found on PyPI"}
OWN = {"name": "mozpool", "skip_reason": "distribution marked as editable"}
PIP = {**HOLE, "name": "pip"}


@pytest.mark.parametrize(
    ("said", "accepted", "status", "words"),
    [
        (report(CLEAN, OWN, PIP), "", 0, ""),
        (report(CLEAN, HOLE), "", 1, "waitress 3.0.0: CVE-2026-1 PYSEC-2026-1, mended in 3.0.1"),
        (report(CLEAN, HOLE), '"CVE-2026-1" = "we never do this"', 0, ""),
        (report(CLEAN), '"CVE-2026-1" = "we never do this"', 0, "CVE-2026-1 is accepted in pyproject.toml, but no"),
        (report(CLEAN, UNKNOWN), "", 0, "1 of 2 libraries could not be checked"),
        (report(UNKNOWN, OWN), "", 0, "skipped: PyPI knows none of the libraries"),
        ("", "", 0, "skipped: a last word"),
    ],
)
def test_what_is_known_of_libraries_counts(tmp_path: Path, said: str, accepted: str, status: int, words: str) -> None:
    code, output = audit(tmp_path, said, accepted, status=1)
    assert code == status, output
    assert words in output
    assert bool(words) == bool(output)
