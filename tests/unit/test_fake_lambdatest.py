# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The fake of LambdaTest's cloud: its answers, what becomes of jobs and phones, and what it notes of them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import requests

from mozpool.clock import Clock
from mozpool.errors import Conflict
from mozpool.fakes.lambdatest import DEVICES, JOBS
from mozpool.fakes.net import FakesError
from mozpool.fakes.phonecloud import ENDED, Fate, JobSpec, PhoneSpec, Timings, phone_specs
from mozpool.fakes.webserver import Fault, Nonsense, too_many
from tests.unit.cloud_support import abort, ask, create, devices, fake, jobs, sim

RECORDED = Path(__file__).parents[1] / "data" / "lambdatest"
ONE, TWO, THREE = (spec.udid for spec in phone_specs(3))


@pytest.fixture
def cloud():
    with fake() as cloud:
        yield cloud


def recorded(name: str) -> Any:
    return json.loads((RECORDED / f"{name}.json").read_text("utf-8"))


def put(cloud) -> int:
    """A job for the first phone, without HTTP; its number."""
    return cloud.create(JobSpec(("tcdp",), "w", fixed=ONE), "lt-user").number


def status(cloud, number: int) -> str:
    return next(job.status for job in cloud.jobs if job.number == number)


# The answers.


def strangeness(value: Any, examples: list[Any], where: str = "") -> list[str]:
    """In what a value's form differs from that of all examples: keys and types, at every depth."""
    fitting = [each for each in examples if type(each) is type(value)]
    if not fitting:
        return [f"{where}: {value!r} is none of {sorted({type(each).__name__ for each in examples})}"]
    if isinstance(value, list):
        rows = [row for each in fitting for row in each]
        return [text for number, row in enumerate(value) for text in strangeness(row, rows, f"{where}[{number}]")]
    if not isinstance(value, dict):
        return []
    if not any(set(each) == set(value) for each in fitting):
        return [f"{where}: no example has just the keys {sorted(value)}"]
    found = []
    for key, each in value.items():
        found += strangeness(each, [example[key] for example in fitting if key in example], f"{where}.{key}")
    return found


def test_the_check_of_forms_sees_what_is_strange():
    rows = recorded("jobs")["data"]
    assert strangeness(rows, [rows]) == []
    for row in rows:
        assert strangeness(row | {"more": 1}, rows)
        assert strangeness(row | {"job_number": "9821"}, rows)
        assert strangeness({key: value for key, value in row.items() if key != "id"}, rows)


def test_its_phones_have_the_form_of_recorded_ones(cloud):
    create(cloud, fixed=ONE)
    sim(cloud).advance(60)
    cloud.set_faulty(TWO)
    answer = ask(cloud, "GET", DEVICES).json()
    assert {row["status"] for row in answer["data"]["private_cloud_devices"]} == {"busy", "faulty", "active"}
    assert strangeness(answer, [recorded("devices")]) == []
    assert answer["message"] == recorded("devices")["message"]


def test_its_jobs_have_the_form_of_recorded_ones(cloud):
    cloud.script(Fate(), Fate("failed", "running"), Fate("lambda_error", "initiated"))
    for udid in (ONE, TWO, THREE):
        create(cloud, fixed=udid, queue_timeout=10_000)
    seen = set()
    for _ in range(60):
        if len(cloud.jobs) == 3 and all(job.ended for job in cloud.jobs):
            abort(cloud, create(cloud, fixed=ONE)["id"])
        rows = jobs(cloud)
        assert strangeness({"data": rows}, [recorded("jobs")]) == []
        seen |= {row["status"] for row in rows}
        sim(cloud).advance(20)
    assert seen == {"created", "initiated", "running", "completed", "failed", "lambda_error", "aborted"}


def test_labels_are_a_list_in_a_string_and_the_remark_says_who_aborted(cloud):
    made = create(cloud, labels=["tcdp", "a55-perf", ONE], fixed=ONE)
    abort(cloud, made["id"])
    sim(cloud).advance(2)
    (row,) = jobs(cloud)
    assert row["job_label"] == f'["tcdp","a55-perf","{ONE}"]'
    assert row["remark"] == "job has been aborted by lt-user"
    assert (row["job_number"], row["id"]) == (made["job_number"], made["id"])


def test_times_of_a_job_are_those_of_the_cloud_whatever_the_speed():
    with fake(speed=100) as cloud:
        create(cloud, fixed=ONE)
        sim(cloud).advance(4.91)
        (row,) = jobs(cloud)
        assert (row["status"], row["executionTime"], row["execution_time_sec"]) == ("completed", "7m40s", 460)


def test_pages_go_down_from_the_newest_and_the_cursor_is_the_last_row_s_number(cloud):
    numbers = [create(cloud, fixed=ONE)["job_number"] for _ in range(7)]
    found: list[int] = []
    sizes = []
    page = jobs(cloud, limit=3)
    while page:
        sizes.append(len(page))
        found += [row["job_number"] for row in page]
        page = jobs(cloud, limit=3, cursor=page[-1]["job_number"])
    assert found == numbers[::-1]
    assert sizes == [3, 3, 1]


def test_no_page_has_more_than_a_hundred_rows_and_without_cursors_there_is_only_the_first(cloud):
    last = [put(cloud) for _ in range(101)][-1]
    assert len(jobs(cloud, limit=1000)) == 100
    rows = jobs(cloud, is_cursor_base_pagination="false", limit=2, cursor=last - 50)
    assert [row["job_number"] for row in rows] == [last, last - 1]


def test_jobs_are_filtered_by_their_status(cloud):
    cloud.script(Fate("failed", "initiated"))
    first = create(cloud, fixed=ONE)["job_number"]
    sim(cloud).advance(31)
    second, third = create(cloud, fixed=TWO)["job_number"], create(cloud, fixed=THREE)["job_number"]
    sim(cloud).advance(31)
    fourth = create(cloud, fixed=ONE)["job_number"]
    assert [row["job_number"] for row in jobs(cloud, status="running")] == [third, second]
    assert [row["job_number"] for row in jobs(cloud, status="created,failed")] == [fourth, first]
    assert jobs(cloud, status="completed") == []


@pytest.mark.parametrize("query", [{"limit": "many"}, {"cursor": "x"}])
def test_a_bad_query_is_refused(cloud, query):
    answer = ask(cloud, "GET", JOBS, params={"is_cursor_base_pagination": "true", **query})
    assert answer.status_code == 400
    assert next(iter(query)) in answer.json()["message"]


@pytest.mark.parametrize("auth", [None, ("lt-user", "wrong"), ("lt-user@example.com", "LT_s3cret_access_key")])
def test_only_the_account_is_let_in(cloud, auth):
    for method, path in (("GET", DEVICES), ("GET", JOBS), ("PUT", "/v1.0/job/x/abort"), ("POST", "/fake/v1/jobs")):
        assert ask(cloud, method, path, auth=auth).status_code == 401


# The life of jobs and phones.


def test_a_job_and_its_phone_go_through_their_states(cloud):
    number = create(cloud, fixed=ONE)["job_number"]
    seen = []
    for seconds in (0, 1, 30, 150, 300, 10, 39, 1):
        sim(cloud).advance(seconds)
        seen.append((status(cloud, number), devices(cloud)[ONE]["status"]))
    assert seen == [
        ("created", "active"),
        ("initiated", "initiated"),
        ("running", "busy"),
        ("running", "busy"),
        ("running", "busy"),
        ("completed", "cleanup"),
        ("completed", "cleanup"),
        ("completed", "active"),
    ]
    (job,) = cloud.jobs
    assert job.times == {"created": 0, "initiated": 1, "running": 31, "completed": 491}
    assert job.held == {ONE: 1}
    assert cloud.violations == []


def test_the_states_have_their_times_however_late_somebody_looks(cloud):
    create(cloud, fixed=ONE)
    create(cloud, fixed=TWO)
    sim(cloud).advance(100_000)
    assert [job.times["completed"] for job in cloud.jobs] == [491, 491]
    assert cloud.free_spans(ONE) == [(531, 100_000)]


def test_speed_divides_all_durations():
    with fake(speed=10) as cloud:
        create(cloud, fixed=ONE)
        sim(cloud).advance(49.1)
        assert cloud.jobs[0].times["completed"] == pytest.approx(49.1)


def test_durations_are_drawn_by_lot_and_equal_seeds_give_equal_ones():
    def times(seed):
        with fake(timings=Timings(), seed=seed) as cloud:
            for udid in (ONE, TWO, THREE):
                create(cloud, fixed=udid)
            sim(cloud).advance(3000)
            return [(job.id, dict(job.times)) for job in cloud.jobs]

    assert times(1) == times(1) != times(2)


@pytest.mark.parametrize("word", sorted(ENDED))
@pytest.mark.parametrize("at", ["initiated", "running", "worked"])
def test_a_job_can_end_in_every_way(cloud, word, at):
    cloud.script(Fate(word, at))
    create(cloud, fixed=ONE)
    sim(cloud).advance({"initiated": 31, "running": 181, "worked": 491}[at])
    assert [row["status"] for row in jobs(cloud, status=word)] == [word]
    assert ("running" in cloud.jobs[0].times) is (at != "initiated")
    assert devices(cloud)[ONE]["status"] == "cleanup"


def test_fates_are_drawn_by_lot():
    with fake(odds={Fate("failed", "running"): 0.3, Fate("lambda_error", "initiated"): 0.3}, seed=3) as cloud:
        for _ in range(60):
            put(cloud)
            sim(cloud).advance(531)
        words = [job.status for job in cloud.jobs]
    assert {word: 10 < words.count(word) < 30 for word in set(words)} == dict.fromkeys(
        ("failed", "lambda_error", "completed"), True
    )


@pytest.mark.parametrize(("at", "word"), [("initiated", "initiated"), ("running", "running"), ("worked", "running")])
def test_a_job_can_be_stuck_until_it_is_aborted(cloud, at, word):
    cloud.script(Fate(None, at))
    made = create(cloud, fixed=ONE)
    sim(cloud).advance(100_000)
    assert status(cloud, made["job_number"]) == word
    assert abort(cloud, made["id"]).status_code == 200
    sim(cloud).advance(2)
    assert (status(cloud, made["job_number"]), cloud.phones[ONE]) == ("aborted", "cleanup")


def test_jobs_that_run_may_have_the_other_word():
    with fake(running_word="in_progress") as cloud:
        create(cloud, fixed=ONE)
        sim(cloud).advance(31)
        assert [row["status"] for row in jobs(cloud)] == ["in_progress"]


def test_aborting_takes_a_moment_and_twice_is_once(cloud):
    made = create(cloud, fixed=ONE)
    assert abort(cloud, made["id"]).status_code == 200
    assert abort(cloud, made["id"]).status_code == 200
    assert status(cloud, made["job_number"]) == "created"
    sim(cloud).advance(2)
    assert status(cloud, made["job_number"]) == "aborted"
    assert abort(cloud, made["id"]).status_code == 409
    assert abort(cloud, "no-such-job").status_code == 404
    sim(cloud).advance(1000)
    assert list(cloud.jobs[0].times) == ["created", "initiated", "aborted"]


def test_a_job_waits_for_its_phone_and_gets_it_once_it_is_clean(cloud):
    create(cloud, fixed=ONE)
    sim(cloud).advance(300)
    second = create(cloud, fixed=ONE)["job_number"]
    sim(cloud).advance(191 + 39)
    assert (status(cloud, second), cloud.jobs[1].held) == ("initiated", {})
    sim(cloud).advance(1)
    assert cloud.jobs[1].held == {ONE: 531}


def test_a_job_that_waits_too_long_for_its_phone_times_out(cloud):
    cloud.set_faulty(ONE)
    number = create(cloud, fixed=ONE, queue_timeout=600)["job_number"]
    sim(cloud).advance(600)
    assert status(cloud, number) == "initiated"
    sim(cloud).advance(1)
    assert (status(cloud, number), cloud.phones[ONE]) == ("timeout", "faulty")


def test_a_job_without_a_fixed_phone_takes_a_free_one_that_fits():
    phones = (PhoneSpec("A51", "Galaxy A51", "11"), *phone_specs(2))
    with fake(phones) as cloud:
        cloud.occupy(ONE)
        create(cloud, patterns=["Galaxy A55 5G-14"])
        sim(cloud).advance(1)
        assert cloud.jobs[0].held == {TWO: 1}
        create(cloud, patterns=["Galaxy A55 5G-14"])
        create(cloud, patterns=["Galaxy"])
        sim(cloud).advance(1)
        assert [job.held for job in cloud.jobs[1:]] == [{}, {}]
        create(cloud, patterns=["Galaxy A7.*", "Galaxy A5.-11"])
        sim(cloud).advance(1)
        assert cloud.jobs[3].held == {"A51": 3}


def test_concurrency_takes_as_many_phones_and_lets_go_of_all_at_the_end(cloud):
    create(cloud, concurrency=2)
    sim(cloud).advance(31)
    (row,) = jobs(cloud)
    assert (row["status"], row["Tasks"]) == ("running", 2)
    assert sorted(cloud.phones.values()) == ["active", "busy", "busy"]
    sim(cloud).advance(460)
    assert sorted(cloud.phones.values()) == ["active", "cleanup", "cleanup"]


def test_a_job_on_several_phones_begins_when_it_has_them_all(cloud):
    cloud.occupy(ONE)
    cloud.occupy(TWO)
    create(cloud, concurrency=2)
    sim(cloud).advance(60)
    assert (cloud.jobs[0].status, cloud.jobs[0].held) == ("initiated", {THREE: 1})
    cloud.vacate(TWO)
    sim(cloud).advance(40 + 30)
    assert (cloud.jobs[0].status, cloud.jobs[0].held) == ("running", {THREE: 1, TWO: 100})


def test_a_phone_may_break_after_a_job_and_is_mended_in_time():
    with fake(faulty_odds=1.0) as cloud:
        create(cloud, fixed=ONE)
        sim(cloud).advance(531)
        assert cloud.phones[ONE] == "faulty"
        sim(cloud).advance(600)
        assert cloud.phones[ONE] == "active"


def test_a_person_takes_a_phone_and_gives_it_back(cloud):
    cloud.occupy(ONE, by="aerickson")
    assert (devices(cloud)[ONE]["status"], devices(cloud)[ONE]["inUseBy"]) == ("busy", "aerickson")
    with pytest.raises(Conflict):
        cloud.occupy(ONE)
    cloud.vacate(ONE)
    assert devices(cloud)[ONE]["status"] == "cleanup"
    sim(cloud).advance(40)
    assert "inUseBy" not in devices(cloud)[ONE]
    with pytest.raises(Conflict):
        cloud.vacate(ONE)


def test_a_job_for_a_phone_that_is_not_there_is_refused(cloud):
    answer = ask(
        cloud, "POST", "/fake/v1/jobs", json={"labels": ["x"], "worker_type": "w", "patterns": [], "fixed": "Z"}
    )
    assert (answer.status_code, answer.json()["message"]) == (400, "fixedIP: 'Z' is not a phone of this account")
    assert ask(cloud, "POST", "/fake/v1/jobs", data=b"{}").status_code == 400
    assert cloud.jobs == []


def test_answers_about_phones_may_be_old():
    with fake(age=8, speed=2) as cloud:
        sim(cloud).advance(50)
        cloud.occupy(ONE)
        sim(cloud).advance(3.9)
        assert devices(cloud)[ONE]["status"] == "active"
        sim(cloud).advance(0.2)
        assert devices(cloud)[ONE]["status"] == "busy"
        cloud.age = 0
        cloud.vacate(ONE)
        assert devices(cloud)[ONE]["status"] == "cleanup"


# What it notes.


def test_two_jobs_for_one_phone_are_noted(cloud):
    create(cloud, fixed=ONE)
    sim(cloud).advance(5)
    second = create(cloud, fixed=ONE)["job_number"]
    create(cloud, fixed=TWO)
    (violation,) = cloud.violations
    assert (violation.kind, violation.device, violation.job) == ("two jobs", ONE, second)
    assert (violation.time, violation.since) == (5, 0)


def test_two_jobs_are_noted_when_one_that_may_take_any_phone_takes_one_that_is_meant_for_another(cloud):
    any_phone = create(cloud)["job_number"]
    sim(cloud).advance(0.5)
    create(cloud, fixed=ONE)
    assert cloud.violations == []
    sim(cloud).advance(0.5)
    assert [(each.kind, each.device, each.job) for each in cloud.violations] == [("two jobs", ONE, any_phone)]


def test_one_job_after_the_other_is_no_violation(cloud):
    create(cloud, fixed=ONE)
    sim(cloud).advance(491)
    create(cloud, fixed=ONE)
    assert cloud.phones[ONE] == "cleanup"
    assert cloud.violations == []


def test_a_job_for_a_faulty_phone_is_noted(cloud):
    sim(cloud).advance(5)
    cloud.set_faulty(ONE)
    sim(cloud).advance(2)
    create(cloud, fixed=ONE)
    (violation,) = cloud.violations
    assert (violation.kind, violation.since, violation.time) == ("faulty", 5, 7)


def test_a_job_for_a_phone_that_a_person_has_is_noted(cloud):
    cloud.occupy(ONE)
    create(cloud, fixed=ONE)
    assert [each.kind for each in cloud.violations] == ["in use"]


def test_a_phone_is_free_while_no_job_has_it_or_is_meant_for_it(cloud):
    sim(cloud).advance(10)
    create(cloud, fixed=ONE)
    sim(cloud).advance(100)
    create(cloud)
    sim(cloud).advance(600)
    assert cloud.free_spans(ONE) == [(0, 10), (541, 710)]
    assert cloud.free_spans(TWO) == [(0, 111), (641, 710)]
    assert cloud.free_spans(THREE) == [(0, 710)]


def test_it_counts_the_jobs_that_are_initiated(cloud):
    create(cloud, fixed=ONE)
    sim(cloud).advance(10)
    create(cloud, fixed=TWO)
    sim(cloud).advance(100)
    assert cloud.initiated() == [(0, 1), (10, 2), (31, 1), (41, 0)]


# What goes wrong with services.


def test_it_can_be_down_and_up_again(cloud):
    session = requests.Session()
    session.auth = cloud.account
    assert session.get(cloud.url + DEVICES, timeout=10).status_code == 200
    cloud.web.set_fault(Fault(down=True))
    for _ in range(3):
        with pytest.raises(requests.ConnectionError):
            session.get(cloud.url + DEVICES, timeout=10)
    cloud.web.set_fault(None)
    assert session.get(cloud.url + DEVICES, timeout=10).status_code == 200


def test_nobody_listens_once_it_is_stopped():
    with fake() as cloud:
        port = int(cloud.url.rpartition(":")[2])
        kept = socket.create_connection(("127.0.0.1", port), timeout=10)
        devices(cloud)
    with kept:
        assert kept.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    cloud.stop()


def test_a_port_that_is_taken_is_named(cloud):
    port = int(cloud.url.rpartition(":")[2])
    with pytest.raises(FakesError, match=f"the fake LambdaTest can't listen on 127.0.0.1:{port} "):
        fake(port=port).start()


def test_it_says_when_to_come_again_after_too_many_calls(cloud):
    cloud.web.set_fault(too_many(12.5, path=JOBS), times=2)
    assert ask(cloud, "GET", DEVICES).status_code == 200
    for _ in range(2):
        answer = ask(cloud, "GET", JOBS)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "12.5")
    assert ask(cloud, "GET", JOBS).status_code == 200


def test_it_can_fail_and_then_does_nothing(cloud):
    made = create(cloud, fixed=ONE)
    cloud.web.set_fault(Fault(status=500))
    answer = abort(cloud, made["id"])
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, "text/html")
    assert "Retry-After" not in answer.headers
    sim(cloud).advance(2)
    assert not cloud.jobs[0].ended


def test_it_can_be_slow_but_does_at_once_what_it_is_asked():
    with fake(clock=Clock()) as cloud:
        cloud.web.set_fault(Fault(slow=60))
        with pytest.raises(requests.Timeout):
            requests.get(cloud.url + DEVICES, auth=cloud.account, timeout=0.2)
        job = {"labels": ["x"], "worker_type": "w", "patterns": [".*"], "fixed": ONE}
        with pytest.raises(requests.Timeout):
            requests.post(cloud.url + "/fake/v1/jobs", auth=cloud.account, json=job, timeout=0.2)
        assert [each.spec.fixed for each in cloud.jobs] == [ONE]


@pytest.mark.parametrize("kind", list(Nonsense))
def test_it_can_talk_nonsense(cloud, kind):
    create(cloud, fixed=ONE)
    cloud.web.set_fault(Fault(nonsense=kind))
    for path, good in ((DEVICES, recorded("devices")), (JOBS, recorded("jobs"))):
        answer = ask(cloud, "GET", path)
        assert answer.status_code == 200
        try:
            found = answer.json()
        except requests.JSONDecodeError:
            assert kind in (Nonsense.HTML, Nonsense.HALF, Nonsense.EMPTY)
        else:
            assert kind in (Nonsense.LIST, Nonsense.TYPES, Nonsense.KEYS)
            assert strangeness(found, [good])


def test_it_keeps_what_it_was_asked(cloud):
    devices(cloud)
    jobs(cloud, status="initiated")
    assert [each.partition("?")[0] for each in cloud.web.asked] == [f"GET {DEVICES}", f"GET {JOBS}"]
    assert cloud.web.asked[1].endswith("&status=initiated")


def test_without_a_clock_it_lives_in_real_time():
    with fake(clock=Clock(), speed=100_000) as cloud:
        create(cloud, fixed=ONE)
        for _ in range(1000):
            if cloud.jobs[0].ended:
                break
            devices(cloud)
        assert jobs(cloud)[0]["status"] == "completed"
