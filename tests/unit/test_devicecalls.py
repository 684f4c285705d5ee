# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is taken for a device's own word: the token of its boot, or the address that it calls from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from mozpool.access.principal import Kind, principal
from mozpool.bmm.netio import PeerError
from mozpool.bmm.service import token_hash
from mozpool.clock import SimClock
from mozpool.db import logs
from mozpool.db.tables import device_logs
from mozpool.lifeguard.devicemachine import device_machine
from mozpool.web.devicecalls import HEADER, UNKNOWN_FOR, Addresses
from tests.app_fixtures import Server, server
from tests.wired import OPERATOR, USER, credentials

TOKEN = "vT3XnE7Yk0b-Wd_2hQ9uLp4R"
FOREIGN = "192.0.2.9"


class Lab:
    """A server whose ``device1`` boots with ``TOKEN``."""

    def __init__(self, site: Server) -> None:
        self.site = site
        site.change("device1", boot_token=token_hash(TOKEN), state="pxe_booting")
        self.address = site.device("device1").address

    def event(
        self,
        name: str = "mobile_init_started",
        *,
        device: str = "device1",
        token: str | None = None,
        query: str = "",
        come_from: str = FOREIGN,
        **options: Any,
    ) -> TestResponse:
        path = f"/api/device/{device}/event/{name}/{query}"
        return self.get(path, token=token, come_from=come_from, **options)

    def get(
        self, path: str, *, token: str | None = None, come_from: str = FOREIGN, method: str = "GET", **options: Any
    ) -> TestResponse:
        headers = {HEADER: token} if token else {}
        headers |= options.pop("headers", {})
        return self.site.client.open(
            path, method=method, headers=headers, environ_base={"REMOTE_ADDR": come_from}, **options
        )

    def headers(self, role: str) -> dict[str, str]:
        """What somebody with this role sends."""
        return {"Authorization": credentials(self.site.daemon.database, role)}

    @property
    def state(self) -> str:
        return self.site.device("device1").state


@pytest.fixture
def lab(sqlite_url: str, tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Makes the lab with these settings of ``[auth]``."""
    with ExitStack() as stack:

        def make(url: str = sqlite_url, **auth: str) -> Lab:
            site = stack.enter_context(server(url, tmp_path, auth={"mode": "token", **auth}))
            return Lab(site)

        yield make


def refused(said: TestResponse, status: int = 401) -> str:
    assert said.status_code == status, said.text
    assert TOKEN not in said.text
    message: str = said.get_json()["error"]["message"]
    return message


def logged(here: Lab) -> list[str]:
    """The lines in the log of device1."""
    here.site.daemon.logbook.flush()
    device_id = here.site.device("device1").id
    with here.site.daemon.database.read() as conn:
        return [line.message for line in logs.latest(conn, device_logs, device_id)]


MODES = pytest.mark.parametrize("mode", ["token", "open"])
"""Whether people are asked who they are."""


# By token


@MODES
def test_the_token_of_its_boot_shows_that_a_device_calls(lab: Callable[..., Lab], mode: str) -> None:
    here = lab(mode=mode, device_events="token")
    assert here.event(token=TOKEN).status_code == 200
    assert here.state == "mobile_init_started"
    assert here.event("raw_downloading", query=f"?token={TOKEN}").status_code == 200
    assert here.state == "raw_downloading"


@pytest.mark.mysql
def test_on_mariadb_too(mysql_url: str, lab: Callable[..., Lab]) -> None:
    here = lab(mysql_url, device_events="token")
    refused(here.event(token=TOKEN[:-1]))
    assert here.event(token=TOKEN).status_code == 200
    assert here.get("/ipxe/020000000001", come_from=here.address).status_code == 200


@MODES
def test_nothing_else_shows_it(lab: Callable[..., Lab], mode: str) -> None:
    here = lab(mode=mode, device_events="token")
    here.site.change("device2", boot_token=token_hash("another"), state="pxe_booting")
    for token in ("another", TOKEN.lower(), TOKEN[:-1], TOKEN + "x", token_hash(TOKEN), "\xff"):
        assert "not that of the device's current boot" in refused(here.event(token=token))
    assert "without the token" in refused(here.event(come_from=here.address))
    refused(here.event(device="device2", token=TOKEN))
    here.site.change("device1", boot_token=None)
    refused(here.event(token=TOKEN))
    assert here.state == "pxe_booting"


def test_a_device_that_does_not_exist_is_nobody(lab: Callable[..., Lab]) -> None:
    here = lab(device_events="token")
    refused(here.event(device="device99", token=TOKEN))
    refused(here.event(device="device99"))


def test_the_devices_log_says_why_and_not_each_time(lab: Callable[..., Lab]) -> None:
    here = lab(device_events="token")
    for _ in range(3):
        refused(here.event(token="x"))
        refused(here.event())
    lines = [line for line in logged(here) if "refused" in line]
    said = "event mobile_init_started refused: {} ([auth] device_events = token)"
    wrong, none = "the token is not that of the device's current boot", "it came without the token of the device's boot"
    assert sorted(lines) == sorted([said.format(wrong), said.format(none)])


def test_a_device_says_how_far_it_is_and_nothing_else(lab: Callable[..., Lab]) -> None:
    """Not who has done it, for one."""
    here = lab(device_events="token")
    said = here.event(token=TOKEN, method="POST", json={"by": "admin", "claim_id": 1})
    assert said.status_code == 200
    assert here.state == "mobile_init_started"
    history = here.site.daemon.database.run(
        lambda conn: conn.exec_driver_sql("SELECT detail FROM device_history").all()
    )
    assert [row[0] for row in history if row[0]] == []


EVENTS = {
    "mobile_init_started",
    "maint_mode",
    "self_test_running",
    "self_test_ok",
    "failed_self_test",
    *(f"android_{step}" for step in ("downloading", "extracting", "rebooting")),
    *(f"b2g_{step}" for step in ("downloading", "extracting", "rebooting")),
    *("raw_downloading", "raw_writing", "raw_rebooting"),
}


def test_what_devices_tell_is_declared_in_their_states() -> None:
    machine = device_machine()
    assert machine.reported == EVENTS
    assert all(any(machine.expects(state, event) for state in machine.states) for event in machine.reported)


OTHERS = [*sorted({event for _, event, _ in device_machine().edges()} - EVENTS), "released", "no_such_event"]


@pytest.mark.parametrize("event", OTHERS)
def test_a_device_asks_for_nothing_and_knows_no_outcome(lab: Callable[..., Lab], event: str) -> None:
    """What people, servers and the daemon itself tell the machine."""
    here = lab(device_events="token")
    before = here.site.device("device1")
    assert f"devices do not send the event {event}" == refused(here.event(event, token=TOKEN), 403)
    refused(here.event(event, come_from=here.address))
    assert here.site.device("device1") == before


@MODES
def test_others_may_send_their_own_events(lab: Callable[..., Lab], mode: str) -> None:
    here = lab(mode=mode, device_events="token")
    here.site.change("device1", state="locked_out")
    headers = {} if mode == "open" else here.headers(OPERATOR)
    assert here.event("please_self_test", headers=headers).status_code == 200
    if mode == "token":
        assert here.event(headers=headers).status_code == 200
        assert here.event(headers=here.headers(USER)).status_code == 403


# By address


@MODES
def test_the_address_that_a_call_comes_from_shows_it(lab: Callable[..., Lab], mode: str) -> None:
    here = lab(mode=mode, device_events="address")
    message = refused(here.event())
    assert f"it came from {FOREIGN}, not from the device's address" in message
    assert here.address not in message
    assert here.event(come_from=here.address).status_code == 200
    assert here.state == "mobile_init_started"
    assert here.event("raw_downloading", come_from=f"::ffff:{here.address}").status_code == 200
    assert here.state == "raw_downloading"


def test_a_token_shows_it_from_anywhere_and_an_old_one_from_nowhere(lab: Callable[..., Lab]) -> None:
    """What comes late from the boot before is not taken for news of this one."""
    here = lab(device_events="address")
    refused(here.event(token="of-the-boot-before", come_from=here.address))
    assert here.event(token=TOKEN).status_code == 200


def test_address_is_what_counts_unless_something_else_is_set(lab: Callable[..., Lab]) -> None:
    here = lab()
    refused(here.event())
    assert here.event(come_from=here.address).status_code == 200


def test_an_address_may_be_a_host_name(lab: Callable[..., Lab]) -> None:
    here = lab(device_events="address")
    here.site.change("device1", address=None, fqdn="localhost")
    assert here.event(come_from="127.0.0.1").status_code == 200
    refused(here.event(come_from="127.0.0.2"))


def test_a_name_that_is_not_known_now_may_be_known_later(lab: Callable[..., Lab]) -> None:
    """A board tries again after 503, and gives up after 401."""
    here = lab(device_events="address")
    here.site.change("device1", address="no-such-host.invalid")
    said = here.event(come_from="127.0.0.1")
    assert "can't be looked up" in refused(said, 503)
    assert said.headers["Retry-After"]


def test_names_are_looked_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answers: dict[str, list[Any]] = {"panda": [(2, ("10.0.0.7", 0)), (10, ("fe80::1%eth0", 0, 0, 0))]}

    def resolve(host: str, port: int, deadline: Any) -> list[Any]:
        asked.append(host)
        if not answers[host]:
            raise PeerError("no")
        return answers[host]

    monkeypatch.setattr("mozpool.web.devicecalls.resolve", resolve)
    clock = SimClock()
    addresses = Addresses(clock)
    both = {ip_address("10.0.0.7"), ip_address("fe80::1")}
    assert addresses.of("10.0.0.1") == {ip_address("10.0.0.1")}
    assert [addresses.of("panda") for _ in range(3)] == [both] * 3
    assert asked == ["panda"]
    answers["panda"] = []
    clock.advance(301)
    assert addresses.of("panda") == both, "it keeps what it had"
    assert addresses.of("panda") == both
    assert len(asked) == 2
    answers["panda"] = [(2, ("10.0.0.8", 0))]
    clock.advance(UNKNOWN_FOR)
    assert addresses.of("panda") == {ip_address("10.0.0.8")}


@MODES
def test_without_a_rule_everybody_is_believed(lab: Callable[..., Lab], mode: str) -> None:
    here = lab(mode=mode, device_events="open")
    assert here.event().status_code == 200
    assert here.event("raw_downloading", token="x").status_code == 200
    assert here.get("/ipxe/020000000001").status_code == 200


def test_in_mode_open_nothing_has_changed(lab: Callable[..., Lab]) -> None:
    here = lab(mode="open")
    assert here.event("no_such_event").status_code == 200
    assert here.event(method="POST", json={"by": "me"}).status_code == 200
    assert here.event(device="device99").status_code == 404


# What devices read


def test_a_boot_config_is_for_the_device_and_for_who_may_look(lab: Callable[..., Lab]) -> None:
    here = lab(device_events="token")
    path = "/api/device/device1/bootconfig/"
    refused(here.get(path))
    refused(here.get(path, come_from=here.address))
    refused(here.get(path, token="x"))
    assert here.get(path, token=TOKEN).status_code == 200
    assert here.get(path, headers=here.headers(USER)).status_code == 200
    refused(here.get("/api/device/device2/bootconfig/", token=TOKEN))


def test_a_boot_config_goes_to_the_devices_address(lab: Callable[..., Lab]) -> None:
    here = lab(device_events="address")
    path = "/api/device/device1/bootconfig/"
    refused(here.get(path))
    assert here.get(path, come_from=here.address).status_code == 200


@MODES
@pytest.mark.parametrize("rule", ["token", "address"])
def test_an_ipxe_script_goes_to_the_devices_address(lab: Callable[..., Lab], mode: str, rule: str) -> None:
    """It has the token in it, so the board has none before."""
    here = lab(mode=mode, device_events=rule)
    here.site.daemon.bmm.sync_boot(replace(here.site.device("device1"), pxe_config="b2g"), boots=True)
    path = "/ipxe/02-00-00-00-00-01"
    message = refused(here.get(path))
    assert FOREIGN in message
    said = here.get(path, come_from=here.address)
    assert said.status_code == 200
    found = re.search(r"mozpool-token=(\S+)", said.text)
    assert found is not None
    assert here.event(token=found[1]).status_code == 200


def test_an_ipxe_script_of_no_device_is_for_nobody(lab: Callable[..., Lab]) -> None:
    here = lab(device_events="address")
    refused(here.get("/ipxe/02-00-00-00-00-99", come_from=here.address))
    assert here.get("/ipxe/nonsense", headers=here.headers(OPERATOR)).status_code == 400


def test_the_first_of_two_boards_with_one_mac_address_does_not_lock_the_other_out(lab: Callable[..., Lab]) -> None:
    here = lab(device_events="address")
    here.site.change("device2", mac_address="020000000001")
    for name in ("device1", "device2"):
        assert here.get("/ipxe/020000000001", come_from=here.site.device(name).address).status_code == 200


def test_a_device_is_who_calls(lab: Callable[..., Lab]) -> None:
    here = lab(device_events="token")
    found = []

    def note(said: Any) -> Any:
        found.append(principal())
        return said

    here.site.app.after_request(note)
    here.event(token=TOKEN)
    assert [(who.kind, who.name) for who in found] == [(Kind.DEVICE, "device1")]


def test_tokens_are_not_logged(lab: Callable[..., Lab], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    here = lab(device_events="token")
    here.event(token=TOKEN)
    here.event("raw_downloading", query=f"?token={TOKEN}")
    here.event(query="?token=of-the-boot-before")
    assert TOKEN not in caplog.text
    assert "of-the-boot-before" not in caplog.text
