# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Two imaging servers on one database: a request is made on one of them, for a device of the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from sqlalchemy import text

from mozpool.client import Client
from mozpool.db import schema
from tests.integration.mozpool_site import Site, another_server, eventually

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def owner(database_url: str, tmp_path: Path) -> Iterator[Site]:
    """The server that all devices belong to; they never fail."""
    site = Site(tmp_path, database_url, boards=3, speed=20.0, seed=3, reliable=True)
    with site:
        yield site


def redirected(url: str, path: str) -> str:
    """Where a server sends a call that is not for it."""
    answer = requests.post(f"{url}{path}", json={"duration": 900}, timeout=10, allow_redirects=False)
    assert answer.status_code == 302
    return answer.headers["Location"]


def test_a_device_of_another_server_is_lent_and_given_back(owner: Site, tmp_path: Path) -> None:
    with another_server(owner, tmp_path / "other") as (url, log):
        here, there = Client([url]), Client([owner.url])
        made = here.request("device1", image="b2g", duration=600, boot_config={"b2gbase": "http://b/7/"}, wait=2400)
        assert made.url == f"{url}/api/request/{made.id}/"
        ready = here.wait_ready(made.id, 120)
        assert ready.assigned_device == "device1"
        device = there.device("device1")
        assert (device.image, device.request_id) == ("b2g", made.id)

        # Each server said to the other what concerned it, and was understood.
        asked = "POST /api/device/device1/event/please_image/ 200 "
        told = f"POST /api/request/{made.id}/event/lifeguard_finished/ 200 "
        assert eventually(lambda: asked in owner.log.read_text()), owner.tail()
        assert eventually(lambda: told in log.read_text()), log.read_text()

        # What is for the other server goes there, with its verb kept.
        request, claimed = f"/api/request/{made.id}/renew/", "/api/device/device1/reboot/"
        assert redirected(owner.url, request) == url + request
        assert redirected(url, claimed) == owner.url + claimed
        there.renew(made.id, 900)
        renewed = there.get_request(made.id).expires
        assert renewed is not None and ready.expires is not None and renewed > ready.expires
        here.reboot("device1", request_id=made.id)
        assert eventually(lambda: here.device("device1").state != "ready")
        assert eventually(lambda: here.device("device1").state == "ready", 60)

        there.return_device("device1", request_id=made.id)
        assert here.get_request(made.id).state == "closed"
        assert there.device("device1").request_id is None
        assert eventually(lambda: here.device("device1").state == "ready", 60)
    assert "Traceback" not in log.read_text() + owner.log.read_text()


def test_a_device_that_comes_free_is_given_to_who_waits_on_another_server(owner: Site, tmp_path: Path) -> None:
    with another_server(owner, tmp_path / "other") as (url, log):
        here, there = Client([url]), Client([owner.url])
        held = there.request("device1", image="android", duration=600, wait=2400)
        there.wait_ready(held.id, 120)
        waits = here.request("device1", image="android", duration=600, wait=2400)
        assert waits.state == "finding_device"
        there.return_request(held.id)
        assert here.wait_ready(waits.id, 120).assigned_device == "device1"
        # It was told, and need not have waited for its own next look.
        assert eventually(lambda: f"POST /api/request/{waits.id}/event/claimed/ 200 " in log.read_text())


def test_servers_go_on_while_the_tables_of_the_next_version_are_there(owner: Site, tmp_path: Path) -> None:
    """What an upgrade from server to server looks like to those that are not upgraded yet."""
    client = Client([owner.url])
    held = client.request("device1", image="android", duration=600, wait=2400)
    client.wait_ready(held.id, 120)
    with owner.database.maintenance() as conn:
        for table in ("devices", "requests", "device_requests", "imaging_servers", "server_presence"):
            conn.execute(text(f"ALTER TABLE {table} ADD COLUMN added_by_the_next INTEGER"))
        conn.execute(text("UPDATE alembic_version SET version_num = :next"), {"next": f"9999_{schema.head()}"})
    client.renew(held.id, 900)
    client.return_request(held.id)
    with another_server(owner, tmp_path / "other") as (url, log):
        # Both one that was running and one that starts now serve requests, of their own and for the other's devices.
        for each in (Client([url]), client):
            made = each.request("device1", image="android", duration=600, wait=2400)
            assert each.wait_ready(made.id, 120).assigned_device == "device1"
            each.return_request(made.id)
        assert "beside which this one may run" in log.read_text()
        listed = requests.get(f"{url}/api/server/list/", timeout=10).json()["servers"]
        assert [server["state"] for server in listed] == ["up", "up"]
    assert owner.stop_daemon() < 10
    owner.start_daemon()
    made = client.request("device2", image="android", duration=600, wait=2400)
    assert client.wait_ready(made.id, 120).assigned_device == "device2"
    assert "Traceback" not in owner.log.read_text()
