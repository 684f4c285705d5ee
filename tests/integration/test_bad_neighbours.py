# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""One bad relay board or agent delays its own devices only, is named in the log, and all goes on when it is well."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from mozpool.clock import Clock
from mozpool.config import load
from mozpool.daemon import Daemon
from mozpool.db import logs, relay_boards, tables
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.engine import Database
from mozpool.db.requests import Request
from mozpool.fakes.board import Behaviour
from mozpool.fakes.rack import Rack
from mozpool.fakes.relayboard import RelayFault
from mozpool.fakes.sutagent import AgentFault
from mozpool.pool.service import NewRequest
from tests.integration.mozpool_site import eventually, free_ports

BOARDS = 28
SPEED = 20.0


class Lab:
    """A daemon in this process, and two relay boards with fourteen reliable boards each; all hold the image android."""

    def __init__(self, directory: Path, url: str) -> None:
        first = free_ports(3)
        self.relays = [f"127.0.0.1:{first + 1}", f"127.0.0.1:{first + 2}"]
        config = directory / "config.ini"
        (directory / "tftp").mkdir()
        config.write_text(
            f"[database]\nengine = {url}\n[server]\nfqdn = 127.0.0.1:{first}\nport = {first}\n"
            f"[paths]\ntftp_root = {directory / 'tftp'}\n[testing]\nspeed = {SPEED:g}\nseed = 3\n"
            "[lifeguard]\nbreaker_probe = 4\n"
        )
        self.settings = load(config)
        database = Database.of(self.settings.database, clock=Clock())
        testdata = __import__("runpy").run_path(str(Path(__file__).parents[2] / "scripts" / "testdata.py"))
        with database.begin() as conn:
            testdata["fill"](conn, self.settings, BOARDS, first + 1, "ready")
            image = conn.scalar(select(tables.images.c.id).where(tables.images.c.name == "android"))
            conn.execute(
                update(tables.devices).values(image_id=image, boot_config="{}", boot_config_hash=boot_config_hash("{}"))
            )
        database.dispose()
        self.daemon = Daemon(self.settings, rng=random.Random(5))
        from mozpool.fakes.pool import boards_of

        self.rack = Rack(
            boards_of(self.daemon.database, self.daemon.server_id),
            f"http://127.0.0.1:{first}",
            directory / "tftp",
            Behaviour.reliable(SPEED),
            random.Random(4),
        )

    def request(self, device: str, image: str = "android", **boot_config: str) -> Request:
        """Ask for one device; the image android it holds already, so that a power cycle prepares it."""
        new = NewRequest(device, "tester", 600, image, boot_config=boot_config, wait=600)
        return self.daemon.mozpool.create(new)

    def state(self, request: Request) -> str:
        return self.daemon.mozpool.get(request.id).state

    def relay_state(self, relay: str) -> str:
        with self.daemon.database.read() as conn:
            return {board.fqdn: board.state for board in relay_boards.find(conn)}[relay]


@pytest.fixture
def lab(sqlite_url: str, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, sqlite_url)
    with lab.rack:
        lab.daemon.start()
        try:
            yield lab
        finally:
            lab.daemon.stop()


@pytest.mark.parametrize("fault", [RelayFault.HANG, RelayFault.REFUSE, RelayFault.GARBAGE, RelayFault.HALF_ANSWER])
@pytest.mark.timeout(180)
def test_a_bad_relay_board_delays_only_its_own_devices(
    lab: Lab, fault: RelayFault, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = lab.relays
    lab.rack.set_relay_fault(bad, fault)
    on_bad = [lab.request(f"device{number}") for number in (1, 2, 3)]
    on_good = [lab.request(f"device{number}") for number in (15, 16, 17, 18)]
    assert eventually(lambda: all(lab.state(request) == "ready" for request in on_good), 25)
    assert not any(lab.state(request) == "ready" for request in on_bad)
    lab.rack.set_relay_fault(bad, None)
    assert eventually(lambda: all(lab.state(request) == "ready" for request in on_bad), 100), [
        lab.daemon.mozpool.get(request.id) for request in on_bad
    ]
    assert f"relay board {bad}" in caplog.text
    assert f"relay board {good}" not in caplog.text
    assert eventually(lambda: lab.relay_state(bad) == "ok")


@pytest.mark.timeout(120)
def test_a_relay_board_that_keeps_failing_is_failed_itself_and_its_devices_wait(lab: Lab) -> None:
    bad = lab.relays[0]
    lab.rack.set_relay_fault(bad, RelayFault.REFUSE)
    request = lab.request("device1")
    assert eventually(lambda: lab.relay_state(bad) == "failed")
    counted = lab.daemon.lifeguard.device("device1").state_counters.get("power_cycling", 0)
    time.sleep(3 * 60 / SPEED / 2)
    device = lab.daemon.lifeguard.device("device1")
    assert device.state == "pc_power_cycling"
    assert device.state_counters.get("power_cycling", 0) == counted, "a waiting device's tries are not used up"
    lab.rack.set_relay_fault(bad, None)
    assert eventually(lambda: lab.state(request) == "ready", 60)
    assert lab.relay_state(bad) == "ok"


@pytest.mark.timeout(120)
def test_an_agent_that_sends_half_a_prompt_delays_only_its_own_device(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.rack.boards["device1"].agent.fault = AgentFault.HALF_PROMPT
    bad, good = lab.request("device1"), lab.request("device2")
    assert eventually(lambda: lab.state(good) == "ready", 60)
    assert lab.state(bad) != "ready"
    assert eventually(lambda: "agent verification of device1 failed" in caplog.text, 60)
    lab.rack.boards["device1"].agent.fault = None
    assert eventually(lambda: lab.state(bad) == "ready", 60)


@pytest.mark.timeout(120)
def test_a_disk_of_the_servers_own_that_is_away_costs_no_device_a_try(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "tftp").rename(tmp_path / "elsewhere")
    installs = lab.request("device1", "b2g", b2gbase="http://builds.example.com/1/")
    reboots = lab.request("device2")
    assert eventually(lambda: lab.state(installs) == "pending" and lab.state(reboots) == "pending")
    time.sleep(2 * 60 / SPEED / 3)  # within one time limit of the state
    for name, state in (("device1", "pxe_power_cycling"), ("device2", "pc_power_cycling")):
        device = lab.daemon.lifeguard.device(name)
        assert (device.state, device.state_counters) == (state, {})
    lab.daemon.logbook.flush()
    with lab.daemon.database.read() as conn:
        said = [line.message for line in logs.latest(conn, tables.device_logs, 1) if line.source == "bmm"]
    assert len(said) == 1 and "cannot write its PXE file" in said[0], said
    (tmp_path / "elsewhere").rename(tmp_path / "tftp")
    assert eventually(lambda: lab.daemon.lifeguard.device("device1").state == "pxe_booting", 60)
    assert eventually(lambda: lab.state(reboots) == "ready", 60)
