# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Jobs on phones in a cloud, by the real daemons in simulated time: their whole life, and whatever cuts it short.

What must hold in any case (never two jobs on a phone, none for nobody, all ends well) is looked after by the
invariants: a run that breaks one has a violation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest

from mozpool.db.images import AS_IS, JOB
from mozpool.links import Links
from mozpool.simulate.explore import explain
from mozpool.simulate.faults import Rates, Scripted
from mozpool.simulate.scenario import Kind, Load, People, Phones, Scenario
from mozpool.simulate.world import Result, World

pytestmark = pytest.mark.no_cover

JOBS = Load("jobs", per_hour=60.0, hold=1e6, duration=7200.0, image=JOB, named=0.0, wait=3000)
CALM = Scenario(
    servers=2,
    kinds=(Kind("panda", 1, behaviour=Kind().behaviour.reliable()),),
    phones=(Phones(count=2),),
    loads=(JOBS,),
    people=People(mends=0.0),
    rates=Rates.none(),
    hours=0.25,
)


@dataclass(frozen=True)
class Row:
    """What is written of a job on a phone."""

    request_id: int
    lead_request_id: int
    device: str
    number: int | None
    url: str | None
    status: str | None
    running: str | None
    ended: str | None
    reason: str | None


class Story:
    """A run, and what its log tells of a phone."""

    def __init__(self, scenario: Scenario, *script: Scripted, seed: str = "1") -> None:
        self.lines: list[str] = []
        self.jobs: list[Row] = []
        self.world = World(replace(scenario, script=script), seed, hear=self.lines.append)
        self.world.on_look.append(self._read_jobs)
        self.result: Result = self.world.run()
        assert self.result.violation is None, explain(self.result)
        assert self.result.missed == ()
        end = next(at for at, line in enumerate(self.lines) if line.endswith("from here on nothing goes wrong"))
        self.busy = self.lines[:end]
        """Until all clients give back what they have."""

    def _read_jobs(self) -> None:
        names = ", ".join(field.name for field in fields(Row))
        rows = self.world.watcher._query(f"SELECT {names} FROM hosted_jobs ORDER BY id", ())
        self.jobs = [Row(*row) for row in rows]

    def states(self, phone: str) -> list[str]:
        """Where a phone went, in order."""
        said = [line.split(" ", 2) for line in self.lines if f" {phone}: " in line and " -> " in line]
        return [line[2].split(" -> ")[1] for line in said]

    def after(self, fault: str, phone: str) -> list[str]:
        """Where it went after something had gone wrong."""
        begin = next(number for number, line in enumerate(self.lines) if fault in line and "#" in line)
        rest, self.lines = self.lines, self.lines[begin:]
        try:
            return self.states(phone)
        finally:
            self.lines = rest

    def at(self, text: str) -> float:
        """When the log first says something."""
        return float(next(line for line in self.lines if text in line).split()[0])


LIFE = ["job_starting", "job_waiting", "job_running", "job_cleanup", "job_done", "ready"]


def holds(part: list[str], whole: list[str]) -> bool:
    """Whether ``whole`` has these states one right after the other."""
    return any(whole[at : at + len(part)] == part for at in range(len(whole)))


def test_the_whole_life_of_a_job_and_the_next_request_is_served_at_once() -> None:
    story = Story(CALM)
    story.lines = story.busy
    for phone in story.world.phones:
        states = story.states(phone)
        assert states[:3] == ["job_stopping", "phone_verifying", "ready"]
        lives = states[3:]
        assert len(lives) > 2 * len(LIFE)
        assert lives == (LIFE * len(lives))[: len(lives)]
    assert set(story.result.requests) == {"closed"}
    done = [job for job in story.jobs if job.status == "completed"]
    assert len(done) >= 6
    assert all(job.ended and job.running and job.number and job.url and job.reason is None for job in done)
    assert all(job.lead_request_id == job.request_id for job in done)
    # More wait than there are phones: who waits has one within a second of its being clean.
    moments = [(float(line.split()[0]), line) for line in story.lines]
    free = [(at, line.split()[1].rstrip(":")) for at, line in moments if line.endswith("job_done -> ready")]
    for at, phone in free:
        assert any(0 <= then - at < 1.0 and line.endswith(f"gets {phone}") for then, line in moments), (at, phone)


@pytest.mark.parametrize("kind", ["start_fails", "start_hangs"])
def test_a_start_that_fails_is_tried_again_and_never_done_twice(kind: str) -> None:
    """Several, so that in some of them the job is there all the same."""
    story = Story(CALM, *(Scripted(kind, at) for at in (0.0, 1.0, 200.0, 400.0, 600.0)))
    starts = sum(" starts a job on " in line for line in story.lines)
    assert starts == len(story.world.lab.cloud.jobs) == len({job.label for job in story.world.lab.cloud.jobs})
    assert set(story.result.requests) == {"closed"}


def test_a_start_that_always_fails_is_given_up_and_the_phone_goes_on() -> None:
    story = Story(CALM, *(Scripted("start_fails", 0.0, "galaxy-0001") for _ in range(3)))
    failing = ["job_starting", "job_stopping", "failed_job_starting", "job_stopping", "phone_verifying", "ready"]
    assert holds(failing, story.states("galaxy-0001")) or "job_waiting" in story.states("galaxy-0001")[:5]
    given_up = [job for job in story.jobs if job.running is None and job.reason]
    assert all("exit code 1" in (job.reason or "") for job in given_up)
    assert story.states("galaxy-0001")[-1] == "ready"


def test_a_job_that_the_cloud_never_runs_is_stopped() -> None:
    story = Story(CALM, Scripted("job_stuck", 60.0))
    stuck = next(phone for phone in story.world.phones if "failed_job_starting" in story.states(phone))
    assert holds(
        ["job_waiting", "job_stopping", "failed_job_starting", "job_stopping", "phone_verifying", "ready"],
        story.states(stuck),
    )
    assert any(job.reason == "the cloud did not begin to run it" for job in story.jobs)
    waited = story.at("job_waiting -> job_stopping")
    assert waited > 210.0


def test_a_job_that_ends_at_once_closes_its_request() -> None:
    story = Story(CALM, Scripted("job_short", 60.0), Scripted("job_short", 300.0))
    assert any(
        holds(["job_waiting", "job_cleanup", "job_done", "ready"], story.states(phone)) for phone in story.world.phones
    )
    assert set(story.result.requests) == {"closed"}


def test_a_phone_that_the_cloud_gives_up_needs_a_person_and_comes_back_by_itself() -> None:
    story = Story(CALM, Scripted("phone_faulty", 60.0, seconds=300.0))
    phone = next(phone for phone in story.world.phones if "failed_phone" in story.states(phone))
    assert holds(["failed_phone", "phone_verifying", "ready", "job_starting"], story.states(phone))


def test_a_cloud_that_is_down_costs_time_and_nothing_else() -> None:
    story = Story(CALM, Scripted("cloud_down", 300.0, seconds=240.0))
    assert not [line for line in story.lines if "-> failed_" in line]
    assert set(story.result.requests) == {"closed"}


def released(at: str) -> Scenario:
    """Clients that give their phones back while they are in some state."""
    hold = {"starting": 0.0, "running": 100.0}[at]
    # An expiring request comes to the same by another way.
    return replace(CALM, loads=(replace(JOBS, hold=hold, per_hour=30.0),))


def test_a_request_that_is_returned_while_its_job_runs_has_it_stopped() -> None:
    story = Story(released("running"))
    assert any(
        holds(["job_running", "job_stopping", "job_cleanup", "ready"], story.states(phone))
        for phone in story.world.phones
    )
    assert any(job.stopped for job in story.world.lab.cloud.jobs)
    for line in story.lines:
        if line.endswith("job_running -> job_stopping"):
            at, phone = float(line.split()[0]), line.split()[1]
            ended = next(
                float(other.split()[0])
                for other in story.lines
                if phone in other and other.endswith("job_stopping -> job_cleanup") and float(other.split()[0]) > at
            )
            assert ended - at < 15.0


def test_a_request_that_expires_on_the_way_has_its_job_stopped() -> None:
    """They last for so long that the job is being started, waited for, or has just begun to run."""
    for seconds in (6.0, 30.0):
        story = Story(replace(CALM, loads=(replace(JOBS, duration=seconds, per_hour=30.0, wait=3000),)))
        stopped = [line for line in story.lines if line.endswith("-> job_stopping") and " job_" in line]
        assert len(stopped) >= 3
        assert set(story.result.requests) == {"closed"}
        for job in story.world.lab.cloud.jobs:
            assert job.stopped, "no job outlives its request"


@pytest.mark.parametrize("state", ["locked_out", "ready", "start_pxe_boot"])
def test_a_person_takes_a_phone_from_under_its_job(state: str) -> None:
    runs = story_time(CALM, "galaxy-0001: job_waiting -> job_running") + 5.0
    story = Story(replace(CALM, people=People(mends=6.0)), Scripted("forced_state", runs, "galaxy-0001", state=state))
    assert story.after("forced_state", "galaxy-0001")[-1] == "ready"
    was = next(job for job in story.world.lab.cloud.jobs if "galaxy-0001" in job.phones)
    assert was.stopped
    assert runs < was.ends < runs + 20.0
    closed = story.at(f"request {was.label}: ready -> closed")
    assert runs < closed < runs + 5.0, "its request was told"


def test_a_request_notices_by_itself_that_its_job_was_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells it."""
    monkeypatch.setattr(Links, "job_ended", lambda self, request_id, claim_id, reason, attempt: None)
    runs = story_time(CALM, "galaxy-0001: job_waiting -> job_running") + 5.0
    story = Story(
        replace(CALM, people=People(mends=6.0)), Scripted("forced_state", runs, "galaxy-0001", state="locked_out")
    )
    was = next(job for job in story.world.lab.cloud.jobs if "galaxy-0001" in job.phones)
    assert runs + 5.0 < story.at(f"request {was.label}: ready -> closed") < runs + 70.0


@pytest.mark.parametrize("state", ["job_starting", "job_waiting", "job_running", "job_cleanup", "job_done"])
def test_its_server_is_killed_and_goes_on(state: str) -> None:
    """At a moment when a phone is in the state."""
    one = replace(CALM, servers=1)
    at = next(float(line.split()[0]) for line in Story(one).lines if line.endswith(f"-> {state}"))
    story = Story(one, Scripted("crash", at - 0.001, "server-1", seconds=20.0))
    assert len(story.world.lab.cloud.jobs) == len({job.label for job in story.world.lab.cloud.jobs})
    assert set(story.result.requests) <= {"closed", "failed_bad_device"}


@pytest.mark.parametrize("at", [60.0, 150.0, 320.0])
def test_another_server_takes_over(at: float) -> None:
    both = replace(CALM, takeover_after=30.0)
    story = Story(both, Scripted("freeze", at, "server-1", seconds=150.0))
    assert any("passes from server" in line and "galaxy" in line for line in story.lines)
    assert len(story.world.lab.cloud.jobs) == len({job.label for job in story.world.lab.cloud.jobs})
    assert set(story.result.requests) == {"closed"}


PAIRS = replace(
    CALM, phones=(Phones(count=4),), loads=(replace(JOBS, name="pairs", per_hour=12.0, phones=3),), hours=0.5
)


def test_a_job_on_several_phones_is_started_once_when_all_are_there() -> None:
    story = Story(PAIRS)
    jobs = story.world.lab.cloud.jobs
    assert len(jobs) >= 3
    assert all(len(set(job.phones)) == 3 for job in jobs)
    for job in jobs:
        rows = [row for row in story.jobs if row.lead_request_id == job.label and row.number]
        assert sorted(row.device for row in rows) == sorted(job.phones)
        assert job.label == min(row.request_id for row in rows)
        assert {row.number for row in rows} == {job.number}
    assert set(story.result.requests) <= {"closed", "failed_device_not_found", "failed_bad_device"}


def test_when_one_phone_of_several_is_lost_all_are_freed() -> None:
    story = Story(
        replace(PAIRS, people=People(mends=6.0)),
        Scripted("forced_state", story_time(PAIRS, "job_waiting -> job_running") + 20.0, "galaxy", state="locked_out"),
    )
    (fault,) = story.result.faults
    hit = next(job for job in story.world.lab.cloud.jobs if job.stopped)
    assert fault.where in hit.phones
    assert fault.time < hit.ends < fault.time + 20.0
    for phone in hit.phones:
        if phone != fault.where:
            assert story.after("forced_state", phone)[:3] == ["job_cleanup", "job_done", "ready"]


def story_time(scenario: Scenario, text: str) -> float:
    """When a run without faults first comes to some step."""
    return Story(scenario).at(text)


def test_a_group_that_never_becomes_complete_gives_its_phones_back() -> None:
    """Three phones are wanted, and there are two."""
    story = Story(replace(PAIRS, phones=(Phones(count=2),), loads=(*PAIRS.loads, replace(JOBS, per_hour=30.0))))
    assert not [job for job in story.world.lab.cloud.jobs if len(job.phones) == 3]
    assert any("devices are there" in (job.reason or "") for job in story.jobs)
    assert [job for job in story.world.lab.cloud.jobs if len(job.phones) == 1], "others are served in between"


def test_a_phone_that_somebody_had_is_proven_before_the_next_one_gets_it() -> None:
    lent = Load(
        "lent", per_hour=40.0, hold=60.0, duration=1800.0, image=AS_IS, named=0.0, wait=3000, hardware_type="galaxy"
    )
    story = Story(replace(CALM, loads=(lent, replace(JOBS, per_hour=30.0))))
    for phone in story.world.phones:
        states = story.states(phone)
        assert holds(["ready", "phone_verifying", "ready", "job_stopping", "phone_verifying", "ready"], states)
    assert set(story.result.requests) == {"closed"}
