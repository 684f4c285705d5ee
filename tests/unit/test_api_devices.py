# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""LifeGuard's and BMM's paths over HTTP, and what they do to simulated boards."""

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from mozpool.apikit import MAX_TEXT
from mozpool.bmm.backends.pxe import file_name
from mozpool.db import servers, tables
from mozpool.errors import DatabaseAway
from tests.app_fixtures import NO_RELAY, OTHER, OWN, Server, add_relay_board, server
from tests.processes import free_port

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
    for boot_config in ("x" * 70_000, {"x": "é" * 12_000}):
        body = {"image": "android", "boot_config": boot_config}
        answer = imaging_server.post("/api/device/device1/event/please_image/", body)
        assert answer.status_code == 413
    assert imaging_server.device().state == "ready"


def test_the_longest_boot_config_reaches_a_device_of_another_server(imaging_server: Server) -> None:
    number = imaging_server.made("device1", b2gbase='"' * 29_900)
    boot_config = imaging_server.request(number).boot_config
    assert boot_config is not None and 59_000 < len(boot_config) <= MAX_TEXT
    body = {"image": "b2g", "boot_config": boot_config, "claim_id": imaging_server.device().claim_id, "once": True}
    answer = imaging_server.post("/api/device/device1/event/please_image/", body)
    assert answer.get_json() == {"accepted": True, "state": "pxe_power_cycling", "reason": None}
    assert imaging_server.device().next_boot_config == boot_config


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


def test_a_please_that_comes_again_is_answered_as_the_first_time(imaging_server: Server) -> None:
    imaging_server.made("device1")
    path = "/api/device/device1/event/please_power_cycle/"
    body = {"claim_id": imaging_server.device().claim_id, "once": True, "event_id": "a"}
    first = imaging_server.post(path, body).get_json()
    assert first == {"accepted": True, "state": "pc_power_cycling", "reason": None}
    assert imaging_server.post(path, body).get_json() == first
    # By its claim it is known, too, but not what the first one was told.
    other = imaging_server.post(path, {**body, "event_id": "b"}).get_json()
    assert other == {**first, "state": None}


def test_a_refusal_is_repeated_too(imaging_server: Server) -> None:
    imaging_server.made("device1")
    path = "/api/device/device1/event/please_power_cycle/"
    body = {"claim_id": imaging_server.device().claim_id, "once": True, "event_id": "a"}
    imaging_server.change(state="locked_out")
    first = imaging_server.post(path, body).get_json()
    assert first["accepted"] is False
    imaging_server.change(state="ready")
    assert imaging_server.post(path, body).get_json() == first


def test_an_event_that_failed_is_not_remembered(imaging_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    imaging_server.made("device1")
    path = "/api/device/device1/event/please_power_cycle/"
    body = {"claim_id": imaging_server.device().claim_id, "once": True, "event_id": "a"}

    def away(*_: object, **__: object) -> None:
        raise DatabaseAway("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(imaging_server.daemon.lifeguard, "please", away)
        assert imaging_server.post(path, body).status_code == 503
    assert imaging_server.post(path, body).get_json()["accepted"] is True


def test_one_id_may_be_sent_to_several_devices(imaging_server: Server) -> None:
    for name in ("device1", "device2"):
        imaging_server.change(name, state="pxe_booting")
        path = f"/api/device/{name}/event/mobile_init_started/"
        assert imaging_server.post(path, {"event_id": "a"}).status_code == 200
        assert imaging_server.device(name).state == "mobile_init_started"


@pytest.mark.parametrize("bad", ["", "x" * 65, 7])
def test_an_event_id_that_is_none_is_refused(imaging_server: Server, bad: object) -> None:
    imaging_server.change(state="pxe_booting")
    answer = imaging_server.post("/api/device/device1/event/mobile_init_started/", {"event_id": bad})
    assert answer.status_code == 400
    error = answer.get_json()["error"]
    assert error["field"] == "event_id"
    assert "is not a text of 1 to 64 characters" in error["message"]
    assert imaging_server.device().state == "pxe_booting"


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
    assert fresh.headers["Cache-Control"] == "no-store"
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


def test_a_boot_config_need_not_name_the_server_that_a_board_installs_from(imaging_server: Server) -> None:
    url = imaging_server.daemon.settings.boards_url
    wanted = '{"b2gbase": "%URL%/images/b2g-1/", "log": "%IPADDRESS%/%DEVICE%", "other": "100%25 %SERVER%"}'
    imaging_server.change(next_boot_config=wanted)
    assert imaging_server.get("/api/device/device1/bootconfig/").get_json() == {
        "b2gbase": f"{url}/images/b2g-1/",
        "log": "127.0.0.1/device1",
        "other": "100%25 %SERVER%",
    }


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


def test_acts_on_a_device_are_sent_to_who_has_taken_it_over(imaging_server: Server) -> None:
    """Whatever the inventory says."""
    imaging_server.change("device1", owner_id=imaging_server.other_server(), epoch=1)
    before = imaging_server.device()
    for path in ACTS:
        answer = imaging_server.post(f"/api/device/device1/{path}", BODY)
        assert answer.status_code == 302, path
        assert answer.headers["Location"] == f"http://{OTHER}/api/device/device1/{path}"
    for path in ("ping/", "power-off", "event/mobile_init_started/"):
        assert imaging_server.get(f"/api/device/device1/{path}").status_code == 302
    assert imaging_server.device() == before


def test_a_device_that_was_taken_over_is_acted_on_here(imaging_server: Server) -> None:
    imaging_server.move("device1", imaging_server.other_server())
    imaging_server.change("device1", owner_id=imaging_server.daemon.server_id, epoch=1, state="pxe_booting")
    assert imaging_server.get("/api/device/device1/event/mobile_init_started/").get_json() == {}
    assert imaging_server.device().state == "mobile_init_started"
    path = "/api/device/device1/state-change/mobile_init_started/to/locked_out/"
    assert imaging_server.post(path).status_code == 200
    assert imaging_server.get("/api/device/device1/ping/").status_code == 200
    assert imaging_server.device().state == "locked_out"


def test_a_device_shows_whose_it_is_and_who_acts_on_it(imaging_server: Server) -> None:
    other = imaging_server.other_server()
    imaging_server.change("device1", owner_id=other)
    imaging_server.move("device2", other)
    imaging_server.change("device2", owner_id=imaging_server.daemon.server_id)
    expected = {"device1": (OWN, OTHER), "device2": (OTHER, OWN), "device3": (OWN, OWN)}
    for name, (home, owner) in expected.items():
        found = imaging_server.get(f"/api/device/{name}/details/").get_json()
        assert (found["imaging_server"], found["owner"], found["owner_state"]) == (home, owner, "up")
        assert found["url"] == f"http://{owner}/api/device/{name}/"
    rows = imaging_server.get("/api/device/list/?details=1").get_json()["devices"]
    assert {row["name"]: (row["imaging_server"], row["owner"]) for row in rows} == expected


def test_a_device_is_as_available_as_who_acts_on_it(imaging_server: Server) -> None:
    """Its imaging server may be away, then."""
    other = imaging_server.other_server()
    imaging_server.change("device1", owner_id=other)
    imaging_server.move("device2", other)
    imaging_server.change("device2", owner_id=imaging_server.daemon.server_id)
    say(imaging_server, other, 1, stopped=True)
    rows = imaging_server.get("/api/device/list/?details=1").get_json()["devices"]
    assert {row["name"]: row["owner_state"] for row in rows} == {
        "device1": "stopped",
        "device2": "up",
        "device3": "up",
    }
    assert imaging_server.get("/api/device/device1/details/").get_json()["owner_state"] == "stopped"


def say(server: Server, server_id: int, beat: int, *, stopped: bool = False, group: str | None = None) -> None:
    """Another server gives a sign of life, and this one looks."""
    now = server.daemon.clock.now()
    said = servers.Presence(server_id, beat, stopped, "5.1", now, now, 32, 0, group, None if group is None else 60.0)
    server.daemon.database.run(lambda conn: servers.say_here(conn, said))
    assert server.daemon.presence.beat()


@pytest.mark.parametrize("event", ["taken_over", "timeout"])
def test_nobody_says_from_outside_what_only_the_servers_know(imaging_server: Server, event: str) -> None:
    imaging_server.change(state="pxe_booting")
    before = imaging_server.device()
    assert imaging_server.post(f"/api/device/device1/event/{event}/").status_code == 200
    assert imaging_server.device() == before


@pytest.mark.parametrize("kept", ["event", "change_state", "please"])
def test_a_device_that_is_taken_over_during_a_call_sends_the_caller_there(
    imaging_server: Server, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    act = getattr(imaging_server.daemon.lifeguard, kept)

    def after_others(*args: object, **more: object) -> object:
        imaging_server.change(owner_id=imaging_server.other_server(), epoch=1)
        return act(*args, **more)

    monkeypatch.setattr(imaging_server.daemon.lifeguard, kept, after_others)
    path = {"event": "event/failed/", "change_state": "state-change/ready/to/locked_out/", "please": "reboot/?a=b"}[
        kept
    ]
    answer = imaging_server.post(f"/api/device/device1/{path}", {})
    assert (answer.status_code, answer.headers["Location"]) == (302, f"http://{OTHER}/api/device/device1/{path}")
    assert imaging_server.device().state == "ready"


@pytest.mark.parametrize("act", ["power-off", "power-cycle"])
def test_what_waits_for_a_worker_is_not_done_to_a_device_that_was_taken_over(imaging_server: Server, act: str) -> None:
    gate = threading.Event()
    lane = imaging_server.daemon.bmm.power_lane(imaging_server.device())

    def wait() -> None:
        gate.wait(10)

    imaging_server.daemon.hardware.submit(lane, wait)
    assert imaging_server.post(f"/api/device/device1/{act}/").status_code == 200
    imaging_server.change(owner_id=imaging_server.other_server(), epoch=1)
    gate.set()
    failed = f"{act.replace('-', ' ')} failed: imaging server {OTHER} acts on device1"
    imaging_server.wait_until(lambda: failed in imaging_server.log())


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
    port = free_port()
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


# --- In a group ---


@pytest.fixture
def grouped(database_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server of a group, which has given no sign of life yet."""
    with server(database_url, tmp_path, server={"group": "lab"}) as made:
        yield made


@pytest.mark.parametrize(
    ("group", "stopped", "status"), [("lab", True, 200), ("lab", False, 302), ("attic", True, 302), (None, True, 302)]
)
def test_a_relay_board_is_tested_here_when_its_server_is_away(
    grouped: Server, group: str | None, stopped: bool, status: int
) -> None:
    """By a server of the same group: they reach the same boards."""
    other = grouped.other_server()
    add_relay_board(grouped, "far", f"127.0.0.2:{NO_RELAY}", other)
    say(grouped, other, 1, stopped=stopped, group=group)
    answer = grouped.get("/api/relay/far/test/")
    assert answer.status_code == status
    retried = grouped.post("/api/relay/far/retry/")
    assert retried.status_code == status
    if status == 302:
        assert answer.headers["Location"] == f"http://{OTHER}/api/relay/far/test/"
    else:
        assert answer.get_json()["success"] is False
        say(grouped, other, 2, group=group)
        assert grouped.get("/api/relay/far/test/").status_code == 302, "it is back"


def test_a_server_that_is_out_of_touch_says_so(grouped: Server) -> None:
    """What changes something at a device is not done, and may be tried again: by another server's word, too."""
    body = {"command": ["ls"], "timeout": 1}
    assert grouped.daemon.lease.left() == 0.0
    answer = grouped.post("/api/device/device1/agent/exec/", body)
    error = answer.get_json()["error"]
    assert (answer.status_code, error["code"]) == (503, "lease_over")
    assert error["message"] == (
        "command of device1 failed: this imaging server has lost touch with the others of its group"
    )
    assert int(answer.headers["Retry-After"]) > 0
    assert grouped.daemon.presence.beat()
    assert grouped.post("/api/device/device1/agent/exec/", body).status_code == 502, "nobody is there to answer"


def test_what_is_not_waited_for_is_told_in_the_log_when_the_server_is_out_of_touch(grouped: Server) -> None:
    assert grouped.post("/api/device/device1/power-cycle/").status_code == 200
    assert grouped.post("/api/device/device2/power-off/").status_code == 200
    why = "this imaging server has lost touch with the others of its group"
    grouped.wait_until(lambda: any(why in line for line in grouped.log("device1")))
    grouped.wait_until(lambda: f"power off failed: power off of device2 failed: {why}" in grouped.log("device2"))


def test_a_boot_file_is_not_changed_by_a_server_that_is_out_of_touch(grouped: Server, tmp_path: Path) -> None:
    assert grouped.daemon.presence.beat()
    file = tmp_path / "tftp" / "pxelinux.cfg" / file_name(grouped.device().mac_address)
    config = grouped.get("/api/bmm/pxe_config/list/").get_json()["pxe_configs"][0]
    assert grouped.post("/api/device/device1/power-cycle/", {"pxe_config": config}).status_code == 200
    grouped.wait_until(file.exists)
    grouped.daemon.lease.end()
    assert grouped.post("/api/device/device1/clear-pxe/").status_code == 503
    assert file.exists()


def test_reading_and_looking_needs_no_lease(grouped: Server) -> None:
    for path in ("details/", "status/", "state/", "log/", "ping/"):
        assert grouped.get(f"/api/device/device1/{path}").status_code == 200, path
    assert grouped.get("/api/relay/relay-9/test/").status_code == 200
