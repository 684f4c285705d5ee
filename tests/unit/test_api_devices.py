# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""LifeGuard's and BMM's paths over HTTP, and what they do to simulated boards."""

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from mozpool.bmm.backends.pxe import file_name
from mozpool.db import tables
from tests.app_fixtures import OTHER, OWN, Server, add_relay_board, server

# --- Events and states ---


def test_a_board_reports_by_a_plain_get(imaging_server: Server) -> None:
    imaging_server.change(state="pxe_booting")
    answer = imaging_server.get("/api/device/device1/event/mobile_init_started/")
    assert (answer.status_code, answer.get_json()) == (200, {})
    assert imaging_server.device().state == "mobile_init_started"


def test_events_that_are_not_expected_are_ignored_and_logged(imaging_server: Server) -> None:
    imaging_server.change(state="locked_out")
    for event in ("nonsense", "please_self_test", "released", "timeout"):
        answer = imaging_server.post(f"/api/device/device1/event/{event}/")
        assert (answer.status_code, answer.get_json()) == (200, {})
    assert imaging_server.device().state == "locked_out"
    assert "ignored event nonsense in state locked_out" in imaging_server.log()


def test_an_event_that_is_too_long_for_the_database_is_refused(imaging_server: Server) -> None:
    body = {"image": "android", "boot_config": "x" * 70_000}
    assert imaging_server.post("/api/device/device1/event/please_image/", body).status_code == 413
    assert imaging_server.device().state == "ready"


def test_a_please_of_the_holder_is_answered(imaging_server: Server) -> None:
    imaging_server.made("device1")
    claim_id = imaging_server.device().claim_id
    path = "/api/device/device1/event/please_power_cycle/"
    late = imaging_server.post(path, {"claim_id": 4711, "once": True}).get_json()
    assert late["accepted"] is False
    assert "not held by claim 4711" in late["reason"]
    assert imaging_server.device().state == "ready"
    assert imaging_server.post(path, {"claim_id": claim_id, "once": True}).get_json()["accepted"] is True
    state = imaging_server.device().state
    assert state == "pc_power_cycling"
    assert imaging_server.post(path, {"claim_id": claim_id, "once": True}).get_json()["accepted"] is True
    assert imaging_server.post(path, {"claim_id": "x"}).status_code == 400


def test_a_state_is_changed_by_force(imaging_server: Server) -> None:
    answer = imaging_server.post("/api/device/device1/state-change/ready/to/locked_out/")
    assert (answer.status_code, answer.get_json()) == (200, {})
    assert imaging_server.device().state == "locked_out"
    assert imaging_server.post("/api/device/device1/state-change/ready/to/troubleshooting/").status_code == 409
    assert imaging_server.post("/api/device/device1/state-change/locked_out/to/heaven/").status_code == 400
    assert imaging_server.device().state == "locked_out"


@pytest.mark.parametrize("state", ["unknown", "a_state_of_long_ago"])
def test_any_change_leads_out_of_an_unknown_state(imaging_server: Server, state: str) -> None:
    imaging_server.change(state=state)
    assert imaging_server.post("/api/device/device1/state-change/ready/to/locked_out/").status_code == 200
    assert imaging_server.device().state == "locked_out"


def test_it_tells_state_and_log(imaging_server: Server) -> None:
    imaging_server.post("/api/device/device1/state-change/ready/to/locked_out/")
    imaging_server.daemon.logbook.flush()
    found = imaging_server.get("/api/device/device1/status/").get_json()
    assert found["state"] == "locked_out"
    assert found["log"][-1]["message"] == "ready -> locked_out on forced"
    assert imaging_server.get("/api/device/device1/log/?limit=1&timeperiod=60").get_json()["log"] == found["log"][-1:]
    assert imaging_server.get("/api/device/device1/log/?timeperiod=x").status_code == 400


def test_monitors_get_a_state_that_is_a_few_seconds_old(imaging_server: Server) -> None:
    first = imaging_server.get("/api/device/device1/state/?cache=1")
    assert first.get_json() == {"state": "ready"}
    assert "max-age=5" in first.headers["Cache-Control"]
    assert "Expires" in first.headers
    imaging_server.change(state="locked_out")
    assert imaging_server.get("/api/device/device1/state/?cache=true").get_json() == {"state": "ready"}
    fresh = imaging_server.get("/api/device/device1/state/")
    assert fresh.get_json() == {"state": "locked_out"}
    assert "Cache-Control" not in fresh.headers
    assert imaging_server.get("/api/device/nobody/state/?cache=1").status_code == 404


def test_devices_are_found_by_number_too(imaging_server: Server) -> None:
    number = imaging_server.device("device2").id
    assert imaging_server.get(f"/api/device/{number}/details/").get_json()["name"] == "device2"
    assert imaging_server.get(f"/api/device/{number}/state/").status_code == 200
    imaging_server.change("device1", name=str(number))
    assert imaging_server.get(f"/api/device/{number}/details/").get_json()["name"] == str(number)


def test_details_have_what_another_program_needs(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    found = imaging_server.get("/api/device/device1/details/").get_json()
    assert found["imaging_server"] == OWN
    assert found["holder"]["request_id"] == found["request_id"] == number
    assert found["holder"]["assignee"] == "me@example.com"
    assert found["agent"] == {"backend": "sut", "address": imaging_server.device().address, "available": False}
    assert found["power"]["controllable"] is True
    assert found["labels"]["processor"] == "armv7"
    assert found["category"] == "in use"
    assert imaging_server.get("/api/device/device2/details/").get_json()["holder"] is None


# --- Offline, reboot, flash ---


def test_a_device_is_taken_offline_and_tested_on_its_way_back(imaging_server: Server) -> None:
    answer = imaging_server.post("/api/device/device1/status/", {"status": "offline", "reason": "loose cable"})
    assert (answer.status_code, answer.get_json()) == (200, {"state": "locked_out"})
    assert "set offline: loose cable" in imaging_server.log()
    answer = imaging_server.post("/api/device/device1/status/", {"status": "online"})
    assert answer.get_json() == {"state": "pxe_power_cycling"}
    assert imaging_server.device().going_offline is True
    assert imaging_server.post("/api/device/device1/status/", {"status": "on"}).status_code == 400


def test_a_device_that_is_ready_is_online_already(imaging_server: Server) -> None:
    before = imaging_server.device()
    answer = imaging_server.post("/api/device/device1/status/", {"status": "online"})
    assert (answer.status_code, answer.get_json()) == (200, {"state": "ready"})
    assert imaging_server.device() == before


def test_a_device_is_not_tested_under_its_user(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    imaging_server.change(state="pxe_booting")
    before = imaging_server.device()
    answer = imaging_server.post("/api/device/device1/status/", {"status": "online"})
    assert answer.status_code == 409
    assert answer.get_json()["error"]["message"] == f"device device1 is held by request {number}"
    assert imaging_server.device() == before
    imaging_server.change(state="locked_out")
    answer = imaging_server.post("/api/device/device1/status/", {"status": "online"})
    assert answer.get_json() == {"state": "pxe_power_cycling"}


def test_nobody_gets_a_device_that_tests_itself(imaging_server: Server) -> None:
    """A self-test ends by itself, and its success tells no request."""
    before = imaging_server.counts()
    for answer in (
        imaging_server.ask(image="self-test"),
        imaging_server.post("/api/device/device1/flash/", {"image": "self-test"}),
    ):
        assert answer.status_code == 422
        assert answer.get_json()["error"]["field"] == "image"
        assert "set online" in answer.get_json()["error"]["message"]
    assert imaging_server.counts() == before


def test_a_boot_config_that_is_no_text_is_stored_as_json(imaging_server: Server) -> None:
    wanted = {"b2gbase": "http://builds/1/"}
    body = {"image": "b2g", "boot_config": wanted}
    assert imaging_server.post("/api/device/device1/event/please_image/", body).status_code == 200
    assert imaging_server.get("/api/device/device1/bootconfig/").get_json() == wanted


def test_a_reboot_for_the_holder_goes_to_its_request(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    assert imaging_server.post("/api/device/device1/reboot/", {"request_id": number + 1}).status_code == 409
    assert imaging_server.device().state == "ready"
    answer = imaging_server.post("/api/device/device1/reboot/", {"request_id": number, "assignee": "me@example.com"})
    assert (answer.status_code, answer.get_json()) == (200, {"state": "pc_power_cycling"})
    device = imaging_server.device()
    assert device.request_id == number
    assert device.operation_claim_id == device.claim_id
    assert "please_power_cycle by me@example.com" in imaging_server.log()


def test_a_reboot_by_an_operator_is_nobodys(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    assert imaging_server.post("/api/device/device1/reboot/").status_code == 200
    device = imaging_server.device()
    assert (device.request_id, device.operation_claim_id) == (number, None)


def test_a_device_that_is_out_of_the_pool_does_not_reboot(imaging_server: Server) -> None:
    imaging_server.change(state="locked_out")
    answer = imaging_server.post("/api/device/device1/reboot/")
    assert answer.status_code == 409
    assert "locked_out" in answer.get_json()["error"]["message"]


def test_a_device_is_flashed(imaging_server: Server) -> None:
    answer = imaging_server.post("/api/device/device1/flash/", {"image": "b2g", "b2gbase": "x", "other": 1})
    assert (answer.status_code, answer.get_json()) == (200, {"state": "pxe_power_cycling"})
    device = imaging_server.device()
    assert device.next_image == "b2g"
    assert json.loads(device.next_boot_config or "") == {"b2gbase": "x"}
    assert imaging_server.get("/api/device/device1/bootconfig/").get_json() == {"b2gbase": "x"}


def test_what_can_not_be_flashed_is_refused(imaging_server: Server) -> None:
    imaging_server.change(hardware_type_id=None)
    cases: tuple[tuple[dict[str, object], int], ...] = (
        ({}, 400),
        ({"image": "b2g"}, 400),
        ({"image": "windows"}, 404),
        ({"image": "android"}, 422),
    )
    for body, status in cases:
        assert imaging_server.post("/api/device/device1/flash/", body).status_code == status, body
    assert imaging_server.device().state == "ready"


# --- What is known of a device ---


def test_the_next_boot_config_is_an_object_even_if_there_is_none(imaging_server: Server) -> None:
    assert imaging_server.get("/api/device/device1/bootconfig/").get_json() == {}


def test_comments_are_set(imaging_server: Server) -> None:
    before = imaging_server.device()
    assert imaging_server.post("/api/device/device1/set-comments/", {"comments": "Schön 📱"}).status_code == 200
    device = imaging_server.device()
    assert (device.comments, device.attempt) == ("Schön 📱", before.attempt)
    assert imaging_server.post("/api/device/device1/set-comments/", {"comments": ""}).status_code == 200
    assert imaging_server.device().comments is None
    assert imaging_server.post("/api/device/device1/set-comments/", {}).status_code == 400


def test_a_device_in_a_new_environment_serves_who_waits_for_it(imaging_server: Server) -> None:
    number = imaging_server.made(environment="lab")
    assert imaging_server.request(number).state == "finding_device"
    assert imaging_server.post("/api/device/device1/set-environment/", {"environment": "lab"}).status_code == 200
    imaging_server.wait_until(lambda: imaging_server.request(number).device == "device1")
    assert imaging_server.get("/api/environment/list/").get_json() == {"environments": ["lab", "production"]}
    for refused in ("", "any", "x" * 33):
        answer = imaging_server.post("/api/device/device1/set-environment/", {"environment": refused})
        assert answer.status_code == 400
        assert answer.get_json()["error"]["field"] == "environment"
    assert imaging_server.device().environment == "lab"


def test_a_device_with_new_labels_serves_who_waits_for_it(imaging_server: Server) -> None:
    number = imaging_server.made(labels={"camera": "yes"})
    assert imaging_server.post("/api/device/device2/set-labels/", {"labels": {"camera": "yes"}}).status_code == 200
    imaging_server.wait_until(lambda: imaging_server.request(number).device == "device2")
    assert imaging_server.get("/api/device/device2/details/").get_json()["labels"] == {"camera": "yes"}
    for labels in ("x", {"a": None}, {"": "x"}, {"a=b": "c"}):
        assert imaging_server.post("/api/device/device2/set-labels/", {"labels": labels}).status_code == 400


def test_pxe_configs_are_listed_and_shown(imaging_server: Server) -> None:
    names = ["android", "b2g", "maintenance", "self-test"]
    assert imaging_server.get("/api/bmm/pxe_config/list/?active_only=1").get_json() == {"pxe_configs": names}
    details = imaging_server.get("/api/bmm/pxe_config/b2g/details/").get_json()["details"]
    assert details["contents"] == details["content"]
    assert details["used_for"] == [{"image": "b2g", "hardware_type": "panda", "hardware_model": "ES"}]
    assert {"name", "description", "active", "version"} <= set(details)
    assert imaging_server.get("/api/bmm/pxe_config/nix/details/").status_code == 404


# --- Power ---


def test_a_power_cycle_keeps_its_config_until_it_is_cleared(imaging_server: Server) -> None:
    long = json.dumps({"b2gbase": "x" * 50_000})
    body = {"pxe_config": "b2g", "boot_config": long}
    assert imaging_server.post("/api/device/device1/power-cycle/", body).get_json() == {}
    device = imaging_server.device()
    assert (device.pxe_config, device.next_boot_config, device.next_image) == ("b2g", long, None)
    tftp_root = imaging_server.daemon.settings.paths.tftp_root
    assert tftp_root is not None
    path = tftp_root / "pxelinux.cfg" / file_name(device.mac_address)
    imaging_server.wait_until(path.exists)
    imaging_server.wait_until(
        lambda: any("power cycle with PXE config b2g failed" in line for line in imaging_server.log())
    )
    assert imaging_server.post("/api/device/device1/clear-pxe/").get_json() == {}
    assert not path.exists()
    assert imaging_server.device().pxe_config is None


def test_what_can_not_be_power_cycled_is_refused(imaging_server: Server) -> None:
    before = imaging_server.device()
    for body, status in (
        ({"pxe_config": "nix"}, 404),
        ({"pxe_config": ""}, 400),
        ({"boot_config": {}}, 400),
        ({"boot_config": "\u20ac" * 30_000}, 400),
    ):
        assert imaging_server.post("/api/device/device1/power-cycle/", body).status_code == status, body
    assert imaging_server.device() == before
    imaging_server.change(relay_info=None)
    for path in ("power-cycle", "power-off"):
        assert imaging_server.post(f"/api/device/device1/{path}/").status_code == 422


# --- Another server's devices ---


ACTS = (
    "event/mobile_init_started/?x=1",
    "state-change/ready/to/locked_out/",
    "status/",
    "reboot/",
    "flash/",
    "agent/exec",
    "power-cycle/",
    "power-off/",
    "clear-pxe/",
)
BODY = {"status": "offline", "image": "android", "command": ["ls"]}


def test_acts_on_another_servers_device_are_sent_there(imaging_server: Server) -> None:
    imaging_server.move("device1", imaging_server.other_server())
    before = imaging_server.device()
    for path in ACTS:
        answer = imaging_server.post(f"/api/device/device1/{path}", BODY)
        assert answer.status_code == 302, path
        assert answer.headers["Location"] == f"http://{OTHER}/api/device/device1/{path}"
    for path in ("ping/", "power-off"):
        assert imaging_server.get(f"/api/device/device1/{path}").status_code == 302
    assert imaging_server.device() == before


def test_another_servers_devices_can_be_read(imaging_server: Server) -> None:
    imaging_server.move("device1", imaging_server.other_server())
    for path in ("details", "status", "state", "state/?cache=1", "log", "bootconfig"):
        assert imaging_server.get(f"/api/device/device1/{path}").status_code == 200, path
    assert imaging_server.get("/api/device/device1/details/").get_json()["url"] == f"http://{OTHER}/api/device/device1/"


def test_unknown_devices_are_not_found(imaging_server: Server) -> None:
    body = {**BODY, "comments": "", "environment": "x", "labels": {}}
    for path in (*ACTS, "return/", "set-comments", "set-environment", "set-labels"):
        answer = imaging_server.post(f"/api/device/nobody/{path}", body)
        assert answer.status_code == 404, path
        assert answer.get_json()["error"]["code"] == "not_found"
    for path in ("details", "status", "state", "log", "bootconfig", "ping"):
        assert imaging_server.get(f"/api/device/nobody/{path}").status_code == 404, path


# --- With boards behind it ---


@pytest.fixture
def rack(database_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server whose three devices are simulated boards that never fail."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    never = dict.fromkeys(("boot", "download", "extract", "reboot", "ping", "selftest"), 0.0)
    testing = {"run_fakes": True, "seed": 1, **{f"fake_{name}_failure": chance for name, chance in never.items()}}
    with server(database_url, tmp_path, testing=testing) as simulated:
        with simulated.daemon.database.read() as conn:
            android = conn.scalar(select(tables.images.c.id).where(tables.images.c.name == "android"))
        chance = random.SystemRandom()
        net = f"127.{chance.randrange(1, 99)}.{chance.randrange(256)}"
        for number in (1, 2, 3):
            columns: dict[str, object] = {
                "relay_info": f"127.0.0.1:{port}:bank1:relay{number}",
                "address": f"{net}.{number}",
            }
            simulated.change(f"device{number}", image_id=android, **columns)
        add_relay_board(simulated, "relay-1", f"127.0.0.1:{port}")
        simulated.daemon._start_fakes()
        yield simulated


def test_it_reaches_the_hardware(rack: Server) -> None:
    assert rack.get("/api/relay/relay-1/test/").get_json() == {"success": True}
    rack.wait_until(lambda: rack.get("/api/device/device1/ping/").get_json()["success"])
    assert rack.post("/api/device/device1/power-cycle/").status_code == 200
    rack.wait_until(lambda: "power cycle done" in rack.log())
    assert rack.get("/api/device/device1/power-off/").get_json() == {}
    rack.wait_until(lambda: "power off done" in rack.log())
    rack.wait_until(lambda: not rack.get("/api/device/device1/ping/").get_json()["success"])


def test_it_runs_a_command_for_the_holder(rack: Server) -> None:
    number = rack.made("device2")
    body = {"command": ["ls", "/data"], "timeout": 5, "request_id": number}
    rack.wait_until(lambda: rack.post("/api/device/device2/agent/exec/", body).status_code == 200)
    found = rack.post("/api/device/device2/agent/exec/", body).get_json()
    assert set(found) == {"output", "return_code"}
    assert rack.post("/api/device/device2/agent/exec/", {**body, "request_id": number + 1}).status_code == 409
    bad: tuple[dict[str, object], ...] = ({"command": []}, {"command": "ls"}, {"command": ["ls"], "timeout": 0}, {})
    for wrong in bad:
        assert rack.post("/api/device/device2/agent/exec/", wrong).status_code == 400


def test_hardware_that_does_not_answer_is_told(imaging_server: Server) -> None:
    answer = imaging_server.post("/api/device/device1/agent/exec/", {"command": ["ls"], "timeout": 1})
    assert answer.status_code == 502
    assert "device1" in answer.get_json()["error"]["message"]
    found = imaging_server.get("/api/relay/relay-9/test/").get_json()
    assert found["success"] is False
    assert found["reason"]


def test_relay_boards_are_listed_and_tested_by_their_server(imaging_server: Server) -> None:
    add_relay_board(imaging_server, "far", "relay.example.com", imaging_server.other_server())
    answer = imaging_server.get("/api/relay/far/test/")
    assert (answer.status_code, answer.headers["Location"]) == (302, f"http://{OTHER}/api/relay/far/test/")
    assert imaging_server.get("/api/relay/nix/test/").status_code == 404
    listed = imaging_server.get("/api/relay/list/").get_json()["relays"]
    assert [(board["name"], board["imaging_server"]) for board in listed] == [("far", OTHER), ("relay-9", OWN)]
