# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The watchdog: what counts as stuck, when the heartbeat file is touched, when the process ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mozpool.clock import Clock
from mozpool.lanes import Lanes, Timers
from mozpool.watchdog import Watchdog
from tests.integration.mozpool_site import eventually


class AheadClock(Clock):
    """The machine's clock, which a test may set ahead."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@dataclass
class Watched:
    """A watchdog whose thread is not started: a test looks by itself."""

    clock: AheadClock
    timers: Timers
    quick: Lanes
    hardware: Lanes
    dog: Watchdog
    file: Path
    ends: list[bool] = field(default_factory=list)

    def is_touched(self) -> bool:
        """Whether a look touches the file."""
        if self.file.exists():
            os.utime(self.file, (1, 1))
        self.dog.look()
        return self.file.exists() and self.file.stat().st_mtime > 1


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    clock = AheadClock()
    timers, quick, hardware = Timers(clock), Lanes("quick", 2, clock), Lanes("hardware", 2, clock)
    ends: list[bool] = []
    file = tmp_path / "heartbeat"
    dog = Watchdog(
        clock,
        timers,
        quick,
        [hardware],
        stuck_after=60.0,
        exit_after=600.0,
        longest_operation=30.0,
        heartbeat_file=file,
        end_process=lambda: ends.append(True),
    )
    yield Watched(clock, timers, quick, hardware, dog, file, ends)
    quick.stop(5)
    hardware.stop(5)


def test_the_file_is_touched_while_all_is_well(watched: Watched) -> None:
    assert watched.is_touched() and watched.is_touched()
    assert watched.dog.stuck() == {}


@pytest.mark.parametrize(("pool", "allowed"), [("quick", 60.0), ("hardware", 90.0)])
def test_it_is_left_alone_while_work_takes_too_long_and_touched_again_afterwards(
    watched: Watched, pool: str, allowed: float
) -> None:
    may_end, runs = threading.Event(), threading.Event()
    lanes: Lanes = getattr(watched, pool)

    def work() -> None:
        runs.set()
        may_end.wait(20)

    lanes.submit("lane", work, "a slow thing")
    assert runs.wait(10)
    watched.clock.ahead = allowed - 5
    watched.timers.last_turn = watched.clock.monotonic()
    assert watched.is_touched()
    watched.clock.ahead = allowed + 5
    watched.timers.last_turn = watched.clock.monotonic()
    assert not watched.is_touched()
    assert [label for _, label in watched.dog.stuck()] == ["a slow thing"]
    may_end.set()
    assert eventually(lambda: not lanes.running())
    assert watched.is_touched()
    assert watched.ends == []


def test_timers_that_do_not_turn_are_stuck_and_end_the_process_at_last(watched: Watched) -> None:
    watched.clock.ahead = 75
    assert not watched.is_touched()
    assert list(watched.dog.stuck()) == [("timers", "the timers' thread")]
    assert watched.ends == []
    watched.clock.ahead = 700
    assert not watched.is_touched()
    assert watched.ends == [True]


def test_a_file_that_cannot_be_touched_is_logged_and_ends_nothing(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.file.parent.joinpath("file").touch()
    watched.dog._heartbeat = watched.file.parent / "file" / "heartbeat"
    watched.dog.look()
    assert "Not a directory" in caplog.text


def test_its_thread_touches_the_file_by_itself(tmp_path: Path) -> None:
    clock = Clock()
    timers, file = Timers(clock), tmp_path / "heartbeat"
    dog = Watchdog(
        clock,
        timers,
        Lanes("quick", 1, clock),
        [],
        stuck_after=0.2,
        exit_after=60,
        longest_operation=1,
        heartbeat_file=file,
    )
    dog.start()
    try:
        assert eventually(file.exists)
        os.utime(file, (1, 1))
        assert eventually(lambda: file.stat().st_mtime > 1)
    finally:
        dog.stop()
    os.utime(file, (1, 1))
    assert not eventually(lambda: file.stat().st_mtime > 1, 0.5), "a watchdog that was stopped touches nothing"
