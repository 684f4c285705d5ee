# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls between two imaging servers that want to know who calls: their own, and those that they pass on for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import g, request

from mozpool.access.principal import Kind, Principal, Role, principal
from mozpool.config import ConfigError
from mozpool.links import http_post
from mozpool.pool.link import LinkError
from mozpool.web.forward import HEADER
from scripts import testdata
from tests.integration.mozpool_site import free_ports
from tests.wired import KEY, OPERATOR, USER, Wired, daemon_of, served, settings_of

NEW = "the-new-key-that-servers-are-given-one-by-one"
EVENT = "/api/device/device1/event/please_self_test/"


@dataclass
class Heard:
    """A call as it came in."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    who: Principal


class Two:
    """``here``, and ``there``, which has the devices; what ``there`` heard."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.directory = url, directory
        self.ports = free_ports(2)
        self.heard: list[Heard] = []
        self.here: Wired
        self.there: Wired

    def settings(self, name: str, **auth: str) -> Any:
        port = self.ports + ("here", "there").index(name)
        return settings_of(self.url, self.directory / name, port, auth=auth)

    @contextmanager
    def serve(self, name: str, **auth: str) -> Iterator[Wired]:
        with daemon_of(self.settings(name, **auth)) as daemon, served(daemon) as wired:
            setattr(self, name, wired)
            if name == "there":
                wired.app.after_request(self._listen)
            yield wired

    def _listen(self, said: Any) -> Any:
        self.heard.append(
            Heard(request.method, request.full_path.rstrip("?"), dict(request.headers), request.get_data(), principal())
        )
        return said

    def fill(self) -> None:
        settings = self.there.daemon.settings
        self.there.daemon.database.run(lambda conn: testdata.fill(conn, settings, 3, 9, "ready"))

    def tell(self, path: str = EVENT, **body: Any) -> Any:
        """What ``there`` answers to a call of ``here`` on its own behalf. Raises LinkError."""
        return partial(http_post, self.here.daemon.peers)(self.there.fqdn, path, body)

    def play(self, call: Heard, **changes: Any) -> requests.Response:
        """Make a call again that somebody has recorded."""
        call = replace(call, **changes)
        headers = {name: value for name, value in call.headers.items() if name not in ("Host", "Content-Length")}
        url = self.there.url + call.target
        return requests.request(call.method, url, data=call.body, headers=headers, timeout=20)

    def shown(self) -> str:
        """The page of imaging servers of ``here``."""
        return self.here.get("/servers", Authorization=USER, Accept="text/html").text


@pytest.fixture
def two(sqlite_url: str, tmp_path: Path) -> Iterator[Two]:
    pair = Two(sqlite_url, tmp_path)
    with pair.serve("there"), pair.serve("here"):
        pair.fill()
        yield pair


def error(said: requests.Response) -> tuple[int, str]:
    return said.status_code, said.json()["error"]["code"]


def test_a_server_calls_another_on_its_own_behalf(two: Two) -> None:
    assert two.tell(by="mé") == {}
    first, second = two.heard
    assert first.who.kind is not Kind.SERVER, "it could not know for which run to sign"
    assert second.who == Principal(Kind.SERVER, Role.OPERATOR, two.here.fqdn)
    assert two.there.daemon.lifeguard.device("device1").state != "ready"
    two.tell("/api/device/device2/event/please_self_test/")
    assert len(two.heard) == 3, "and now it knows"


def test_who_signs_nothing_is_nobody(two: Two) -> None:
    assert error(two.there.post(EVENT)) == (401, "unauthorized")
    assert two.there.daemon.lifeguard.device("device1").state == "ready"


def test_a_recorded_call_is_not_played_again(two: Two) -> None:
    two.tell()
    said = two.play(two.heard[-1])
    assert error(said) == (401, "bad_signature")
    assert "has come before" in said.json()["error"]["message"]


@pytest.mark.parametrize(
    "changes",
    [
        {"body": b'{"by": "somebody else"}'},
        {"body": b""},
        {"method": "GET"},
        {"target": EVENT + "?x=1"},
        {"target": "/api/device/device2/event/please_self_test/"},
        {"target": EVENT.rstrip("/")},
    ],
)
def test_a_changed_call_is_not_taken(two: Two, changes: dict[str, Any]) -> None:
    two.tell()
    device = two.there.daemon.lifeguard.device("device2")
    assert error(two.play(two.heard[-1], **changes)) == (401, "bad_signature")
    assert two.there.daemon.lifeguard.device("device2") == device


def test_a_call_for_one_server_is_not_taken_by_another(two: Two) -> None:
    two.tell()
    call = two.heard[-1]
    headers = {"Authorization": call.headers["Authorization"], "Content-Type": "application/json"}
    said = requests.post(two.here.url + EVENT, data=call.body, headers=headers, timeout=20, allow_redirects=False)
    assert error(said) == (401, "bad_signature")
    assert f"the call is for {two.there.fqdn}" in said.json()["error"]["message"]


def test_after_a_restart_recorded_calls_count_no_more_and_servers_go_on(sqlite_url: str, tmp_path: Path) -> None:
    two = Two(sqlite_url, tmp_path)
    with two.serve("here"):
        with two.serve("there"):
            two.fill()
            two.tell()
            recorded = two.heard[-1]
        with two.serve("there"):
            assert error(two.play(recorded)) == (401, "bad_signature")
            assert two.tell("/api/device/device2/event/please_self_test/") == {}
    assert two.here.daemon.peers.refused == {}


def test_servers_call_nothing_else_on_their_own_behalf(two: Two) -> None:
    with pytest.raises(LinkError):
        two.tell("/api/device/device1/power-off/")
    assert two.heard[-1].who.kind is not Kind.SERVER
    assert two.there.daemon.lifeguard.device("device1").state == "ready"


@pytest.mark.parametrize(("ahead", "taken"), [(20.0, True), (-20.0, True), (90.0, False), (-90.0, False)])
def test_clocks_may_differ_by_some_seconds(
    two: Two, monkeypatch: pytest.MonkeyPatch, ahead: float, taken: bool
) -> None:
    signer = two.here.daemon.peers._signer
    assert signer is not None
    clock = signer._clock
    shifted = clock.now() + timedelta(seconds=ahead)
    monkeypatch.setattr(signer, "_clock", type("Shifted", (), {"now": staticmethod(lambda: shifted)}))
    if taken:
        assert two.tell() == {}
        return
    with pytest.raises(LinkError, match=r"does not take this server's calls: it was signed .* the clocks of"):
        two.tell()
    assert "the clocks of" in two.shown()
    assert 'id="refused-1"' in two.shown()
    monkeypatch.setattr(signer, "_clock", clock)
    two.tell()
    assert 'id="refused-1"' not in two.shown()


@pytest.mark.parametrize(
    ("here", "there", "taken"),
    [
        ({"server_key": NEW, "server_key_before": KEY}, {}, True),
        ({}, {"server_key": NEW, "server_key_before": KEY}, True),
        ({"server_key": NEW}, {"server_key": NEW, "server_key_before": KEY}, True),
        ({"server_key": NEW}, {}, False),
    ],
)
def test_keys_are_changed_from_server_to_server(
    sqlite_url: str, tmp_path: Path, here: dict[str, str], there: dict[str, str], taken: bool
) -> None:
    two = Two(sqlite_url, tmp_path)
    with two.serve("there", **there), two.serve("here", **here):
        two.fill()
        if taken:
            assert two.tell() == {}
            return
        with pytest.raises(LinkError, match=r"is of another \[auth\] server_key"):
            two.tell()
        assert "is of another [auth] server_key" in two.shown()


def test_a_server_without_a_key_says_so(sqlite_url: str, tmp_path: Path) -> None:
    two = Two(sqlite_url, tmp_path)
    with two.serve("there"), two.serve("here", server_key=""):
        two.fill()
        with pytest.raises(LinkError, match=r"this server has no \[auth\] server_key to sign calls with"):
            two.tell()
        assert two.heard == []
        assert 'id="lacks-key"' in two.shown()
        said = two.here.post(
            "/api/device/device1/status/", {"status": "offline"}, Authorization=OPERATOR, **{HEADER: "1"}
        )
        assert error(said) == (502, "server_away")
        assert "[auth] server_key" in said.json()["error"]["message"]


def test_one_that_has_no_key_itself_takes_nothing(sqlite_url: str, tmp_path: Path) -> None:
    two = Two(sqlite_url, tmp_path)
    with two.serve("there", server_key=""), two.serve("here"):
        two.fill()
        with pytest.raises(LinkError, match=r"has no \[auth\] server_key to compare signatures with"):
            two.tell()
        assert 'id="lacks-key"' not in two.shown()
        assert two.there.fqdn in two.shown()


def test_it_does_not_start_without_a_key_beside_others(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = Two(sqlite_url, tmp_path)
    keyless = two.settings("here", server_key="")
    with two.serve("there"):
        with daemon_of(keyless):
            assert "server_key" not in caplog.text  # as far as anybody knows it is alone
        two.there.daemon.presence.beat()
        with pytest.raises(ConfigError, match=rf"server_key.*{two.there.fqdn} is running"), daemon_of(keyless):
            pass
        with daemon_of(replace(keyless, auth=replace(keyless.auth, mode="open"))):
            pass
        two.there.daemon.presence.leave()
        with daemon_of(keyless):
            assert f"{two.there.fqdn} was in this pool" in caplog.text


STATUS = "/api/device/device1/status/"


def test_a_call_of_a_page_is_passed_on_for_who_makes_it(two: Two) -> None:
    said = two.here.post(STATUS, {"status": "offline"}, Authorization=OPERATOR, **{HEADER: "1"})
    assert (said.status_code, said.json()) == (200, {"state": "locked_out"})
    assert two.heard[-1].who == Principal(Kind.TOKEN, Role.OPERATOR, "operator@example.com", credential=1)


def test_who_may_not_do_it_here_may_not_do_it_elsewhere(two: Two) -> None:
    said = two.here.post(STATUS, {"status": "offline"}, Authorization=USER, **{HEADER: "1"})
    assert error(said) == (403, "forbidden")
    assert two.heard == []


def test_the_other_server_decides_for_itself_what_they_may(two: Two) -> None:
    """A server that is no more than passed on to does not believe that the first one has looked."""

    def lax() -> None:
        g.principal = Principal(Kind.TOKEN, Role.USER, "user@example.com")

    two.here.app.before_request_funcs[None] = [lax]
    said = two.here.post(STATUS, {"status": "offline"}, **{HEADER: "1"})
    assert error(said) == (403, "forbidden")
    assert two.heard[-1].who == Principal(Kind.TOKEN, Role.USER, "user@example.com")
    two.here.app.before_request_funcs[None] = []  # as in mode open
    said = two.here.post(STATUS, {"status": "offline"}, **{HEADER: "1"})
    assert error(said) == (401, "unauthorized")
    assert two.there.daemon.lifeguard.device("device1").state == "ready"


def test_a_request_of_another_server_is_told_and_asked(two: Two) -> None:
    body = {"duration": 900, "image": "android", "assignee": "me"}
    made = two.there.post("/api/device/device1/request/", body, Authorization=USER)
    assert made.status_code == 200, made.text
    number = made.json()["request"]["id"]
    path = f"/api/request/{number}/renew/"
    said = two.here.post(path, {"duration": 1200}, Authorization=USER)
    assert (said.status_code, said.headers["Location"]) == (302, two.there.url + path)
    said = two.here.post(path, {"duration": 1200}, Authorization=USER, **{HEADER: "1"})
    assert (said.status_code, said.content) == (204, b"")
    assert two.tell(f"/api/request/{number}/event/claimed/") == {}


def test_in_mode_open_signatures_are_sent_and_nobody_asks(sqlite_url: str, tmp_path: Path) -> None:
    """So that a pool can be given keys, and then be closed, from server to server."""
    two = Two(sqlite_url, tmp_path)
    with ExitStack() as stack:
        daemons = [stack.enter_context(daemon_of(two.settings(name, mode="open"))) for name in ("here", "there")]
        two.here, two.there = (stack.enter_context(served(daemon)) for daemon in daemons)
        two.there.app.after_request(two._listen)
        two.fill()
        assert two.tell() == {}
        assert two.heard[-1].who.kind is Kind.OPEN
        assert two.heard[-1].headers["Authorization"].startswith("Mozpool-Server ")
        assert len(two.heard) == 1
