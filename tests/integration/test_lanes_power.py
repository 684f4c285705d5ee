# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A power switch that keeps failing is failed itself: its devices wait, others go on, and it comes back by itself."""

from __future__ import annotations

import logging
import random
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update

from mozpool.bmm.backends.proxr import ProXRPower
from mozpool.bmm.interfaces import BackendContext, Target
from mozpool.clock import Clock, Deadline
from mozpool.config import load
from mozpool.daemon import Daemon
from mozpool.db import tables
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.engine import Database
from mozpool.fakes.board import Behaviour
from mozpool.fakes.pool import boards_of
from mozpool.fakes.rack import Rack
from mozpool.fakes.relayboard import RelayFault
from mozpool.pool.service import NewRequest
from mozpool.web.app import create_app
from tests.integration.mozpool_site import eventually, free_ports

SPEED = 20.0
PATIENCE = 60.0
"""Seconds that things may take on a busy machine."""

DEVICES = 30
"""Fourteen each on two relay boards, and two on a third, which is reached as a power strip."""


class Strip(ProXRPower):
    """Another kind of power switch, whose lanes are its own."""

    def lane(self, device: Target) -> str:
        return super().lane(device).replace("relay:", "strip:", 1)

    def test(self, lane: str, deadline: Deadline) -> None:
        super().test(lane.replace("strip:", "relay:", 1), deadline)


class Lab:
    """A daemon in this process, its API, and three relay boards; all devices hold the image android."""

    def __init__(self, directory: Path, url: str, *, probe: float) -> None:
        first = free_ports(4)
        self.boards = [f"127.0.0.1:{first + number}" for number in (1, 2, 3)]
        config = directory / "config.ini"
        (directory / "tftp").mkdir()
        config.write_text(
            f"[database]\nengine = {url}\n[server]\nfqdn = 127.0.0.1:{first}\nport = {first}\n"
            f"[paths]\ntftp_root = {directory / 'tftp'}\n[testing]\nspeed = {SPEED:g}\nseed = 3\n"
            f"[lifeguard]\nbreaker_probe = {probe:g}\n"
        )
        settings = load(config)
        self.database = Database.of(settings.database, clock=Clock())
        testdata = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "testdata.py"))
        with self.database.begin() as conn:
            testdata["fill"](conn, settings, DEVICES, first + 1, "ready")
            image = conn.scalar(select(tables.images.c.id).where(tables.images.c.name == "android"))
            devices, boards = tables.devices, tables.relay_boards
            conn.execute(
                update(devices).values(image_id=image, boot_config="{}", boot_config_hash=boot_config_hash("{}"))
            )
            # What the inventory knows nothing of: a power strip.
            conn.execute(delete(boards).where(boards.c.fqdn == self.boards[2]))
            conn.execute(
                update(devices)
                .where(devices.c.name.in_(["device29", "device30"]))
                .values(backends='{"power": "strip"}')
            )
            # The states come and go faster than anybody can look.
            conn.execute(text("CREATE TABLE seen (id INTEGER PRIMARY KEY, fqdn TEXT, state TEXT)"))
            for event, when in (("INSERT", ""), ("UPDATE OF state", "WHEN NEW.state <> OLD.state ")):
                conn.execute(
                    text(
                        f"CREATE TRIGGER seen_{event[:6]} AFTER {event} ON relay_boards {when}"
                        "BEGIN INSERT INTO seen (fqdn, state) VALUES (NEW.fqdn, NEW.state); END"
                    )
                )
        strip = Strip(BackendContext(Clock(), tftp_root=None, speed=SPEED))
        self.daemon = Daemon(settings, rng=random.Random(5), backends={("power", "strip"): strip})
        self.client = create_app(self.daemon.services).test_client()
        self.rack = Rack(
            boards_of(self.daemon.database, self.daemon.server_id),
            f"http://127.0.0.1:{first}",
            directory / "tftp",
            Behaviour.reliable(SPEED),
            random.Random(4),
        )

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.get_json()

    def relay(self, fqdn: str) -> dict[str, Any]:
        """What the API says of a switch; nothing when it does not know it."""
        return next((row for row in self.get("/api/relay/list/")["relays"] if row["fqdn"] == fqdn), {})

    def waits_for(self, device: str) -> str | None:
        found: str | None = self.get(f"/api/device/{device}/details/")["waits_for"]
        return found

    def page(self) -> str:
        return self.client.get("/relays").get_data(as_text=True)

    def seen(self, fqdn: str) -> list[str]:
        """The states that a switch was in, one after the other."""
        with self.database.read() as conn:
            return list(conn.scalars(text("SELECT state FROM seen WHERE fqdn = :fqdn ORDER BY id"), {"fqdn": fqdn}))

    def request(self, number: int) -> int:
        """Ask for a device with the image that it holds already: a power cycle prepares it."""
        made = self.daemon.mozpool.create(NewRequest(f"device{number}", "tester", 600, "android", wait=600))
        return made.id

    def is_ready(self, request: int) -> bool:
        return self.daemon.mozpool.get(request).state == "ready"

    def tries(self, number: int) -> tuple[str, int]:
        """The state of a device, and how many tries of its power cycle are used up."""
        row = self.daemon.lifeguard.device(f"device{number}")
        return row.state, row.state_counters.get("power_cycling", 0)


@pytest.fixture
def start(sqlite_url: str, tmp_path: Path) -> Iterator[Callable[[float], Lab]]:
    """Starts a lab whose failed switches are probed every so many seconds, divided by the speed."""
    labs: list[Lab] = []

    def make(probe: float) -> Lab:
        lab = Lab(tmp_path, sqlite_url, probe=probe)
        labs.append(lab)
        lab.rack.start()
        lab.daemon.start()
        return lab

    yield make
    for lab in labs:
        lab.daemon.stop()
        lab.rack.stop()
        lab.database.dispose()


@pytest.mark.timeout(300)
def test_a_relay_board_that_refuses_is_failed_and_comes_back_by_itself(
    start: Callable[[float], Lab], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mozpool.driver")
    lab = start(4)
    bad, good = lab.boards[:2]
    assert lab.relay(bad)["state"] == "ok"
    assert lab.relay(bad)["devices"] == 14
    lab.rack.set_relay_fault(bad, RelayFault.REFUSE)
    on_bad = [lab.request(number) for number in (1, 2, 3)]
    assert eventually(lambda: lab.seen(bad) == ["suspect", "failed"], PATIENCE)
    assert eventually(lambda: lab.relay(bad)["waiting"] == 3, PATIENCE), lab.relay(bad)
    shown = lab.relay(bad)
    assert (shown["state"], shown["backend"], shown["devices"]) == ("failed", "proxr", 14)
    assert "refused" in shown["reason"]
    assert shown["since"]
    assert lab.waits_for("device1") == f"relay:{bad}"
    assert "Try again now" in lab.page()
    assert f"/api/relay/{shown['name']}/retry/" in lab.page()

    # The devices of the other board have nothing to wait for.
    on_good = [lab.request(number) for number in (15, 16, 17)]
    assert eventually(lambda: all(map(lab.is_ready, on_good)), PATIENCE)
    assert lab.waits_for("device15") is None

    # Those of the failed one wait, whatever the number of probes.
    before = [lab.tries(number) for number in (1, 2, 3)]
    probes = caplog.text.count(f"relay:{bad} still fails")
    assert eventually(lambda: caplog.text.count(f"relay:{bad} still fails") >= probes + 5, PATIENCE)
    assert [lab.tries(number) for number in (1, 2, 3)] == before
    assert {state for state, _tries in before} == {"pc_power_cycling"}
    assert sum(tries for _state, tries in before) == 3, "only the failures that opened the breaker count"

    lab.rack.set_relay_fault(bad, None)
    assert eventually(lambda: all(map(lab.is_ready, on_bad)), 120)
    assert lab.seen(bad) == ["suspect", "failed", "ok"]
    assert lab.seen(good) == []
    assert eventually(lambda: lab.relay(bad)["state"] == "ok", PATIENCE)
    assert (lab.relay(bad)["reason"], lab.relay(bad)["waiting"]) == (None, 0)
    assert lab.waits_for("device1") is None
    assert "Try again now" not in lab.page()


@pytest.mark.timeout(300)
def test_another_power_switch_is_failed_too_and_a_person_has_it_tried_at_once(
    start: Callable[[float], Lab], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mozpool.driver")
    lab = start(100_000)
    strip = lab.boards[2]
    assert lab.relay(strip) == {}
    lab.rack.set_relay_fault(strip, RelayFault.EARLY_CLOSE)
    request = lab.request(29)
    assert eventually(lambda: lab.seen(strip) == ["suspect", "failed"], PATIENCE)
    assert eventually(lambda: lab.relay(strip).get("waiting") == 1, PATIENCE), lab.relay(strip)
    shown = lab.relay(strip)
    assert (shown["name"], shown["backend"], shown["state"]) == ("127.0.0.1", "strip", "failed")
    assert (shown["devices"], lab.waits_for("device29")) == (2, f"strip:{strip}")
    assert lab.get("/api/relay/127.0.0.1/test/")["success"] is False
    # Tried in vain, it is as it was.
    assert lab.client.post("/api/relay/127.0.0.1/retry/").status_code == 200
    assert eventually(lambda: f"strip:{strip} still fails" in caplog.text, PATIENCE)
    assert lab.seen(strip) == ["suspect", "failed"]

    lab.rack.set_relay_fault(strip, None)
    assert lab.get("/api/relay/127.0.0.1/test/") == {"success": True}
    assert lab.seen(strip) == ["suspect", "failed"], "a test changes nothing"
    assert lab.client.post("/api/relay/127.0.0.1/retry/").status_code == 200
    assert eventually(lambda: lab.is_ready(request), PATIENCE)
    assert lab.seen(strip) == ["suspect", "failed", "ok"]
    assert eventually(lambda: lab.relay(strip)["state"] == "ok", PATIENCE)
