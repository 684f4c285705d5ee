# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Hosted devices in the database, the queue, the API and the pages: who can have them, and how a job is traced."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from mozpool.bmm.interfaces import NO_MAC, HostedJob, HostedStatus, JobOrder, Launcher, Target
from mozpool.clock import Deadline, SimClock
from mozpool.db import devices, hosted_jobs, images, tables, upkeep
from mozpool.db.engine import Database
from mozpool.pool.allocation import explain, preview
from mozpool.pool.criteria import Criteria
from tests.app_fixtures import Server
from tests.unit.pool_support import NOW, Pool

URL = "https://hyperexecute.example.com/hyperexecute/task?jobId=abc-123"
TASK = "https://tc.example.com/tasks/TASK_one/runs/0"


def order(database: Database, claim_id: int, **columns: Any) -> None:
    """A job was ordered for a claim."""
    values: dict[str, Any] = {
        "request_id": claim_id + 100,
        "device_id": 1,
        "device": "PHONE1",
        "project": "a55-perf",
        "now": NOW,
        **columns,
    }
    database.run(lambda conn: hosted_jobs.order(conn, claim_id=claim_id, **values))


def found(database: Database, wanted: str) -> list[int]:
    with database.read() as conn:
        return [job.claim_id for job in hosted_jobs.find(conn, wanted)]


def of(database: Database, claim_id: int) -> hosted_jobs.Job:
    with database.read() as conn:
        job = hosted_jobs.of_claim(conn, claim_id)
    assert job is not None
    return job


def test_a_job_is_followed_from_its_order_to_its_end(database: Database) -> None:
    order(database, 7)
    job = of(database, 7)
    assert (job.request_id, job.lead_request_id, job.project, job.ordered) == (107, 107, "a55-perf", NOW)
    assert (job.number, job.status, job.running, job.ended, job.reason) == (None,) * 5
    then = NOW + timedelta(seconds=30)

    def goes_on(conn: Any) -> None:
        hosted_jobs.failed(conn, 7, "exit code 1")
        hosted_jobs.set_lead(conn, 7, 105)
        hosted_jobs.saw(conn, 7, number=12, job_id="abc-123", url=URL, status="initiated")
        hosted_jobs.saw(conn, 7, number=None, job_id=None, url=None, status="running")
        hosted_jobs.runs(conn, 7, then)
        hosted_jobs.set_task(conn, job.id, task_id="TASK_one", task_url=TASK, now=then)
        hosted_jobs.set_task(conn, job.id, task_id="TASK_two", task_url=TASK, now=then + timedelta(hours=1))

    database.run(goes_on)
    job = of(database, 7)
    assert (job.lead_request_id, job.number, job.job_id, job.url) == (105, 12, "abc-123", URL)
    assert (job.status, job.running, job.task_id, job.task_seen, job.reason) == (
        "running",
        then,
        "TASK_two",
        then,
        None,
    )
    with database.read() as conn:
        assert [job.claim_id for job in hosted_jobs.open_ones(conn)] == [7]
        assert hosted_jobs.of_devices(conn, [1, 2]).keys() == {1}
        assert hosted_jobs.devices_of(conn, 105) == ["PHONE1"]
    database.run(lambda conn: hosted_jobs.end(conn, 7, then))
    database.run(lambda conn: hosted_jobs.saw(conn, 7, number=99, job_id=None, url=None, status="late"))
    assert (of(database, 7).ended, of(database, 7).number) == (then, 12)
    with database.read() as conn:
        assert hosted_jobs.open_ones(conn) == []
        assert hosted_jobs.of_devices(conn, [1]) == {}
        assert hosted_jobs.of_requests(conn, [107, 108])[107].claim_id == 7
        assert [job.claim_id for job in hosted_jobs.latest(conn, 1, 5)] == [7]
        assert [job.claim_id for job in hosted_jobs.between(conn, NOW, then)] == [7]
        assert hosted_jobs.between(conn, then, then + timedelta(days=1)) == []


def test_what_is_left_on_a_device_is_ended_with_a_reason(database: Database) -> None:
    order(database, 7)
    order(database, 8)
    order(database, 9, device_id=2)
    database.run(lambda conn: hosted_jobs.failed(conn, 8, "it ran for too long"))
    database.run(lambda conn: hosted_jobs.end_all(conn, 1, NOW, "stopped"))
    assert [of(database, claim).reason for claim in (7, 8, 9)] == ["stopped", "it ran for too long", None]
    assert [of(database, claim).ended for claim in (7, 8, 9)] == [NOW, NOW, None]


def test_a_job_is_found_by_whatever_names_it(database: Database) -> None:
    for claim_id, number, job_id, task in ((7, 12, "abc-123", "TASK_one"), (8, 13, "ABC-123", "task_one")):
        order(database, claim_id)
        with database.begin() as conn:
            hosted_jobs.saw(conn, claim_id, number=number, job_id=job_id, url=URL, status="running")
            row = hosted_jobs.of_claim(conn, claim_id)
            assert row is not None
            hosted_jobs.set_task(conn, row.id, task_id=task, task_url=TASK, now=NOW)
    for wanted in ("12", " 12 ", "abc-123", URL, "TASK_one", TASK, "https://tc.example.com/tasks/TASK_one#x"):
        assert found(database, wanted) == [7], wanted
    for wanted in ("", "1", "abc", "https://tc.example.com/tasks/", "9" * 30, "x" * 300, "%", "TASK_%"):
        assert found(database, wanted) == [], wanted


def test_old_jobs_are_cleared_away(database: Database) -> None:
    for claim_id, days in ((7, 100), (8, 1)):
        order(database, claim_id)
        with database.begin() as conn:
            hosted_jobs.end(conn, claim_id, NOW - timedelta(days=days))
    order(database, 9, now=NOW - timedelta(days=100))
    upkeep.run(database, SimClock(NOW))
    with database.read() as conn:
        assert [hosted_jobs.of_claim(conn, claim) is None for claim in (7, 8, 9)] == [True, False, False]


# Who can have a hosted device


class Phones(Pool):
    """A pool of boards, with two phones."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, SimClock(NOW))
        self.type = self.hardware("Galaxy A55 5G", "14")
        self.database.run(lambda conn: images.offer_hosted(conn, self.type))
        self.job_image, self.as_is = (self.image_named(name).id for name in (images.JOB, images.AS_IS))

    def phone(self, name: str, **columns: Any) -> int:
        values = {
            "backends": '{"launcher": "lambdatest"}',
            "hardware_type_id": self.type,
            "inventory_id": 0,
            "mac_address": NO_MAC,
            **columns,
        }
        return self.device(name=name, **values)


@pytest.fixture
def phones(database: Database) -> Iterator[Phones]:
    made = Phones(database)
    try:
        yield made
    finally:
        made.stop()


def test_offering_hosted_images_twice_changes_nothing(phones: Phones) -> None:
    phones.database.run(lambda conn: images.offer_hosted(conn, phones.type))
    with phones.database.read() as conn:
        assert images.fits(conn, phones.as_is) == images.Fits(frozenset({phones.type}), True)
        assert images.fits(conn, phones.image_id) == images.Fits(frozenset({phones.panda}), False)
        assert [image.name for image in images.on_offer(images.find(conn))] == ["b2g", "as-is"]
        assert images.by_name(conn, images.JOB).boot_config_keys == ("project",)  # type: ignore[union-attr]


@pytest.mark.parametrize("named_by", ["device", "hardware type"])
def test_ordinary_images_and_hosted_ones_are_had_on_devices_of_their_kind(phones: Phones, named_by: str) -> None:
    if named_by == "hardware type":
        text = '{"launcher": "lambdatest", "probe": "lambdatest"}'
        types = tables.hardware_types
        phones.database.run(
            lambda conn: conn.execute(update(types).where(types.c.id == phones.type).values(backends=text))
        )
    phone = phones.phone("PHONE1", backends='{"launcher": "x"}' if named_by == "device" else None)
    board = phones.device()
    no_phone: list[dict[str, Any]] = [{}, {"requested_device": "PHONE1"}]
    no_board: list[dict[str, Any]] = [
        {"hardware_type": "panda"},
        {"requested_device": phones.get_device(board).name},
    ]
    for wanted in no_phone:
        assert refused(phones, phones.request(image_id=phones.image_id, **wanted), phone)
    for wanted in no_board:
        for image in (phones.as_is, phones.job_image):
            assert refused(phones, phones.request(image_id=image, **wanted), board)


def refused(pool: Phones, request_id: int, device_id: int) -> bool:
    """Whether a request does not get a device, whatever else it gets."""
    pool.match()
    request = pool.get_request(request_id)
    has = request.device_id
    pool.close(request_id)
    return has != device_id


def test_any_phone_of_a_type_can_be_asked_for(phones: Phones) -> None:
    other = phones.hardware("Pixel 9", "15")
    phones.database.run(lambda conn: images.offer_hosted(conn, other))
    phones.phone("PIXEL", hardware_type_id=other)
    galaxy = phones.phone("PHONE1")
    for image in (phones.as_is, phones.job_image):
        wanted = phones.request(image_id=image, hardware_type="Galaxy A55 5G", hardware_model="14")
        phones.match()
        assert phones.device_of(wanted) == galaxy
        phones.close(wanted)
        phones.database.run(lambda conn: devices.set_attributes(conn, galaxy, state="ready"))


def test_a_row_without_a_pxe_config_offers_nothing_on_ordinary_devices(phones: Phones) -> None:
    """Rows of 4.2.1 say with it that nothing boots an image there; and a hosted image is nothing for boards."""
    for image in (phones.as_is, phones.image("android", on=[phones.hardware("tegra", "2")])):
        row = {"image_id": image, "hardware_type_id": phones.panda, "pxe_config_id": None}
        phones.add(tables.image_pxe_configs, **row)
        phones.device()
        waits = phones.request(image_id=image)
        phones.match()
        assert phones.device_of(waits) is None
        phones.close(waits)


def test_a_phone_that_somebody_had_waits_for_its_proof(phones: Phones) -> None:
    phone = phones.phone("PHONE1")
    first = phones.request(image_id=phones.as_is, requested_device="PHONE1")
    phones.match()
    assert phones.device_of(first) == phone
    claim = phones.get_device(phone).claim_id
    phones.database.run(lambda conn: devices.set_attributes(conn, phone, operation_claim_id=claim))
    second = phones.request(image_id=phones.job_image, requested_device="PHONE1")
    phones.close(first)
    row = phones.get_device(phone)
    assert (row.claim_id, row.state_timeout) == (None, NOW), "it is due"
    phones.match()
    assert phones.device_of(second) is None
    phones.database.run(lambda conn: devices.set_attributes(conn, phone, operation_claim_id=None))
    phones.match()
    assert phones.device_of(second) == phone


@pytest.mark.parametrize("state", hosted_jobs.BUSY_STATES)
def test_a_phone_that_is_given_up_with_its_job_is_due_at_once(phones: Phones, state: str) -> None:
    phone = phones.phone("PHONE1")
    holder = phones.request(image_id=phones.job_image, boot_config='{"project": "p"}')
    phones.match()
    later = NOW + timedelta(seconds=600)
    phones.database.run(lambda conn: devices.set_attributes(conn, phone, state=state, state_timeout=later))
    phones.close(holder)
    assert phones.get_device(phone).state_timeout == NOW


def test_it_says_what_could_be_had(phones: Phones) -> None:
    phones.phone("PHONE1", state="job_running")
    request = phones.get_request(phones.request(image_id=phones.as_is))
    with phones.database.read() as conn:
        match = preview(conn, Criteria(image_id=phones.as_is))
        assert (match.matching, match.free) == (1, 0)
        assert explain(conn, request).reason == "1 matching device: 1 being prepared or tested"
        assert preview(conn, Criteria(image_id=phones.image_id)).matching == 0


# Tracing


class Cloud(Launcher):
    """An account whose phones are all free, for what only needs one."""

    def lane(self, device: Target, *, start: bool) -> str:
        return "cloud:account"

    def status(self, device: Target, deadline: Deadline) -> HostedStatus:
        return HostedStatus("active", True, False)

    def start(self, device: Target, order: JobOrder, deadline: Deadline) -> None:
        """It starts."""

    def look(self, device: Target, order: JobOrder, deadline: Deadline) -> HostedJob | None:
        return HostedJob(12, "abc-123", "running", True, False, URL)

    def stop(self, device: Target, deadline: Deadline) -> bool:
        return True

    def test(self, lane: str, deadline: Deadline) -> None:
        """It answers."""


@pytest.fixture
def site(imaging_server: Server) -> Server:
    """``device1`` is a phone that runs a job for request 1."""
    database = imaging_server.daemon.database
    imaging_server.daemon.bmm.registry._built["launcher", "cloud"] = Cloud()

    def a_phone(conn: Any) -> None:
        images.add_hardware_type(conn, "Galaxy A55 5G", "14", {"launcher": "cloud"})
        hardware = next(each for each in images.known_hardware(conn) if each.type == "Galaxy A55 5G")
        images.offer_hosted(conn, hardware.id)
        row = devices.by_name(conn, "device1")
        assert row is not None
        devices.set_attributes(
            conn,
            row.id,
            hardware_type_id=hardware.id,
            relay_info=None,
            mac_address=NO_MAC,
            environment="a55-perf",
            image_id=None,
        )

    database.run(a_phone)
    imaging_server.daemon.devices.forget_all()
    imaging_server.daemon.timers.start()
    number = imaging_server.made("device1", image="taskcluster-job", project="a55-perf", b2gbase=None)
    assert number == 1
    imaging_server.wait_until(lambda: imaging_server.request(1).state == "ready")
    return imaging_server


def keys(job: dict[str, Any]) -> dict[str, Any]:
    return {name: job[name] for name in ("number", "id", "url", "status", "project", "lead_request_id", "ended")}


SHOWN = {
    "number": 12,
    "id": "abc-123",
    "url": URL,
    "status": "running",
    "project": "a55-perf",
    "lead_request_id": 1,
    "ended": None,
}


def test_requests_and_devices_show_the_job(site: Server) -> None:
    details = site.get("/api/request/1/details/").get_json()
    assert keys(details["job"]) == keys(details["request"]["job"]) == SHOWN
    assert keys(site.get("/api/request/list/").get_json()["requests"][0]["job"]) == SHOWN
    assert keys(site.get("/api/device/device1/details/").get_json()["job"]) == SHOWN
    listed = {row["name"]: row["job"] for row in site.get("/api/device/list/?details=1").get_json()["devices"]}
    assert keys(listed["device1"]) == SHOWN
    assert listed["device2"] is None
    other = site.made("device2")
    assert site.get(f"/api/request/{other}/details/").get_json()["job"] is None


def test_requests_are_found_by_their_job(site: Server) -> None:
    database = site.daemon.database
    with database.read() as conn:
        (job,) = hosted_jobs.open_ones(conn)
    database.run(lambda conn: hosted_jobs.set_task(conn, job.id, task_id="TASK_one", task_url=TASK, now=job.ordered))
    site.made("device2")
    for closed in (False, True):
        if closed:
            site.post("/api/request/1/return/")
        for wanted in ("12", "abc-123", URL, "TASK_one", TASK):
            listed = site.get("/api/request/list/", query_string={"job": wanted}).get_json()["requests"]
            assert [row["id"] for row in listed] == [1], wanted
            page = site.get("/requests", query_string={"search": wanted, "whose": "all", "closed": "1"})
            assert 'href="/requests/1"' in page.text
            assert 'href="/requests/2"' not in page.text
    assert site.get("/api/request/list/?job=13").get_json()["requests"] == []


def test_the_pages_lead_to_the_job_and_its_task(site: Server) -> None:
    database = site.daemon.database
    first = site.get("/requests/1")
    assert f'<a href="{URL}" rel="noopener" target="_blank">job 12</a>' in first.text
    with database.read() as conn:
        (job,) = hosted_jobs.open_ones(conn)
    database.run(lambda conn: hosted_jobs.set_task(conn, job.id, task_id="TASK_one", task_url=TASK, now=job.ordered))
    again = site.get("/requests/1", headers={"If-None-Match": first.headers.get("ETag", "")})
    assert again.status_code == 200, "it has changed"
    for page in ("/requests/1", "/devices/device1"):
        text = site.get(page).text
        assert f'<a href="{TASK}" rel="noopener" target="_blank">TASK_one</a>' in text, page
        assert f'href="{URL}"' in text
    assert "in use" in site.get("/devices/device1").text
    assert "It has run none yet" not in site.get("/devices/device1").text


def test_the_page_of_a_hosted_device_says_nothing_of_what_it_has_not(site: Server) -> None:
    hosted, board = site.get("/devices/device1").text, site.get("/devices/device2").text
    for part in ("MAC address", "<dt>Power</dt>", "<dt>Agent</dt>", "<dt>Boots</dt>", "Command by its agent"):
        assert part in board, part
        assert part not in hosted, part
    assert hosted.count("It lives in a cloud, out of our reach") == 1
    assert hosted.count('id="device-jobs"') == 1
    assert "out of our reach" not in board


def test_going_on_with_a_job_is_no_failed_step(site: Server) -> None:
    site.daemon.database.run(
        lambda conn: conn.execute(
            update(tables.devices)
            .where(tables.devices.c.name == "device1")
            .values(state="job_running", state_counters='{"job_running": 7}')
        )
    )
    site.daemon.devices.forget_all()
    text = site.get("/devices/device1").text
    assert "The device runs a job" in text
    assert "failed 7 times" not in text
    assert "This step may take" not in text


def test_what_a_device_cannot_have_is_refused_with_words(site: Server) -> None:
    for device, image in (("device1", "b2g"), ("device2", "as-is"), ("device2", "taskcluster-job")):
        answer = site.ask(device, image=image, project="p")
        assert answer.status_code == 422
        assert answer.get_json()["error"]["message"] == f"image {image} can't be had on device {device}"


@pytest.mark.parametrize(
    ("boot_config", "message"),
    [
        ({}, "project is missing: image taskcluster-job needs this key in its boot config"),
        ({"project": 5}, "project: 5 is not 1 to 64 characters"),
        ({"project": "p", "phones": 2}, "group is missing"),
        ({"project": "p", "group": "g", "phones": "many"}, "phones: 'many' is not a whole number from 1"),
        ({"project": "p", "group": "g", "phones": 0}, "phones: 0 is not a whole number from 1 to 100"),
        ({"project": "p", "group": "", "phones": 2}, "group: '' is not 1 to 64 characters"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(site: Server, boot_config: dict[str, Any], message: str) -> None:
    answer = site.ask("any", image="taskcluster-job", b2gbase=None, **boot_config)
    assert answer.status_code == 400
    assert answer.get_json()["error"]["message"].startswith(message)


def test_a_phone_is_flashed_with_nothing_but_as_is(site: Server) -> None:
    site.change("device1", state="troubleshooting")
    site.daemon.devices.forget_all()
    for image in ("b2g", "taskcluster-job"):
        body = {"image": image, "b2gbase": "http://x/", "project": "p"}
        assert site.post("/api/device/device1/flash/", body).status_code == 422
    assert site.post("/api/device/device1/flash/", {"image": "as-is"}).get_json() == {"state": "phone_verifying"}


def test_its_hardware_type_names_its_backend_and_the_others_none(site: Server) -> None:
    text = site.get("/hardware-types").text
    assert "launcher" in text
    assert "cloud" in text
