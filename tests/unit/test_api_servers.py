# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Imaging servers as the API and the pages show them, and what becomes of the devices of one that is away."""

from __future__ import annotations

from datetime import timedelta

from mozpool import __version__
from mozpool.db import servers
from mozpool.db.servers import Presence
from tests.app_fixtures import OTHER, OWN, Server


class Other:
    """Another imaging server of the pool, which owns a device."""

    def __init__(self, server: Server, device: str) -> None:
        self.server = server
        self.id = server.other_server()
        self.beats = 0
        server.move(device, self.id)
        self.beat()

    def beat(self, *, stopped: bool = False) -> None:
        """It gives a sign of life; the server looks."""
        self.beats += 1
        now = self.server.daemon.clock.now()
        said = Presence(self.id, self.beats, stopped, "4.9.9", now - timedelta(hours=2), now, 32, 5)
        self.server.daemon.database.run(lambda conn: servers.say_here(conn, said))
        self.server.daemon.presence.beat()


def test_servers_are_listed_with_what_they_said_last(imaging_server: Server) -> None:
    Other(imaging_server, "device2")
    own, other = imaging_server.get("/api/server/list/").get_json()["servers"]
    assert (own["fqdn"], own["state"], own["version"], own["devices"]) == (OWN, "up", __version__, 2)
    assert (other["fqdn"], other["state"], other["version"], other["devices"]) == (OTHER, "up", "4.9.9", 1)
    assert (other["uptime"], other["workers"], other["busy"]) == (7200, 32, 5)
    page = imaging_server.get("/servers").text
    assert f"{OWN} (this one)" in page
    assert "5 of 32" in page


def test_a_server_that_never_ran_says_nothing(imaging_server: Server) -> None:
    imaging_server.other_server()
    found = imaging_server.get("/api/server/list/").get_json()["servers"]
    assert [(server["state"], server["version"], server["uptime"]) for server in found] == [
        ("never started", None, None),
        ("never started", None, None),
    ]
    assert "never started" in imaging_server.get("/servers").text


def test_devices_of_a_server_that_stopped_are_not_handed_out_until_it_is_back(imaging_server: Server) -> None:
    other = Other(imaging_server, "device2")
    other.beat(stopped=True)
    rows = imaging_server.get("/api/device/list/?details=1").get_json()["devices"]
    assert {row["name"]: row["owner_state"] for row in rows} == {
        "device1": "up",
        "device2": "stopped",
        "device3": "up",
    }
    assert imaging_server.get("/api/device/device2/details/").get_json()["owner_state"] == "stopped"
    for path in ("/", "/servers"):
        page = " ".join(imaging_server.get(path).text.split())
        assert "was stopped" in page
        assert "1 device waits: it is in no group whose servers would take over" in page

    taken = {imaging_server.ask().get_json()["request"]["assigned_device"] for _ in range(2)}
    assert taken == {"device1", "device3"}
    waiting = imaging_server.made()
    named = imaging_server.ask("device2", wait=60).get_json()["request"]["id"]
    details = imaging_server.get(f"/api/request/{waiting}/details/").get_json()
    assert details["state"] == "finding_device"
    assert "1 on an imaging server that is away" in details["reason"]
    reason = imaging_server.get(f"/api/request/{named}/details/").get_json()["reason"]
    assert reason == f"device2 is on imaging server {OTHER}, which is away"
    refused = imaging_server.ask("device2", wait=0)
    assert refused.status_code == 409
    assert refused.get_json()["request"]["reason"] == reason

    other.beat()  # it is matched by a worker
    imaging_server.wait_until(lambda: imaging_server.request(waiting).device == "device2")
