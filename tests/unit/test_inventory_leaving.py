# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Devices that the inventory does not have any more, as the API, the pages and the queue see them, and the daemon's own
reading of the inventory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from mozpool.db import jobs, tables
from mozpool.db.jobs import Job
from mozpool.fakes.inventory import FakeInventory, system
from mozpool.lifeguard.inventory.sync import JOB
from tests.app_fixtures import OWN, Server, server


def names(server: Server) -> list[str]:
    found: list[str] = server.get("/api/device/list/").get_json()["devices"]
    return found


def test_a_leaving_device_says_so(imaging_server: Server) -> None:
    assert imaging_server.get("/api/device/device1/details/").get_json()["leaving"] is False
    imaging_server.made("device1")
    imaging_server.change("device1", leaving=1)
    assert imaging_server.get("/api/device/device1/details/").get_json()["leaving"] is True
    rows = imaging_server.get("/api/device/list/?details=1").get_json()["devices"]
    assert {row["name"]: row["leaving"] for row in rows} == {"device1": True, "device2": False, "device3": False}
    page = imaging_server.get("/devices/device1").text
    assert "It is leaving: the inventory does not have it any more." in page
    assert "Queue for this device" not in page
    listed = imaging_server.get("/devices").text
    assert listed.count(">leaving</span>") == 1


def test_a_leaving_device_is_not_handed_out(imaging_server: Server) -> None:
    imaging_server.change("device1", leaving=1, state="pc_rebooting")
    before = imaging_server.counts()
    said = imaging_server.ask("device1")
    assert said.status_code == 409
    assert said.get_json()["error"] == {
        "code": "conflict",
        "message": "device device1 is leaving the pool: it is not in the inventory any more",
        "field": "device",
    }
    assert imaging_server.ask("device1", wait=60).status_code == 409
    assert imaging_server.counts() == before
    imaging_server.change("device1", state="ready")
    taken = {imaging_server.request(imaging_server.made()).device for _ in range(2)}
    assert taken == {"device2", "device3"}
    waiting = imaging_server.get(f"/api/request/{imaging_server.made()}/details/").get_json()
    assert "3 matching devices: 2 taken" in waiting["reason"]
    assert waiting["reason"].endswith("1 leaving the pool")
    match = imaging_server.get("/api/request/match/?device=device1").get_json()
    assert (match["matching"], match["free"]) == (1, 0)
    assert match["reason"] == "device1 is leaving the pool: it is not in the inventory any more"


def test_who_waits_for_a_device_that_begins_to_leave_is_told(imaging_server: Server) -> None:
    imaging_server.made("device1")
    waiting = imaging_server.made("device1", wait=600)
    imaging_server.change("device1", leaving=1)
    reason = imaging_server.get(f"/api/request/{waiting}/details/").get_json()["reason"]
    assert reason == "device1 is leaving the pool: it is not in the inventory any more"


def test_it_goes_the_moment_it_is_returned(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    imaging_server.change("device1", state="ready")
    imaging_server.change("device1", leaving=1)
    imaging_server.daemon.scan()
    imaging_server.daemon.leaving.look()
    assert "device1" in names(imaging_server)
    device = imaging_server.device("device1")
    assert imaging_server.post(f"/api/request/{number}/return/").status_code == 204
    imaging_server.wait_until(lambda: "device1" not in names(imaging_server))
    assert imaging_server.daemon.devices.remembered(device.id) is None
    assert imaging_server.get("/api/device/device1/details/").status_code == 404
    # Whatever still comes for it does no harm.
    outcome = imaging_server.daemon.lifeguard.event(device.id, "ping_ok")
    assert outcome.status == "gone"


def test_it_goes_when_what_was_going_on_has_ended(imaging_server: Server) -> None:
    imaging_server.change("device1", state="pc_rebooting", leaving=1)
    imaging_server.daemon.leaving.look()
    assert "device1" in names(imaging_server)
    # A state that it is in by itself.
    imaging_server.daemon.devices.force(imaging_server.device("device1").id, "failed_pxe_booting")
    imaging_server.wait_until(lambda: "device1" not in names(imaging_server))


def test_it_stays_while_a_person_is_at_work_with_it(imaging_server: Server) -> None:
    for state in ("maintenance_mode", "troubleshooting", "self_test_running"):
        imaging_server.change("device1", state=state, leaving=1)
        imaging_server.daemon.leaving.look()
        assert "device1" in names(imaging_server)
    imaging_server.change("device1", state="locked_out")
    with imaging_server.daemon.bmm.occupied(imaging_server.device("device1").id, "device1", "power off"):
        imaging_server.daemon.leaving.look()
        assert "device1" in names(imaging_server)
    imaging_server.daemon.leaving.look()
    assert "device1" not in names(imaging_server)


def test_only_its_own_server_lets_it_go(imaging_server: Server) -> None:
    imaging_server.move("device1", imaging_server.other_server())
    imaging_server.change("device1", leaving=1)
    imaging_server.daemon.leaving.look()
    assert "device1" in names(imaging_server)


def test_what_is_back_before_it_has_left_stays(imaging_server: Server) -> None:
    imaging_server.change("device1", leaving=1)
    imaging_server.change("device1", leaving=0)
    imaging_server.daemon.leaving.look()
    assert "device1" in names(imaging_server)


# The daemon's own reading


@pytest.fixture
def fake() -> Iterator[FakeInventory]:
    with FakeInventory() as inventory:
        yield inventory


@pytest.fixture
def reading(database_url: str, tmp_path: Path, fake: FakeInventory) -> Iterator[Server]:
    """A server that reads the inventory every hour."""
    keys = {"url": fake.url, "username": "mozpool", "password": "s3cret", "sync_interval": 3600.0, "timeout": 5.0}
    with server(database_url, tmp_path, inventory=keys) as running:
        for number in (1, 2, 3):
            row = running.device(f"device{number}")
            name = f"device{number}.example.com"
            running.change(row.name, fqdn=name)
            kept: dict[str, Any] = {"mac": row.mac_address, "server": OWN, "relay": row.relay_info}
            fake.put(system(row.inventory_id, name, model=None, **kept))
        yield running


def job(running: Server) -> Job | None:
    with running.daemon.database.read() as conn:
        return jobs.get(conn, JOB)


def read_now(running: Server) -> Job:
    """Read it, though it is not time yet."""
    running.daemon.database.run(
        lambda conn: conn.execute(update(tables.jobs).values(ended=running.daemon.clock.now() - timedelta(hours=2)))
    )
    before = job(running)
    assert running.daemon.inventory is not None
    running.daemon.inventory.look()

    def ended() -> Job | None:
        found = job(running)
        return found if found is not None and found.ended and (before is None or found.ended != before.ended) else None

    found = running.wait_until(ended)
    assert isinstance(found, Job)
    return found


def test_the_daemon_reads_the_inventory(reading: Server, fake: FakeInventory) -> None:
    assert reading.get("/api/inventory/").get_json() == {
        "source": "mozilla",
        "sync_interval": 3600.0,
        "running": False,
        **dict.fromkeys(("holder", "since", "ended", "ended_by", "outcome", "message")),
    }
    assert 'id="inventory"' not in reading.get("/servers").text
    found = read_now(reading)
    assert (found.outcome, found.message) == ("ok", "3 unchanged")
    del fake.systems["device1.example.com"]
    read_now(reading)
    reading.wait_until(lambda: names(reading) == ["device2", "device3"])
    said = reading.get("/api/inventory/").get_json()
    assert (said["outcome"], said["running"]) == ("ok", False)
    assert said["message"].startswith("1 removed, 2 unchanged")
    assert said["ended_by"].startswith(OWN)
    page = reading.get("/servers").text
    assert "The inventory was last read" in page
    assert "1 removed, 2 unchanged" in page


def test_it_is_read_when_it_is_time_and_by_one_server(reading: Server, fake: FakeInventory) -> None:
    read_now(reading)
    asked = len(fake.asked)
    assert reading.daemon.inventory is not None
    sync = reading.daemon.inventory._sync
    assert not sync.is_due(3600)
    reading.daemon.inventory.look()
    reading.wait_until(lambda: not reading.daemon.inventory._running.locked())  # type: ignore[union-attr]
    assert len(fake.asked) == asked
    now = reading.daemon.clock.now()
    reading.daemon.database.run(
        lambda conn: jobs.take(conn, JOB, holder="server-2.example.com", token="t" * 32, now=now, seconds=60)
    )
    assert not sync.is_due(0)
    said = reading.get("/api/inventory/").get_json()
    assert (said["running"], said["holder"]) == (True, "server-2.example.com")
    assert "It is being read by server-2.example.com" in reading.get("/servers").text


def test_that_it_failed_is_shown(reading: Server, fake: FakeInventory) -> None:
    fake.fault = "error"
    found = read_now(reading)
    assert found.outcome == "failed"
    assert "answered 500" in str(found.message)
    assert names(reading) == ["device1", "device2", "device3"]
    page = reading.get("/servers").text
    assert 'id="inventory-failed"' in page
    assert "answered 500" in page
    fake.fault = None
    assert read_now(reading).outcome == "ok"
    assert 'id="inventory-failed"' not in reading.get("/servers").text


def test_a_lent_device_that_the_inventory_loses_is_returned_and_goes(reading: Server, fake: FakeInventory) -> None:
    read_now(reading)
    number = reading.made("device2")
    reading.change("device2", state="ready")
    del fake.systems["device2.example.com"]
    read_now(reading)
    assert reading.device("device2").leaving
    assert reading.request(number).device == "device2"
    reading.post(f"/api/request/{number}/return/")
    reading.wait_until(lambda: "device2" not in names(reading))
