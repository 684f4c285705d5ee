# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Mail to a real server: what it says, and what happens when it is not taken."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mozpool.config import Email
from mozpool.notify.mail import Mailer, compose
from mozpool.notify.webhook import NotTaken
from tests.processes import free_port
from tests.receivers import certificate, mail_server

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
OPS = ("ops@example.com",)


def body(**changes: Any) -> dict[str, Any]:
    return {
        "id": "device:12:7",
        "event": "device_failed",
        "time": "2030-01-02T03:04:05",
        "subject": "panda-0012",
        "summary": "panda-0012 failed: pxe booting",
        "text": "Device panda-0012 has failed since 2030-01-02 03:04:05 UTC.",
        "url": "http://server-1.example.com/devices/panda-0012",
        "details": {},
        **changes,
    }


def mail(*bodies: dict[str, Any], recipients: tuple[str, ...] = OPS) -> Any:
    return compose(
        bodies or [body()], sender="pool@example.com", recipients=recipients, identity="mozpool-7-1", now=NOW
    )


def mailer(port: int, **settings: Any) -> Mailer:
    return Mailer(Email(host="127.0.0.1", port=port, sender="pool@example.com", **settings))


def test_it_says_what_happened_since_when_and_where_to_look() -> None:
    with mail_server() as box:
        assert mailer(box.port)(mail(), OPS) == []
    (arrived,) = box.mails
    assert (arrived.sender, arrived.recipients) == ("pool@example.com", ["ops@example.com"])
    message = arrived.message
    assert message["Subject"] == "[mozpool] panda-0012 failed: pxe booting"
    assert message["Message-ID"] == "<mozpool-7-1@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Date"].datetime == NOW
    assert arrived.text == (
        "panda-0012 failed: pxe booting\n"
        "------------------------------\n"
        "Device panda-0012 has failed since 2030-01-02 03:04:05 UTC.\n"
        "\n"
        "http://server-1.example.com/devices/panda-0012\n"
    )


def test_what_comes_together_is_one_mail() -> None:
    many = [body(summary=f"panda-{n} failed: pxe booting") for n in range(250)]
    with mail_server() as box:
        mailer(box.port)(mail(*many, body(event="server_away", summary="server-2 is away")), OPS)
    (arrived,) = box.mails
    assert arrived.message["Subject"] == "[mozpool] device failed (250), server away (1)"
    assert "panda-99 failed" in arrived.text
    assert "panda-100 failed" not in arrived.text
    assert arrived.text.endswith("And 151 more.\n")


@pytest.mark.parametrize(
    ("summary", "subject"),
    [
        ("request 1: failed: x\r\nBcc: all@example.com", "[mozpool] request 1: failed: x Bcc: all@example.com"),
        ("a\nb\u2028c\x00d\x85e\x0bf", "[mozpool] a b c d e f"),
        ("Gerät für Möglichkeiten 漢字", "[mozpool] Gerät für Möglichkeiten 漢字"),
        ("lone \ud800 surrogate", "[mozpool] lone ? surrogate"),
        ("x" * 1000, "[mozpool] " + "x" * 147 + "..."),
    ],
)
def test_nobody_gets_a_header_of_his_own_into_it(summary: str, subject: str) -> None:
    with mail_server() as box:
        mailer(box.port)(mail(body(summary=summary, text=f"{summary}\n.\nRCPT TO: all@example.com\n")), OPS)
    (arrived,) = box.mails
    assert arrived.message["Subject"] == subject
    assert arrived.message["Bcc"] is None
    assert arrived.recipients == ["ops@example.com"]


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_it_is_encrypted_and_logs_in(tmp_path: Path, tls: str) -> None:
    cert, context = certificate(tmp_path)
    with mail_server(context=context, at_once=tls == "tls", password="s3cret") as box:
        send = mailer(box.port, tls=tls, ca_file=cert, username="pool", password="s3cret")
        assert send(mail(), OPS) == []
    assert (box.mails[0].encrypted or tls == "tls", box.mails[0].user) == (True, "pool")


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_a_certificate_that_nobody_vouches_for_is_not_good(tmp_path: Path, tls: str) -> None:
    _, context = certificate(tmp_path)
    reason = "its certificate is not good: self-signed certificate"
    with mail_server(context=context, at_once=tls == "tls") as box, pytest.raises(NotTaken, match=reason):
        mailer(box.port, tls=tls)(mail(), OPS)
    assert box.mails == []


def test_a_certificate_of_another_host_is_not_good(tmp_path: Path) -> None:
    cert, context = certificate(tmp_path, "mail.example.com")
    reason = "its certificate is not good: IP address mismatch"
    with mail_server(context=context) as box, pytest.raises(NotTaken, match=reason):
        mailer(box.port, tls="starttls", ca_file=cert)(mail(), OPS)


def test_a_server_without_starttls_gets_no_mail_in_the_clear() -> None:
    with mail_server() as box, pytest.raises(NotTaken, match="STARTTLS extension not supported"):
        mailer(box.port, tls="starttls")(mail(), OPS)
    assert box.mails == []


def test_a_wrong_password_is_said_without_it() -> None:
    with mail_server(password="right") as box:
        with pytest.raises(NotTaken, match=r"the login was refused: 535") as caught:
            mailer(box.port, username="pool", password="wr0ng")(mail(), OPS)
        with pytest.raises(NotTaken, match=r"it can't be sent \(UnicodeEncodeError\)") as also:
            mailer(box.port, username="pool", password="wr0ngä")(mail(), OPS)
    assert "wr0ng" not in str(caught.value) + str(also.value)


def test_a_refused_recipient_keeps_nobody_else_from_getting_it() -> None:
    both = ("gone@example.com", "ops@example.com")
    with mail_server(refused=("gone@example.com",)) as box:
        assert mailer(box.port)(mail(recipients=both), both) == ["gone@example.com"]
    assert box.mails[0].recipients == ["ops@example.com"]


def test_a_mail_that_everybody_is_refused_for_was_not_taken() -> None:
    with mail_server(refused=OPS) as box, pytest.raises(NotTaken, match="refused: 550 nobody of that name") as caught:
        mailer(box.port)(mail(), OPS)
    assert caught.value.answered


def test_what_the_server_refuses_was_not_taken() -> None:
    with mail_server("451 not now") as box:
        with pytest.raises(NotTaken, match="answered 451 not now"):
            mailer(box.port)(mail(), OPS)
        mailer(box.port)(mail(), OPS)
    assert len(box.mails) == 1


def test_a_server_that_is_down_is_said_to_be() -> None:
    with pytest.raises(NotTaken, match="Connection refused"):
        mailer(free_port())(mail(), OPS)


def _drip(connection: socket.socket) -> None:
    connection.sendall(b"220-")
    for _ in range(200):
        time.sleep(0.05)
        connection.sendall(b"x")


def _say_nothing(connection: socket.socket) -> None:
    connection.recv(1)


def _hang_up(connection: socket.socket) -> None:
    connection.sendall(b"220 hello\r\n")


def _talk_nonsense(connection: socket.socket) -> None:
    connection.sendall(b"\xff\x00" * 6000)
    connection.recv(1)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (_drip, "no answer within 0.5 s"),
        (_say_nothing, "no answer within 0.5 s"),
        (_hang_up, "Connection unexpectedly closed"),
        (_talk_nonsense, "answered 500 Line too long"),
    ],
)
def test_a_server_that_misbehaves_is_given_up_in_time(act: Callable[[socket.socket], None], reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                act(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        begun = time.monotonic()
        with pytest.raises(NotTaken, match=reason):
            mailer(listener.getsockname()[1], timeout=0.5)(mail(), OPS)
        spent = time.monotonic() - begun
        thread.join(20)
    assert spent < 3
