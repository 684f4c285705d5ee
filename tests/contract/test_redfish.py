# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The Redfish backend: against OpenStack's emulator, and against a controller that counts its sessions."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mozpool.bmm.interfaces import Target
from mozpool.config import BMM
from mozpool.errors import HardwareError, LaneError
from tests.contract.peers import Peer
from tests.contract.real_peers import PASSWORD, SYSTEMS, USER, Garbage, RedfishEmulator, Trickle

redfish = pytest.importorskip(
    "mozpool.bmm.backends.redfish",
    reason="sushy is not installed (pip install 'mozpool[redfish]')",
    exc_type=ImportError,
)

ENOUGH = 60.0


def device(url: str, **options: str) -> Target:
    return Target("panda-0001", "127.0.0.1", "aabbccddeeff", options={"redfish": url, **options})


@pytest.fixture
def make(context):
    """A backend with these settings."""

    def make(user: str = USER, password: str = PASSWORD, verify: bool = True):
        settings = BMM(redfish_user=user, redfish_password=password, redfish_verify=verify)
        return redfish.RedfishPower(replace(context, settings=settings))

    return make


class Controller:
    """A management controller with one system, which hands out sessions and takes nothing else."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.logins = 0
        self.power = "On"
        self.obeys = True
        self.resets: list[str] = []
        self.kinds = ["On", "ForceOff"]

    @contextlib.contextmanager
    def run(self) -> Iterator[Controller]:
        controller = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, content: object = None, **headers: str) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def allowed(self) -> bool:
                if self.headers.get("X-Auth-Token") in controller.sessions:
                    return True
                self.answer(401, {"error": {"message": f"who is {USER} with {PASSWORD}?"}})
                return False

            def do_GET(self) -> None:
                if self.path == "/redfish/v1/":
                    sessions = {"@odata.id": "/redfish/v1/SessionService/Sessions"}
                    systems = {"@odata.id": "/redfish/v1/Systems"}
                    content = {"Id": "r", "Name": "root", "Links": {"Sessions": sessions}, "Systems": systems}
                    self.answer(200, {**content, "RedfishVersion": "1.6.0", "UUID": "u"})
                elif self.allowed():
                    members = [{"@odata.id": "/redfish/v1/Systems/1"}]
                    target = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"
                    reset = {"target": target, "ResetType@Redfish.AllowableValues": controller.kinds}
                    if self.path == "/redfish/v1/Systems":
                        self.answer(200, {"Name": "systems", "Members": members})
                    elif self.path == "/redfish/v1/Systems/1":
                        actions = {"#ComputerSystem.Reset": reset}
                        self.answer(200, {"Id": "1", "Name": "s", "PowerState": controller.power, "Actions": actions})
                    else:
                        self.answer(404, {"error": {"message": "no such resource"}})

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/Sessions"):
                    if content != {"UserName": USER, "Password": PASSWORD}:
                        return self.answer(401, {"error": {"message": f"{content} is wrong"}})
                    controller.logins += 1
                    token = f"token-{controller.logins}"
                    controller.sessions.add(token)
                    place = f"/redfish/v1/SessionService/Sessions/{token}"
                    self.answer(201, {}, X_Auth_Token=token, Location=place)
                elif self.allowed():
                    controller.resets.append(content["ResetType"])
                    if controller.obeys:
                        controller.power = "On" if content["ResetType"] == "On" else "Off"
                    self.answer(204)

            def do_DELETE(self) -> None:
                if self.allowed():
                    controller.sessions.discard(self.path.rpartition("/")[2])
                    self.answer(204)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join(ENOUGH)
            server.server_close()


@pytest.fixture
def controller() -> Iterator[Controller]:
    with Controller().run() as controller:
        yield controller


# Sessions


def test_every_operation_logs_in_and_out(controller, make, seconds):
    power = make()
    power.power_off(device(controller.url), seconds(ENOUGH))
    power.power_cycle(device(controller.url), seconds(ENOUGH))
    assert power.is_on(device(controller.url), seconds(ENOUGH)) is True
    assert controller.logins == 3
    assert controller.sessions == set()
    assert controller.resets == ["ForceOff", "On"]


def test_it_logs_out_after_a_failure_too(controller, make, seconds):
    controller.kinds = ["On", "GracefulRestart"]
    with pytest.raises(HardwareError) as caught:
        make().power_off(device(controller.url), seconds(ENOUGH))
    assert not isinstance(caught.value, LaneError), "the controller is fine"
    assert controller.logins == 1
    assert controller.sessions == set()


def test_a_refused_login_is_the_controllers_error_and_no_secret_shows(controller, make, seconds, caplog):
    for user, password in ((USER, "falsch-4711"), ("nobody", PASSWORD)):
        with pytest.raises(LaneError, match=r"refuses the login of \[bmm\] redfish_user") as caught:
            make(user, password).is_on(device(controller.url), seconds(ENOUGH))
        assert password not in str(caught.value)
        assert PASSWORD not in str(caught.value)


def test_without_a_user_it_says_so(controller, make, seconds):
    with pytest.raises(HardwareError, match=r"\[bmm\] redfish_user is not set"):
        make(user="").is_on(device(controller.url), seconds(ENOUGH))


# Switching


def test_a_power_that_does_not_follow_is_an_error_at_the_deadline(controller, make, seconds):
    controller.obeys = False
    with pytest.raises(HardwareError, match=r"its power is not off 2 s after it was asked; the device may") as caught:
        make().power_cycle(device(controller.url), seconds(2))
    assert not isinstance(caught.value, LaneError)
    assert controller.resets[0] == "ForceOff"


def test_the_only_system_need_not_be_named_but_one_of_two_must(controller, emulator, make, seconds):
    assert make().is_on(device(controller.url), seconds(ENOUGH)) is True
    with pytest.raises(HardwareError, match="System count is not exactly one") as caught:
        make().is_on(device(emulator.url), seconds(ENOUGH))
    assert not isinstance(caught.value, LaneError)


def test_a_system_that_is_not_there_is_the_devices_error(emulator, make, seconds):
    with pytest.raises(HardwareError, match="not found") as caught:
        make().is_on(device(emulator.url, system="/redfish/v1/Systems/nope"), seconds(ENOUGH))
    assert not isinstance(caught.value, LaneError)


def test_a_state_between_on_and_off_is_neither(controller, make, seconds):
    for state, answer in (("PoweringOn", None), ("nonsense", None), ("Off", False)):
        controller.power = state
        assert make().is_on(device(controller.url), seconds(ENOUGH)) is answer


# Lanes


@pytest.mark.parametrize(
    ("url", "lane"),
    [
        ("https://bmc-1.example.com", "redfish:bmc-1.example.com:443"),
        ("https://BMC-1.example.com:443/", "redfish:bmc-1.example.com:443"),
        ("http://10.0.0.7", "redfish:10.0.0.7:80"),
        ("https://[fe80::1]:8443", "redfish:[fe80::1]:8443"),
    ],
)
def test_a_controller_is_a_lane_however_it_is_written(make, url, lane):
    assert make().lane(device(url)) == lane


# Controllers that misbehave


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b"{}",
        b'"text"',
        b"null",
        b"{",
        b"[" * 100_000,
        b'{"Systems": {"@odata.id": 7}}',
        b'{"Systems": null, "Links": []}',
        b"\xff\xfe",
    ],
)
def test_json_that_is_no_redfish_is_the_controllers_error(start, make, seconds, answer):
    class Nonsense(Peer):
        def serve(self, connection):
            while self.receive(connection):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))

    url = f"http://127.0.0.1:{start(Nonsense()).port}"
    for ask in ("is_on", "power_cycle"):
        with pytest.raises(HardwareError, match=r"of panda-0001 failed: .{10}") as caught:
            getattr(make(), ask)(device(url, system="/redfish/v1/Systems/1"), seconds(ENOUGH))
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("peer", [Trickle, lambda: Garbage(b"")])
def test_it_is_over_by_the_deadline_and_is_not_tried_again_after_a_pause(start, make, seconds, peer):
    url = f"http://127.0.0.1:{start(peer()).port}"
    began = time.monotonic()
    with pytest.raises(LaneError, match=r"Redfish controller 127.0.0.1:[0-9]+: "):
        make().power_cycle(device(url), seconds(0.5))
    assert time.monotonic() - began < 3


def test_certificates_are_checked_unless_the_settings_say_otherwise(tmp_path, make, seconds, monkeypatch):
    with RedfishEmulator(tmp_path, tls=True).run() as emulator:
        target = device(emulator.url, system=f"/redfish/v1/Systems/{SYSTEMS[0]}")
        with pytest.raises(LaneError, match="its certificate is not good: self"):
            make().is_on(target, seconds(ENOUGH))
        power = make(verify=False)
        assert power.is_on(target, seconds(ENOUGH)) is True
        power.test(power.lane(target), seconds(ENOUGH))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert make().is_on(target, seconds(ENOUGH)) is True


def test_a_server_without_tls_is_an_error_with_a_reason(controller, make, seconds):
    with pytest.raises(LaneError, match="TLS failed: "):
        make().is_on(device(controller.url.replace("http", "https")), seconds(ENOUGH))
