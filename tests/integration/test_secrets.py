# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A real server whose every secret can be recognised, and whose peers all fail and quote what they were sent.

None of the secrets may be in its log, in an answer, in the arguments of a process, or in the environment of one that it
starts.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from sqlalchemy import update

from mozpool.config import Named, Setting, Settings
from mozpool.db import tables
from mozpool.web.app import bare_app
from tests.integration.mozpool_site import Site, eventually
from tests.mariadb import MariaDB
from tests.processes import children
from tests.receivers import mail_server

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow, pytest.mark.mysql]

SECRET = "S3CR3T"
"""What each secret begins with."""


TASKCLUSTER = "t_lambda_a55"
"""The variable of the project's Taskcluster token, named like its worker type."""


def secrets() -> re.Pattern[str]:
    """Finds a secret, or one in base64, wherever that begins in it: as "Basic" log-ins are written."""
    # The letters that what stands before and behind has a part in are left out.
    inside = []
    for before, (first, last) in enumerate(((0, 8), (2, 9), (3, 10))):
        inside.append(base64.b64encode(b"x" * before + SECRET.encode() + b"x").decode()[first:last])
    return re.compile("|".join([SECRET, *map(re.escape, inside)]))


@contextmanager
def gossip() -> Iterator[str]:
    """The host and port of a server that refuses everything, and says all that it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            sent = f"{self.requestline}\n{self.headers}\n{self.rfile.read(length).decode('latin-1')}"
            said = json.dumps({"detail": sent, "error": {"message": sent}, "message": sent, "title": sent}).encode()
            self.send_response(400, re.sub(r"[^ -~]", " ", sent)[:2000])
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Sent", re.sub(r"[^ -~]", " ", sent)[:2000])
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def sections(peer: str, mail_port: int, spy: Path, projects: Path, scripts: Path) -> str:
    """The part of the configuration that has the secrets, but that of the database."""
    return f"""
[inventory]
source = mozilla
url = http://anna:{SECRET}-inventory-url@{peer}/{SECRET}-inventory-path/
username = bert
password = {SECRET}-inventory
token = {SECRET}-netbox
sync_interval = 1
[bmm]
fping = {spy}
pdudaemon = http://user:{SECRET}-pdudaemon@{peer}
redfish_user = admin
redfish_password = {SECRET}-redfish
redfish_verify = false
[commands]
switch.on = {spy}
switch.off = {spy}
[notify chat]
events = request_failed device_failed
webhook = http://x:{SECRET}-hook-user@{peer}/{SECRET}-hook
secret = {SECRET}-signature
[notify mail]
events = request_failed device_failed
email = somebody@example.com
[email]
host = 127.0.0.1
port = {mail_port}
username = mozpool
password = {SECRET}-mail
[lambdatest]
enabled = true
projects = {projects}
user_scripts = {scripts}
hyperexecute = {spy}
username = me
look_interval = 1
devices_api = http://{peer}
jobs_api = http://{peer}
taskcluster = http://{peer}
sentry_dsn = http://{SECRET}dsn@{peer}/1
"""


@pytest.fixture
def account(mariadb: MariaDB, mysql_url: str) -> Iterator[str]:
    """The URL of the database for an account with a password."""
    mariadb.execute(f"CREATE USER 'leaky'@'%%' IDENTIFIED BY '{SECRET}-database'")
    mariadb.execute("GRANT ALL ON *.* TO 'leaky'@'%%'")
    yield mysql_url.replace("root@", f"leaky:{SECRET}-database@")
    mariadb.execute("DROP USER 'leaky'@'%%'")


@pytest.fixture
def site(account: str, tmp_path: Path) -> Iterator[Site]:
    seen = tmp_path / "environments"
    spy = program(tmp_path / "spy", f"tr '\\0' '\\n' </proc/self/environ >>{seen}; env >>{seen}; exit 3")
    projects = tmp_path / "lambdatest.yml"
    projects.write_text(
        "global:\n  contract_device_count: 1\nprojects:\n  defaults:\n    TASKCLUSTER_CLIENT_ID: me\n"
        "    USER_SCRIPTS_VERSION: '1'\n  a55-perf:\n    TC_WORKER_TYPE: t-lambda-a55\n"
        "device_groups:\n  a55-perf:\n    A55-1-1:\n"
    )
    (tmp_path / "scripts" / "1").mkdir(parents=True)
    with gossip() as peer, mail_server(password="another") as mail:
        site = Site(tmp_path, account, boards=1, speed=20.0, seed=3, reliable=True)
        text = site.config.read_text().replace("[paths]", "heartbeat_interval = 0.5\naway_after = 3\n[paths]")
        site.config.write_text(text + sections(peer, mail.port, spy, projects, tmp_path / "scripts"))
        os.environ["LT_ACCESS_KEY"] = f"{SECRET}-access-key"
        os.environ[TASKCLUSTER] = f"{SECRET}-taskcluster"
        try:
            with site:
                yield site
        finally:
            del os.environ["LT_ACCESS_KEY"], os.environ[TASKCLUSTER]


def processes(parent: int) -> Iterator[int]:
    """The ids of all that a process has started, and what those have."""
    for child in children(parent):
        yield child
        yield from processes(child)


def add_device(site: Site, name: str, **backends: object) -> None:
    """A device with these backends."""
    site._run("mozpool.cli.db", "add-device", name, "--mac", f"0200000001{len(name):02x}", "--address", "127.254.0.9")
    table = tables.devices
    site.database.run(
        lambda conn: conn.execute(
            update(table).where(table.c.name == name).values(backends=json.dumps(backends), state="ready")
        )
    )


def cut_off(mariadb: MariaDB, password: str) -> None:
    """Change the account's password, and end its connections."""
    mariadb.execute(f"ALTER USER 'leaky'@'%%' IDENTIFIED BY '{password}'")
    for (number,) in mariadb.execute("SELECT id FROM information_schema.processlist WHERE user = 'leaky'"):
        with suppress(Exception):
            mariadb.execute("KILL %s", number)


def test_every_secret_setting_is_in_this_test() -> None:
    """A new one has to be added above."""
    nowhere = Path("/nowhere")
    text = f"engine = mysql://leaky:{SECRET}-database@h/x\n{sections('h:1', 25, nowhere, nowhere, nowhere)}"
    for section in dataclasses.fields(Settings):
        named = section.metadata.get("named")
        found = named.section if isinstance(named, Named) else section.default_factory
        for field in dataclasses.fields(found) if isinstance(found, type) and dataclasses.is_dataclass(found) else ():
            setting = field.metadata.get("setting")
            if isinstance(setting, Setting) and setting.secret and field.name != "access_key":
                assert re.search(rf"^{field.name} = .*{SECRET}", text, re.M), field.name


def test_no_secret_gets_out(site: Site, mariadb: MariaDB, tmp_path: Path) -> None:
    assert site.daemon is not None
    pid = site.daemon.pid
    peer = re.findall(r"jobs_api = http://(\S+)", site.config.read_text())[0]
    said: dict[str, str] = {}

    # Every peer is asked for something, and fails.
    add_device(site, "pdu", power="pdudaemon", options={"pdu": "pdu-1", "port": "1"})
    add_device(site, "redfish-1", power="redfish", options={"redfish": f"http://{peer}"})
    add_device(site, "pinged---", power="command", probe="fping", options={"command": "switch"})
    for name in ("pdu", "redfish-1", "pinged---"):
        assert requests.get(f"{site.url}/api/device/{name}/power-off/", timeout=20).status_code == 200
        said[f"ping {name}"] = requests.get(f"{site.url}/api/device/{name}/ping/", timeout=20).text
    made = requests.post(
        f"{site.url}/api/device/device1/request/",
        json={
            "assignee": "me@example.com",
            "duration": 600,
            "image": "android",
            "wait": 60,
            "callback_url": f"http://user:{SECRET}-callback@{peer}/{SECRET}-callback?token={SECRET}-token",
        },
        timeout=20,
    )
    said["request"] = made.text
    requests.post(
        f"{site.url}/api/device/pdu/request/",
        json={"assignee": "me@example.com", "duration": 600, "image": "maintenance", "wait": 0},
        timeout=20,
    )

    def says(*words: str) -> bool:
        return all(word in site.log.read_text(errors="replace") for word in words)

    assert eventually(lambda: says("inventory", "pdu: ", "redfish-1: "), 60), site.tail()
    assert eventually(lambda: (tmp_path / "environments").exists(), 60), site.tail()
    assert eventually(lambda: bool(site.rows("SELECT id FROM outbox WHERE tries > 0")), 60), site.tail()

    # What is started meanwhile.
    for child in processes(pid):
        with suppress(OSError):
            for what in ("cmdline", "environ"):
                said[f"{what} of {child}"] = Path(f"/proc/{child}/{what}").read_bytes().decode(errors="replace")
    said["cmdline of the server"] = Path(f"/proc/{pid}/cmdline").read_text()
    said["environments of programs"] = (tmp_path / "environments").read_text()

    # The database turns the server away, with a message of its own.
    cut_off(mariadb, "another")
    ready = f"{site.url}/api/ready/"
    assert eventually(lambda: requests.get(ready, timeout=20).status_code == 503, 60)
    said["not ready"] = requests.get(ready, timeout=20).text
    said["database away"] = requests.get(f"{site.url}/api/device/list/", timeout=20).text
    said["page, database away"] = requests.get(f"{site.url}/devices", headers={"Accept": "text/html"}, timeout=20).text

    # So it does with all commands.
    for module, *arguments in (
        ("mozpool.cli.server", str(site.port + 1)),
        ("mozpool.cli.db", "check"),
        ("mozpool.cli.db", "upgrade"),
        ("mozpool.cli.inventorysync",),
        ("mozpool.cli.mld", "config-check"),
        ("mozpool.cli.server", "--test-notify", "chat"),
        ("mozpool.cli.server", "--test-notify", "mail"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**site.environment, **os.environ, "MOZPOOL_CONFIG": str(site.config)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said[" ".join((module, *arguments))] = done.stdout + done.stderr
    cut_off(mariadb, f"{SECRET}-database")
    assert eventually(lambda: requests.get(ready, timeout=20).status_code == 200, 60), site.tail()

    # A configuration that is wrong says so without what is secret in it.
    wrong = tmp_path / "wrong.ini"
    wrong.write_text(
        f"[database]\nengine = mysql://u:{SECRET}@h:port/x\n[notify a]\nevents = device_failed\nwebhook = {SECRET}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mozpool.cli.server", "--config", str(wrong)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    said["wrong configuration"] = done.stdout + done.stderr

    # All that can be asked for.
    number = made.json()["request"]["id"]
    for rule in bare_app().url_map.iter_rules():
        if "GET" in (rule.methods or ()) and not rule.endpoint.startswith(("files.", "static")):
            for name in ("device1", "pdu", "redfish-1", "relay-1", "failed"):
                known = {"name": name, "number": str(number), "event": "x", "report": "failed"}
                path = re.sub(r"<(?:[^<:>]+:)?([^>]+)>", lambda found: known.get(found[1], "x"), rule.rule)  # noqa: B023
                if path not in said and "power-off" not in path:
                    said[path] = requests.get(site.url + path, timeout=30).text
    site.stop_daemon()
    said["log"] = site.log.read_text(errors="replace")

    pattern = secrets()
    for place, text in said.items():
        found = pattern.search(text)
        assert not found, f"{place}: {text[max(0, found.start() - 300) : found.end() + 50]}"
    assert "request" in said["log"]
    assert "HOME=" in said["environments of programs"] or "PATH=" in said["environments of programs"]


def test_secrets_are_recognised_in_base64_too() -> None:
    pattern = secrets()
    for user in ("", "a", "ab", "abc", "admin"):
        assert pattern.search(base64.b64encode(f"{user}:{SECRET}-x".encode()).decode()), user
    assert not pattern.search("an answer without one")
