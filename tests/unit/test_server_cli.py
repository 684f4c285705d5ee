# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool-server``: what it says before it serves."""

from __future__ import annotations

import hmac
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mozpool.cli.logs import Syslog, configure_logging
from mozpool.cli.server import main, openness
from mozpool.config import SYSTEM_FILE, Auth, Server, Settings
from tests.receivers import listening, mail_server


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command changes what this process logs; other tests must not notice."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="mozpool-server")


def test_help_names_all_places_of_the_configuration() -> None:
    shown = " ".join(run("--help").stdout.split())
    for place in ("--config", "$MOZPOOL_CONFIG", "./config.ini", "config.ini in the checkout", str(SYSTEM_FILE)):
        assert place in shown


@pytest.mark.parametrize(
    ("server", "mode", "said"),
    [
        ({}, None, None),
        ({"listen": "::1"}, None, None),
        ({"fqdn": "localhost:8080"}, None, None),
        ({"fqdn": "mozpool.example.com"}, None, "as mozpool.example.com, through a proxy"),
        ({"fqdn": "mozpool.example.com"}, "open", None),
        ({"fqdn": "mozpool.example.com"}, "token", None),
        ({"listen": "0.0.0.0"}, None, None),
        ({"listen": "0.0.0.0"}, "open", "whoever reaches http://0.0.0.0:8080 may do everything"),
        ({"listen": "10.1.0.5"}, "oidc", None),
    ],
)
def test_a_server_that_asks_nobody_who_they_are_says_so(
    server: dict[str, Any], mode: str | None, said: str | None
) -> None:
    found = openness(Settings(server=replace(Server(), **server), auth=Auth(mode=mode)))
    assert said in found if said is not None and found is not None else found is said


@pytest.mark.parametrize("word", ["/tmp/x", "0", "65536", "8080x", "٣"])
def test_what_is_no_port_is_told_with_the_way_to_name_a_file(word: str) -> None:
    result = run(word)
    assert result.exit_code == 2
    assert f"{word!r} is not a port, 1 to 65535; a configuration file is named by --config FILE" in result.stderr


@pytest.mark.parametrize(
    ("key", "exist"),
    [
        ("power", "command, pdudaemon, proxr, redfish"),
        ("boot", "pxe"),
        ("probe", "adb, echo, fping"),
        ("agent", "adb, sut"),
    ],
)
def test_a_backend_that_does_not_exist_stops_the_start(tmp_path: Path, key: str, exist: str) -> None:
    file = tmp_path / "mozpool.ini"
    file.write_text(
        f"[database]\nengine = sqlite:///{tmp_path}/x.sqlite\n[server]\nfqdn = 127.0.0.1\n[bmm]\n{key} = nosuch\n"
    )
    result = run("--config", str(file))
    assert result.exit_code == 1
    assert f"{file}:6: [bmm] {key}: there is no {key} backend 'nosuch'; there are: " in result.stderr
    assert exist in result.stderr


def test_migrations_are_silent_while_a_server_starts() -> None:
    configure_logging(Settings())
    assert not logging.getLogger("alembic.runtime.migration").isEnabledFor(logging.INFO)


def test_a_syslog_that_is_missing_is_told_once_and_anew_when_it_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "log")
    handler = Syslog(address=place)
    record = logging.LogRecord("mozpool", logging.INFO, "", 0, "said", None, None)

    def said(lines: int) -> str:
        for _ in range(lines):
            handler.handle(record)
        return capsys.readouterr().err

    missing = f"mozpool-server: syslog {place} takes no lines: No such file or directory\n"
    try:
        assert said(3) == missing
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
            syslog.bind(place)
            assert said(2) == ""
            assert syslog.recv(100).endswith(b"said\0")
        Path(place).unlink()
        assert said(2).splitlines()[0].startswith(f"mozpool-server: syslog {place} takes no lines: ")
        assert said(2) == ""
    finally:
        handler.close()


def test_what_is_quoted_cannot_pass_for_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings())
    logging.getLogger("mozpool.web").warning("GET %s: no", "/x\n2030-01-01 00:00:00,000 INFO mozpool: all is well")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("WARNING mozpool.web: GET /x")
    assert second == "    2030-01-01 00:00:00,000 INFO mozpool: all is well: no"


def test_what_is_wrong_with_a_line_itself_is_shown_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = Syslog(address=str(tmp_path / "log"))
    handler.handle(logging.LogRecord("mozpool", logging.INFO, "", 0, "%d", ("many",), None))
    handler.close()
    assert "TypeError" in capsys.readouterr().err


def test_a_syslog_on_a_host_that_does_not_exist_stops_the_start_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mozpool.ini"
    file.write_text("[server]\nfqdn = 127.0.0.1\nsyslog = nohost.invalid:514\n")
    result = run("--config", str(file))
    assert result.exit_code == 1
    assert f"mozpool-server: {file}:3: [server] syslog: 'nohost.invalid:514' can't be used: " in result.stderr


@pytest.mark.parametrize(
    ("listen", "url"),
    [("127.0.0.1", "http://127.0.0.1:8080"), ("::1", "http://[::1]:8080"), ("localhost", "http://localhost:8080")],
)
def test_an_ipv6_address_stands_in_brackets(listen: str, url: str) -> None:
    assert Server(listen=listen).listen_url == url


# Trying out who is told


def told(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "mozpool.ini"
    file.write_text("\n".join(("[server]", "fqdn = server-1.example.com", *lines)))
    return file


def test_a_webhook_is_tried_out(tmp_path: Path) -> None:
    with listening(200, 403) as listener:
        section = ("[notify chat]", "events = device_failed", f"webhook = {listener.url}", "secret = s3cret")
        file = told(tmp_path, *section)
        result = run("--config", str(file), "--test-notify", "chat")
        assert (result.exit_code, result.stdout) == (0, "chat: the webhook has taken it\n")
        (call,) = listener.calls
        assert call.body["summary"] == "a test of [notify chat]"
        signed = hmac.new(b"s3cret", call.headers["x-mozpool-timestamp"].encode() + b"." + call.raw, "sha256")
        assert call.headers["x-mozpool-signature"] == f"sha256={signed.hexdigest()}"
        result = run("--config", str(file), "--test-notify", "chat")
    assert (result.exit_code, result.stderr) == (1, "mozpool-server: chat was not told: answered 403\n")


def test_mail_is_tried_out(tmp_path: Path) -> None:
    with mail_server(refused=("gone@example.com",)) as box:
        mail = ("[email]", "host = 127.0.0.1", f"port = {box.port}", "sender = pool@example.com")
        ops = ("[notify ops]", "events = device_failed", "email = ops@example.com")
        half = ("[notify half]", "events = device_failed", "email = ops@example.com gone@example.com")
        mine = ("[notify mine]", "events = request_ready", "email = assignee")
        file = str(told(tmp_path, *mail, *ops, *half, *mine))
        result = run("--config", file, "--test-notify", "ops")
        assert (result.exit_code, result.stdout) == (0, "ops: the mail server has taken it, for ops@example.com\n")
        result = run("--config", file, "--test-notify", "mine")
        assert (result.exit_code, result.stdout) == (0, "mine: the mail server has taken it, for pool@example.com\n")
        result = run("--config", file, "--test-notify", "half")
        assert result.exit_code == 1
        assert result.stderr == "mozpool-server: half was not told: the mail server has refused gone@example.com\n"
    assert [mail.recipients for mail in box.mails] == [["ops@example.com"], ["pool@example.com"], ["ops@example.com"]]


def test_only_what_is_configured_can_be_tried_out(tmp_path: Path) -> None:
    section = ("[notify chat]", "events = device_failed", "webhook = http://x/", "secret = s")
    for lines, known in (((), "none"), (section, "chat")):
        result = run("--config", str(told(tmp_path, *lines)), "--test-notify", "caht")
        assert result.exit_code == 2
        expected = f"mozpool-server: --test-notify: there is no [notify caht]; there are: {known}\n"
        assert result.stderr == expected
