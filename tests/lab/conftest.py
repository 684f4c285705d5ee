# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Racks for the tests of the lab, and what is left of them when a test fails: consoles and logs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.rack import Builds, Rack, missing

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Note on the test whether it has failed, so that its fixtures know."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def _complete() -> None:
    """Skip the lab where something that it needs is not installed; where everything should be, fail."""
    packages = missing()
    if packages:
        reason = f"the lab needs these Debian packages: {' '.join(packages)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def ssh_key(_complete: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private SSH key, whose owner may log in to boards in maintenance."""
    key = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60)
    return key


@pytest.fixture(scope="session")
def builds(ssh_key: Path, tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """What boards boot and what is installed on them; built once."""
    return Builds.build(tmp_path_factory.mktemp("builds"), ssh_key.with_suffix(".pub"))


@pytest.fixture
def logs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory for the test's consoles and logs, ``*.log``, which are kept; a test that fails shows their ends.

    ``MOZPOOL_LAB_LOGS`` names a directory that they go into, else they are in the test's own.
    """
    base = os.environ.get("MOZPOOL_LAB_LOGS")
    logs = (Path(base) if base else tmp_path) / re.sub(r"\W+", "-", request.node.name).strip("-")
    logs.mkdir(parents=True, exist_ok=True)
    yield logs
    if request.node.stash.get(_FAILED, False):
        print(f"Consoles and logs are in {logs}")
        for log in sorted(logs.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-15:]
            print(f"--- the end of {log.name}", *lines, sep="\n")


@pytest.fixture
def start_rack(builds: Builds, logs: Path) -> Iterator[Callable[..., Rack]]:
    """Starts a rack of so many boards, with the options of :class:`Rack`; it ends with the test, and before its logs
    are shown.
    """
    with ExitStack() as stack:
        yield lambda boards, **options: stack.enter_context(Rack(boards, builds, logs, **options))
