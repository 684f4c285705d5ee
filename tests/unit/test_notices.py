# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is told of devices, requests, relay boards and servers, and to whom."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mozpool.config import NotifyTarget
from mozpool.db.requests import END_STATES
from mozpool.lifeguard import notices as device_notices
from mozpool.lifeguard.devicemachine import PERSON_NEEDED, device_machine
from mozpool.notify.events import Event
from mozpool.notify.outbox import host_of
from mozpool.notify.targets import recipient, wants
from mozpool.pool import notices
from mozpool.pool.requestmachine import request_machine
from mozpool.statedriver import Change
from tests.factories import NOW, device, request

CALL = {"callback_url": "http://ci.example.com/done"}


def change(source: str, *path: str, **values: Any) -> Change:
    made: dict[str, Any] = {
        "source": source,
        "path": path,
        "event": "timeout",
        "columns": {},
        "counters": {},
        "deadline": None,
        "now": NOW,
        "token": "t",
        "claim_id": None,
        "detail": None,
        **values,
    }
    return Change(**made)


def target(*events: str, **filters: Any) -> NotifyTarget:
    return NotifyTarget(events=events, webhook="http://hook/", secret="s", **filters)


@pytest.mark.parametrize("state", sorted(device_machine().states))
def test_people_are_told_of_devices_that_need_a_person(state: str) -> None:
    row = device("pxe_booting")
    assert device_notices.is_told(row, change("pxe_booting", state)) == (state in PERSON_NEEDED)
    assert not device_notices.is_told(device(state), change(state, state))
    assert not device_notices.is_told(device(state), change(state))


def test_a_device_that_goes_back_offline_by_itself_is_not_told_of() -> None:
    assert not device_notices.is_told(device("pxe_booting"), change("pxe_booting", "failed_pxe_booting", "locked_out"))


def test_it_says_what_a_device_failed_at() -> None:
    row = device(
        "pxe_booting", id=12, name="panda-0012", version=6, owner="server-1.example.com", environment="staging"
    )
    row_change = change("pxe_booting", "failed_pxe_booting", detail="pxe_booting failed 6 times")
    event = device_notices.failed(row, row_change, "It does not boot: see `relay_info`.")
    assert event.body("server-1.example.com:8080") == {
        "id": "device:12:7",
        "event": "device_failed",
        "time": NOW.strftime("%Y-%m-%dT%H:%M:%S"),
        "subject": "panda-0012",
        "summary": "panda-0012 failed: pxe booting",
        "text": (
            f"Device panda-0012 has failed since {NOW:%Y-%m-%d %H:%M:%S} UTC: it is failed_pxe_booting "
            '(pxe_booting failed 6 times). It does not boot: see "relay_info". It is not lent until a person has '
            "looked at it and started its self-test."
        ),
        "url": "http://server-1.example.com:8080/devices/panda-0012",
        "details": {
            "device": "panda-0012",
            "state": "failed_pxe_booting",
            "before": "pxe_booting",
            "reason": "pxe_booting failed 6 times",
            "environment": "staging",
            "hardware_type": "panda",
            "hardware_model": "ES",
            "relay_info": "127.0.0.1:2999:bank1:relay1",
            "imaging_server": "server-1.example.com",
            "request": None,
        },
    }


@pytest.mark.parametrize("state", sorted(request_machine().states))
def test_clients_are_told_when_a_request_is_ready_or_has_ended(state: str) -> None:
    assert notices.is_told(request("pending", **CALL), change("pending", state)) == (
        state in ("ready", *END_STATES) and state != "pending"
    )
    assert not notices.is_told(request(state, **CALL), change(state, state))


def test_a_client_is_sent_state_and_device() -> None:
    row = request("pending", id=9, device="panda-0001", claim_id=7, **CALL)
    said = notices.callback_body(row, change("pending", "ready"))
    assert said == {"request": {"id": 9, "state": "ready", "assigned_device": "panda-0001"}}
    said = notices.callback_body(row, change("ready", "closed"))
    assert said == {"request": {"id": 9, "state": "closed", "assigned_device": ""}}


def test_people_are_told_when_a_request_is_ready_or_failed_and_not_when_it_is_returned() -> None:
    row = request("pending", id=9, device="panda-0001", version=3)
    ready = notices.event_of(row, change("pending", "ready"))
    assert ready is not None
    assert (ready.kind, ready.key, ready.summary) == ("request_ready", "request:9:4", "request 9: panda-0001 is ready")
    failed = notices.event_of(row, change("pending", "failed_bad_image", columns={"reason": "it broke"}))
    assert failed is not None
    assert (failed.kind, failed.summary) == ("request_failed", "request 9: failed: it broke")
    assert failed.details["state"] == "failed_bad_image"
    assert notices.event_of(row, change("ready", "closed")) is None


@pytest.mark.parametrize(("seconds", "minutes"), [(300, "5 minutes"), (61, "1 minute"), (2, "0 minutes")])
def test_a_warning_names_the_end_that_it_is_about(seconds: float, minutes: str) -> None:
    row = request("ready", id=9, device="panda-0001", expires=NOW + timedelta(seconds=seconds))
    event = notices.expiring(row, NOW)
    assert event.summary == f"request 9: panda-0001 is taken back in {minutes}"
    assert event.valid_until == row.expires
    renewed = request("ready", id=9, device="panda-0001", expires=NOW + timedelta(seconds=seconds + 1))
    assert notices.expiring(renewed, NOW).key != event.key


# Filters


def event(kind: str = "device_failed", **properties: Any) -> Event:
    return Event(kind=kind, key="k", time=NOW, subject="s", summary="s", text="t", page="/", **properties)


PANDA = {"environment": "staging", "device": "Panda-0012", "hardware_type": "panda", "server": "img-1.example.com"}


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, True),
        ({"environments": ("staging",)}, True),
        ({"environments": ("production", "stag*")}, True),
        ({"environments": ("production",)}, False),
        ({"devices": ("panda-00??",)}, True),
        ({"devices": ("tegra-*",)}, False),
        ({"hardware_types": ("tegra",)}, False),
        ({"servers": ("img-1.*",)}, True),
        ({"servers": ("img-2.*",)}, False),
        ({"devices": ("panda-*",), "environments": ("production",)}, False),
        ({"assignees": ("me@example.com",)}, True),
    ],
)
def test_all_filters_must_let_an_event_pass(filters: dict[str, Any], passes: bool) -> None:
    """A device's failure has no assignee, so that filter says nothing of it."""
    assert wants(target("device_failed", **filters), event(**PANDA)) == passes
    assert not wants(target("server_away", **filters), event(**PANDA))


def test_who_a_request_is_for_gets_mail_where_that_is_an_address() -> None:
    assignee = NotifyTarget(events=("request_ready", "device_failed"), email=("assignee",))
    mine = event("request_ready", assignee="me@example.com")
    assert wants(assignee, mine)
    assert recipient(assignee, mine) == "me@example.com"
    assert not wants(assignee, event("device_failed"))
    fixed = NotifyTarget(events=("request_ready",), email=("ops@example.com",))
    assert wants(fixed, mine)
    assert recipient(fixed, mine) is None


@pytest.mark.parametrize(
    "assignee",
    [
        "ci-7",
        "me@",
        "@x",
        "a@b\nBcc: c@d",
        "a b@example.com",
        "a@b.c,d@e.f",
        "<a@b.c>",
        "me@exämple.com",
        "a@b..c",
        "x" * 65 + "@b",
    ],
)
def test_what_is_no_address_gets_no_mail(assignee: str) -> None:
    who = NotifyTarget(events=("request_ready",), email=("assignee",))
    assert not wants(who, event("request_ready", assignee=assignee))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://ci.example.com/done?token=1", "http://ci.example.com"),
        ("HTTPS://User:Pass@CI.example.com:8443/x", "https://ci.example.com:8443"),
        ("http://[::1]:80/", "http://[::1]:80"),
        ("http://[broken/", "http://"),
        ("http://x:99999/", "http://"),
        ("http://" + "x" * 300, "http://" + "x" * 183),
    ],
)
def test_callbacks_wait_by_host_and_show_no_secret(url: str, host: str) -> None:
    assert host_of(url) == host
