# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a test of the lab leaves when it fails: the consoles of all boots. No machine is started here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mozpool import resources
from tests.lab.test_live_image import Lab, Machine, Web

RACK = """
import pytest
from tests.lab import conftest


class Rack:
    def __init__(self, boards, builds, logs):
        self.boards = boards
        self.console = logs / "board1.log"

    def say(self, text):
        with self.console.open("a") as console:
            console.write(text + "\\n")

    def __enter__(self):
        self.say("first boot of " + self.console.parent.name)
        if self.boards == 0:
            raise RuntimeError("a rack needs boards")
        return self

    def __exit__(self, *_):
        self.say("power cut")


@pytest.fixture
def builds(monkeypatch):
    monkeypatch.setattr(conftest, "Rack", Rack)


@pytest.fixture
def rack(start_rack):
    return start_rack(1)


def test_fails(rack):
    rack.say("second boot of test_fails")
    assert False


def test_whose_rack_does_not_start(start_rack):
    start_rack(0)


@pytest.mark.parametrize("image", ["raw"])
def test_passes(rack, image):
    pass
"""


@pytest.mark.parametrize("named", [True, False], ids=["MOZPOOL_LAB_LOGS", "its own directory"])
def test_consoles_are_kept_and_those_of_tests_that_fail_are_shown(tmp_path: Path, named: bool) -> None:
    (tmp_path / "test_inner.py").write_text(RACK)
    kept = tmp_path / "logs" if named else tmp_path / "base"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "MOZPOOL_"))}
    environment["PYTHONPATH"] = str(resources.CHECKOUT)
    if named:
        environment["MOZPOOL_LAB_LOGS"] = str(kept)
    command = [sys.executable, "-m", "pytest", "-p", "tests.lab.conftest", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "base"), "test_inner.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    consoles = {path.parent.name: path for path in kept.rglob("board1.log")}
    assert set(consoles) == {"test_fails", "test_whose_rack_does_not_start", "test_passes-raw"}
    shown = done.stdout.splitlines()
    for name, console in consoles.items():
        lines = console.read_text().splitlines()
        assert lines[0] == f"first boot of {name}"
        failed = name != "test_passes-raw"
        assert (f"Consoles and logs are in {console.parent}" in shown) == failed
        assert (lines[0] in shown) == failed
    begin = shown.index("--- the end of board1.log", shown.index("first boot of test_fails") - 1)
    assert shown[begin + 1 : begin + 4] == ["first boot of test_fails", "second boot of test_fails", "power cut"]


QEMU = """\
#!/bin/sh
# Says something on the console that its arguments name, and ends, as a machine that boots anew.
for word; do
    case $word in
        *path=*,append=on)
            console=${word#*path=}
            echo "boot $(grep -c "^--- " "${console%,append=on}")" >>"${console%,append=on}"
            ;;
    esac
done
"""


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The lab of the live image, with machines that only say which boot that was."""
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(QEMU)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    images = tmp_path / "images"
    images.mkdir()
    (images / "preseed.img").write_bytes(b"")
    web = Web(tmp_path)
    lab = Lab(tmp_path, images, web, tmp_path / "console.log")
    yield lab
    lab.stop()
    web.server_close()


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")
def test_a_boot_of_the_live_image_leaves_the_consoles_of_those_before(live: Lab) -> None:
    def said(machine: Machine) -> str:
        machine.wait("its end", machine.ended)
        return machine.text()

    assert said(live.boot_live("raw")) == "boot 1\n"
    assert said(live.boot_live("b2g")) == "boot 2\n"
    assert said(live.boot_disk()) == "boot 3\n"
    assert live.console.read_text().splitlines() == [
        *("", "--- power on: the live image, raw", "boot 1"),
        *("", "--- power on: the live image, b2g", "boot 2"),
        *("", "--- power on: its disk", "boot 3"),
    ]
