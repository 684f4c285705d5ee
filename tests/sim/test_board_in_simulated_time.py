# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Fake boards without sockets, threads or waiting: the same life, in simulated seconds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from mozpool.errors import MozpoolError
from mozpool.fakes.board import Behaviour, BoardSpec, FakeBoard
from mozpool.fakes.httpclient import Answer
from mozpool.simulate.loop import SimulatedLoop
from tests.sim.scheduler import Scheduler

STEADY = replace(Behaviour.reliable(), jitter=0.0)
SERVER = "http://imaging.example.com:8010"
API = f"{SERVER}/api/device/board-1"
INSTALL_B2G = f"append mobile-imaging-url={SERVER}/scripts/b2g-second-stage.sh quiet"


class Surroundings:
    """What a board is connected to here: its PXE file goes when it has said that it started, as LifeGuard does it."""

    def __init__(self, pxe_file: str | None) -> None:
        self.pxe_file = pxe_file
        self.calls: list[str] = []
        self.answers: list[Answer | OSError] = []
        """Answers of the next calls; what a healthy server says when there are none."""
        self.plugged_in = False
        self.agent_is_up = False
        self.agent_fault: MozpoolError | None = None
        self.wiped = 0

    async def plug_in(self) -> None:
        self.plugged_in = True

    def unplug(self) -> None:
        self.plugged_in = False

    async def agent_up(self) -> None:
        if self.agent_fault is not None:
            raise self.agent_fault
        self.agent_is_up = True

    def agent_down(self) -> None:
        self.agent_is_up = False

    def wipe(self) -> None:
        self.wiped += 1

    async def read_pxe_file(self) -> str | None:
        return self.pxe_file

    async def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        self.calls.append(url.removeprefix(API))
        answer = self.answers.pop(0) if self.answers else Answer(200, b'{"b2gbase": "x"}')
        if isinstance(answer, OSError):
            raise answer
        if url.endswith("/mobile_init_started/") and answer.status == 200:
            self.pxe_file = None
        return answer


class Lab:
    """One board that is up, at second 0."""

    def __init__(
        self, pxe_file: str | None = INSTALL_B2G, *, behaviour: Behaviour = STEADY, seed: str = "1", image="android"
    ) -> None:
        self.scheduler = Scheduler()
        self.loop = SimulatedLoop(self.scheduler.now, self.scheduler.call_later)
        self.surroundings = Surroundings(pxe_file)
        spec = BoardSpec("board-1", "127.1.0.1", "020000000001", image=image)
        self.board = FakeBoard(spec, self.surroundings, server_url=SERVER, behaviour=behaviour, seed=seed)
        started = self.loop.create_task(self.board.start())
        self.scheduler.run()
        started.result()

    def cycle(self) -> None:
        """Take the power and give it back."""
        self.board.set_power(False)
        self.board.set_power(True)

    def until(self, step: str) -> None:
        """Let the time pass until the board has come to this step."""
        self.scheduler.run(until=lambda: self.board.history[-1].what == step)
        assert self.board.history[-1].what == step

    def since_power_on(self) -> list[tuple[float, str]]:
        steps = [(entry.time, entry.what) for entry in self.board.history]
        last = max(place for place, (_, what) in enumerate(steps) if what == "power_on")
        return steps[last + 1 :]


def test_it_is_up_from_the_start():
    lab = Lab()
    assert [entry.what for entry in lab.board.history] == ["power_on", "up"]
    assert lab.surroundings.plugged_in
    assert lab.surroundings.agent_is_up
    assert lab.board.answers_ping()
    assert lab.scheduler.now() == 0


def test_it_installs_an_image_in_simulated_seconds():
    lab = Lab()
    lab.cycle()
    assert not lab.surroundings.agent_is_up
    lab.scheduler.run()
    assert lab.since_power_on() == [
        (0, "boot_loader"),
        (4, "pxe_boot"),
        (16, "live_image"),
        (16, "event"),
        (16, "event"),
        (16, "download"),
        (36, "event"),
        (36, "extract"),
        (66, "installed"),
        (66, "event"),
        (66, "rebooting"),
        (72, "boot_loader"),
        (76, "storage_boot"),
        (84, "up"),
    ]
    assert lab.surroundings.calls == [
        "/event/mobile_init_started/",
        "/bootconfig/",
        "/event/b2g_downloading/",
        "/event/b2g_extracting/",
        "/event/b2g_rebooting/",
    ]
    assert (lab.board.image, lab.board.boot_config) == ("b2g", '{"b2gbase": "x"}')
    assert lab.surroundings.wiped == 1
    assert lab.surroundings.agent_is_up
    assert lab.board.network_up
    assert lab.board.uptime() == 0


def test_it_calls_again_until_the_server_answers():
    lab = Lab(f"mobile-imaging-url={SERVER}/maintenance.sh")
    lab.surroundings.answers = [ConnectionRefusedError("refused"), Answer(503, b"")]
    lab.cycle()
    lab.scheduler.run()
    assert lab.since_power_on()[2:] == [
        (16, "live_image"),
        (16, "call_failed"),
        (17, "call_failed"),
        (19, "event"),
        (19, "event"),
    ]
    assert lab.surroundings.calls == ["/event/mobile_init_started/"] * 3 + ["/event/maint_mode/"]


def life_of_a_real_board(seed: str):
    """The history of a board that fails as real ones do, and whose power is cycled twelve times at odd moments."""
    lab = Lab(behaviour=Behaviour(), seed=seed)
    moments = random.Random(seed)

    def install() -> None:
        lab.surroundings.pxe_file = INSTALL_B2G
        lab.cycle()

    for number in range(12):
        lab.loop.call_later(150 * number + moments.uniform(0, 140), install)
    lab.scheduler.run()
    return lab.board.history


def test_the_same_seed_gives_the_same_history():
    lives = [life_of_a_real_board(str(seed)) for seed in range(8)]
    assert lives == [life_of_a_real_board(str(seed)) for seed in range(8)]
    assert len({tuple(life) for life in lives}) == 8
    assert {"hung", "up", "download_again"} <= {entry.what for life in lives for entry in life}


def test_a_boot_failure_lasts_until_the_next_power_cycle():
    lab = Lab(None, behaviour=replace(STEADY, boot_failure=1.0))
    lab.cycle()
    lab.scheduler.run()
    assert lab.since_power_on() == [(0, "boot_loader"), (4, "hung")]
    assert not lab.board.network_up
    assert not lab.board.answers_ping()
    assert not lab.board.busy
    lab.board.behaviour = STEADY
    lab.cycle()
    lab.scheduler.run()
    assert lab.since_power_on()[-1] == (16, "up")


def test_power_that_goes_in_the_middle_of_a_download_ends_it():
    lab = Lab()
    lab.cycle()
    lab.until("download")
    life = lab.board._life
    assert life is not None
    lab.loop.call_later(7, lambda: lab.board.set_power(False))
    lab.scheduler.run()
    assert life.cancelled()
    assert lab.board.history[-1][:2] == (23, "power_off")
    assert "/event/b2g_extracting/" not in lab.surroundings.calls
    assert not lab.board.network_up
    assert not lab.board.busy
    assert lab.board.image == "android"


def test_power_that_goes_in_the_middle_of_an_extraction_leaves_nothing_to_boot():
    lab = Lab()
    lab.cycle()
    lab.until("extract")
    lab.cycle()
    lab.scheduler.run()
    assert [what for _, what in lab.since_power_on()] == ["boot_loader", "storage_boot", "hung"]
    assert lab.board.image is None


def test_an_agent_that_cannot_start_hangs_the_board_and_says_why():
    lab = Lab(None)
    lab.surroundings.agent_fault = MozpoolError("its port is taken")
    lab.cycle()
    lab.scheduler.run()
    assert lab.board.history[-1][1:] == ("hung", "its port is taken")


@pytest.mark.parametrize("image", [None, "b2g"])
def test_a_reboot_from_its_own_system_comes_up_again(image):
    lab = Lab(None, image=image)
    lab.board.reboot()
    lab.scheduler.run()
    assert [what for _, what in lab.since_power_on()] == ["up", "rebooting", "boot_loader", "storage_boot", "up"]
    assert lab.surroundings.agent_is_up is (image is not None)


def test_closing_it_ends_what_it_does():
    lab = Lab()
    lab.cycle()
    lab.until("extract")
    closed = lab.loop.create_task(lab.board.close())
    lab.scheduler.run(until=closed.done)
    assert lab.scheduler.now() == 36
    assert not lab.board.busy
    assert not lab.surroundings.plugged_in
