# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Boards that really boot from the network, and a whole Mozpool that installs, proves, lends and takes them back.

Nothing is stood in for but the boards' hardware, which is virtual. All time limits are those of real boards, but for
one that the test of a board that dies makes shorter.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mozpool import resources
from mozpool.client import Request
from tests.lab.network import may_have_own_network
from tests.lab.rack import MARKER, Rack
from tests.processes import default_signals

INSTALL_LIMIT = 900.0
"""Seconds until an installation must be through, also on a machine with too much to do."""

BOOT_LIMIT = 300.0
"""Seconds until a board that boots from its own disk must be up."""

CYCLES = 5
"""How often a board is started with Mozpool, and as often without, to find out how long Mozpool's part takes."""

NOTICE_LIMIT = 10.0
"""Seconds from an agent's start to ``ready``, on a machine whose boards boot in less: much more than it should take."""

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(1800)]

PROVING = ["sut_verifying", "sut_sdcard_verifying", "operation_complete", "ready"]
NETBOOT = ["pxe_power_cycling", "pxe_booting", "mobile_init_started"]
INSTALLING = {
    "raw": ["raw_downloading", "raw_writing", "raw_rebooting"],
    "b2g": ["b2g_downloading", "b2g_extracting"],
    "android": ["android_downloading", "android_extracting"],
}

StartRack = Callable[..., Rack]


def ask(rack: Rack, image: str, device: str = "any") -> Request:
    """Ask for a board with an image."""
    return rack.client.request(device, image=image, duration=3600, boot_config=rack.boot_config(image), wait=600)


def run(rack: Rack, request: Request, *command: str) -> str:
    """What a program on the request's board prints."""
    assert request.assigned_device is not None
    output = rack.client.agent_exec(request.assigned_device, command, request_id=request.id)
    assert output.return_code == 0, output
    return output.output


def give_back(rack: Rack, request: Request) -> None:
    """Return the request's board, and see that it is free."""
    assert request.assigned_device is not None
    rack.client.return_request(request.id)
    assert rack.client.get_request(request.id).state == "closed"
    assert rack.client.device(request.assigned_device).request_id is None


def in_order(wanted: Sequence[str], states: Iterable[str]) -> bool:
    """Whether a board went through these states one after the other; a slow one may have tried a step again."""
    passed = iter(states)
    return all(state in passed for state in wanted)


def wait_for_state(rack: Rack, name: str, state: str, limit: float) -> None:
    """Wait until the device has come to a state."""
    give_up = time.monotonic() + limit
    while rack.states(name)[-1] != state:
        assert time.monotonic() < give_up, f"{name} is not {state} after {limit:.0f} s: {rack.states(name)}"
        time.sleep(0.05)


def holds(rack: Rack, request: Request, build: str) -> None:
    """See that the request's board runs this build from its own disk, all three partitions of it."""
    assert run(rack, request, "cat", "/system/version") == f"{build}\n"
    assert run(rack, request, "cat", f"/data/{MARKER}") == f"{build}\n"
    kernel = run(rack, request, "cat", "/proc/cmdline")
    assert "mobile-imaging-url" not in kernel
    assert "mozpool-token" not in kernel


def only_cycled_power(states: Sequence[str]) -> None:
    """See that a board was not installed again, but proven."""
    assert in_order(["pc_power_cycling", "pc_rebooting", *PROVING], states)
    assert not set(states) & {"start_pxe_boot", *NETBOOT, *INSTALLING["raw"]}


def full_cycle(rack: Rack, image: str) -> None:
    """Ask for a board with an image, which is installed, proven and lent, and give it back."""
    finish_cycle(rack, image, ask(rack, image))


def finish_cycle(rack: Rack, image: str, asked: Request) -> None:
    """The same for a request that was made just now."""
    request = rack.client.wait_ready(asked.id, timeout=INSTALL_LIMIT)
    name = request.assigned_device
    assert name is not None
    assert in_order(["ready", "start_pxe_boot", *NETBOOT, *INSTALLING[image], *PROVING], rack.states(name))
    assert not list((rack.directory / "tftp" / "pxelinux.cfg").glob("01-*")), (
        "the board would boot the live image again"
    )
    holds(rack, request, f"{image}-1")
    assert rack.client.device(name).image == image
    give_back(rack, request)


def test_a_board_boots_from_the_network_is_installed_proven_lent_and_returned(start_rack: StartRack) -> None:
    """It is known by the token of its boot, which it has from its kernel's command line; nobody else is heard."""
    rack = start_rack(1)
    asked = ask(rack, "raw")
    token = booting(rack, "board1")
    for event in ("mobile_init_started", "raw_rebooting"):
        assert rack.tell("board1", event) == 401
        assert rack.tell("board1", event, token[:-1] + "_") == 401
    assert rack.tell("board1", "please_image", token) == 403, "not even the device may ask for something"
    finish_cycle(rack, "raw", asked)
    # The next boot has another one, or none as it is from the own disk.
    rack.client.reboot("board1")
    wait_for_state(rack, "board1", "pc_rebooting", BOOT_LIMIT)
    assert rack.tell("board1", "mobile_init_started", token) == 401
    said = [line.message for line in rack.client.log("board1", limit=1000)]
    for why in ("it came without the token of the device's boot", "the token is not that of the device's current boot"):
        assert f"event mobile_init_started refused: {why} ([auth] device_events = token)" in said
    for event in ("mobile_init_started", *INSTALLING["raw"]):
        assert f" board1 GET /api/device/board1/event/{event}/ 200" in (rack.logs / "server.log").read_text()
    assert token not in str(said) + "".join(path.read_text(errors="replace") for path in rack.logs.glob("*.log"))


def booting(rack: Rack, name: str) -> str:
    """Wait until a board is about to boot from the network: the token of that boot."""
    give_up = time.monotonic() + BOOT_LIMIT
    while (token := rack.boot_token(name)) is None:
        assert time.monotonic() < give_up, rack.states(name)
        time.sleep(0.02)
    return token


@pytest.mark.long
def test_the_same_without_root_in_qemus_own_network(start_rack: StartRack) -> None:
    full_cycle(start_rack(1, user=True), "raw")


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are run without root already")
def test_the_same_as_somebody_else_who_may_do_nothing(open_directory: Path) -> None:
    """Really without root: images are built, and Mozpool is run, by an account that has no rights."""
    nobody = pwd.getpwnam("nobody")
    # So that a Python, a checkout and packages below /root can be read.
    only = "-all,+dac_read_search"
    rights = [f"--{kind}={only}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    who = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--no-new-privs", *rights]
    here = f"{__file__}::{test_a_board_boots_from_the_network_is_installed_proven_lent_and_returned.__name__}"
    mine = open_directory / "mine"
    mine.mkdir()
    packages = Path.home() / ".cache" / "mozpool"
    if packages.exists():  # not to download them once more
        shutil.copytree(packages, mine / ".cache" / "mozpool")
    for path in (mine, *mine.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    done = subprocess.run(
        [
            "setpriv",
            *who,
            "--",
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--no-cov",
            "-p",
            "no:cacheprovider",
            "-m",
            "",
            "--basetemp",
            str(mine / "pytest"),
            here,
        ],
        cwd=resources.CHECKOUT,
        env={**os.environ, "HOME": str(mine), "TMPDIR": str(mine), "PYTHONDONTWRITEBYTECODE": "1", "CI": "true"},
        capture_output=True,
        text=True,
        timeout=2 * INSTALL_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout


@pytest.mark.long
def test_a_board_that_loads_ipxe_is_told_by_http_what_to_boot(start_rack: StartRack) -> None:
    if not may_have_own_network():
        pytest.skip("QEMU's own network loads pxelinux")
    rack = start_rack(1, boot_loader="ipxe", device_events="address")
    asked = ask(rack, "raw")
    wait_for_state(rack, "board1", "pxe_booting", BOOT_LIMIT)
    assert rack.tell("board1", "mobile_init_started") == 401, "it is known by its address alone"
    finish_cycle(rack, "raw", asked)
    assert "it came from 127.0.0.1, not from the device's address" in str(rack.client.log("board1", limit=1000))
    told = rack.boards["board1"].said().count("/ipxe/52-54-00-99-00-01... ok")
    assert told >= 2, "once for the live image, once for the own disk"


@pytest.mark.long
@pytest.mark.parametrize("image", ["b2g", "android"])
def test_three_tarballs_are_installed_on_the_partitions_of_a_board(start_rack: StartRack, image: str) -> None:
    full_cycle(start_rack(1), image)


@pytest.mark.long
def test_two_boards_are_installed_at_once_and_lent_again_as_they_are(start_rack: StartRack) -> None:
    rack = start_rack(2)
    asked = [ask(rack, "raw") for _ in range(2)]
    requests = [rack.client.wait_ready(request.id, timeout=INSTALL_LIMIT) for request in asked]
    assert {request.assigned_device for request in requests} == {"board1", "board2"}
    for request in requests:
        holds(rack, request, "raw-1")
    begun = [rack.powered_on(name)[0] for name in rack.names]
    assert max(begun) - min(begun) < 60, "one waited for the other"
    before = {name: len(rack.states(name)) for name in rack.names}
    for request in requests:
        give_back(rack, request)
    asked = [ask(rack, "raw") for _ in range(2)]
    for request in [rack.client.wait_ready(again.id, timeout=BOOT_LIMIT) for again in asked]:
        assert request.assigned_device is not None
        only_cycled_power(rack.states(request.assigned_device)[before[request.assigned_device] :])
        holds(rack, request, "raw-1")
        give_back(rack, request)


@pytest.mark.long
@pytest.mark.parametrize("user", [False, True], ids=["own network", "QEMU's network"])
@pytest.mark.parametrize("image", ["raw", "b2g"])
def test_a_board_that_holds_the_image_already_only_cycles_power(
    start_rack: StartRack, capsys: pytest.CaptureFixture[str], image: str, user: bool
) -> None:
    """And how long all of it takes with Mozpool, and how long the board needs alone."""
    rack = start_rack(1, user=user)
    times = [timed_cycle(rack, image)]
    for _ in range(CYCLES):
        before = len(rack.states("board1"))
        times.append(timed_cycle(rack, image))
        only_cycled_power(rack.states("board1")[before:])
    alone = [rack.seconds_to_agent("board1", BOOT_LIMIT) for _ in range(CYCLES)]

    installed, *cycles = times
    booting = [cycle.boot for cycle in cycles]
    noticing = [cycle.notice for cycle in cycles]
    more = statistics.median(booting) - statistics.median(alone)
    with capsys.disabled():
        print(
            f"\n  {image}, {type(rack.network).__name__}: power on to ready {spread(booting)}, to the agent without "
            f"Mozpool {spread(alone)}: {more:.1f} s more"
            f"\n  request to power on {spread([cycle.begin for cycle in cycles])}, agent's start to ready "
            f"{spread(noticing)}; after the installation {installed.notice:.1f} s"
        )
    # A machine with too much to do is slow at both.
    assert statistics.median(noticing) < max(NOTICE_LIMIT, statistics.median(alone))


@pytest.mark.long
def test_a_new_board_tests_itself(start_rack: StartRack) -> None:
    rack = start_rack(1, state="new")
    wait_for_state(rack, "board1", "ready", INSTALL_LIMIT)
    assert in_order(["new", "start_self_test", *NETBOOT, "self_test_running", "ready"], rack.states("board1"))


@pytest.mark.long
def test_a_person_logs_in_to_a_board_in_maintenance(start_rack: StartRack, ssh_key: Path) -> None:
    rack = start_rack(1)
    request = rack.client.wait_ready(ask(rack, "maintenance").id, timeout=INSTALL_LIMIT)
    assert rack.states("board1")[-1] == "maintenance_mode"
    command = rack.ssh("board1", ssh_key, "hostname; cat /proc/cmdline")
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOOT_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    name, kernel = done.stdout.splitlines()
    assert name == "board1"
    assert "maintenance-second-stage.sh" in kernel
    give_back(rack, request)
    wait_for_state(rack, "board1", "ready", INSTALL_LIMIT)
    assert in_order(["maintenance_mode", "start_self_test", "self_test_running", "ready"], rack.states("board1"))


@pytest.mark.long
def test_a_board_that_dies_in_the_middle_of_an_installation_is_installed_once_more(start_rack: StartRack) -> None:
    # Writing has ten minutes with real boards; downloading has three.
    rack = start_rack(1, timeouts={"raw_writing": 180})
    asked = ask(rack, "raw")
    give_up = time.monotonic() + INSTALL_LIMIT
    while rack.states("board1")[-1] not in ("raw_downloading", "raw_writing"):
        assert time.monotonic() < give_up, rack.states("board1")
        time.sleep(0.02)
    rack.kill("board1")
    request = rack.client.wait_ready(asked.id, timeout=2 * INSTALL_LIMIT)
    assert in_order([*NETBOOT, "raw_downloading", *NETBOOT, *INSTALLING["raw"], *PROVING], rack.states("board1"))
    assert len(rack.powered_on("board1")) >= 2
    holds(rack, request, "raw-1")
    give_back(rack, request)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may read: pytest's own are closed to dnsmasq, which runs as somebody else."""
    with tempfile.TemporaryDirectory(prefix="mozpool-lab-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_scripts_lab(open_directory: Path, signum: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lab", "up", "1", "--logs", str(open_directory / "logs")],
        cwd=resources.CHECKOUT,
        env={**os.environ, "TMPDIR": str(open_directory), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=default_signals,
    )
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if "pxe_booting" in line:
                break
        assert len(running_in(open_directory)) >= 4, "board, dnsmasq, mozpool-netboot, mozpool-server"
        process.send_signal(signum)
        rest, _ = process.communicate(timeout=BOOT_LIMIT)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert process.returncode == (0 if signum == signal.SIGINT else -signum), said + rest
    assert "Mozpool serves board1 at" in said
    give_up = time.monotonic() + 60
    while left := running_in(open_directory):
        assert time.monotonic() < give_up, left
        time.sleep(0.1)
    if signum == signal.SIGINT:
        assert [path.name for path in open_directory.iterdir()] == ["logs"]


def running_in(directory: Path) -> list[str]:
    """The command lines of processes that were told of this directory, in arguments or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or is somebody else's
            command = (process / "cmdline").read_bytes()
            if str(directory).encode() in command + (process / "environ").read_bytes():
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


@dataclass(frozen=True)
class Times:
    """How long the parts of a board's way to its holder took, in seconds."""

    begin: float
    """From the request to power on."""
    boot: float
    """From power on to ready."""
    notice: float
    """From the agent's start to ready."""


def timed_cycle(rack: Rack, image: str) -> Times:
    """Ask for ``board1`` with an image, and give it back."""
    with FirstWord(rack, "board1", f"lab: {image}-1 is up") as first_word:
        asked = time.monotonic()
        request = rack.client.wait_ready(ask(rack, image).id, timeout=INSTALL_LIMIT)
        ready = time.monotonic()
    holds(rack, request, f"{image}-1")
    give_back(rack, request)
    on = rack.powered_on("board1")[-1]
    assert first_word.at is not None
    return Times(on - asked, ready - on, ready - first_word.at)


def spread(seconds: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


class FirstWord:
    """Notes when a board's console says something once more; a context manager."""

    def __init__(self, rack: Rack, name: str, text: str) -> None:
        self.at: float | None = None
        """By the monotonic clock; None as long as it was not said."""
        self._board = rack.boards[name]
        self._text = text
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._board.said().count(text),))

    def __enter__(self) -> FirstWord:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self, before: int) -> None:
        while self.at is None:
            over = self._over.wait(0.02)
            if self._board.said().count(self._text) > before:
                self.at = time.monotonic()
            elif over:
                return
