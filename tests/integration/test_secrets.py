# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A real server whose every secret can be recognised, and whose peers all fail and quote what they were sent.

None of the secrets may be in its log, in an answer, in the audit, in the arguments of a process, in the environment of
one that it starts, or in what a command prints. The server asks who calls: an administrator, who may read everything.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
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
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from sqlalchemy import insert, update

from mozpool.config import ConfigError, Named, Setting, Settings, load
from mozpool.db import tables
from mozpool.web.app import bare_app
from mozpool.web.forward import HEADER
from tests.integration.mozpool_site import Site, eventually
from tests.mariadb import MariaDB
from tests.processes import children, mozpool_db
from tests.receivers import mail_server

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow, pytest.mark.mysql]

SECRET = "S3CR3T"
"""What each secret begins with."""


PROVIDER = "/provider"
"""Where the OpenID provider is looked for."""

TASKCLUSTER = "t_lambda_a55"
"""The variable of the project's Taskcluster token, named like its worker type."""


def secrets(*others: str) -> re.Pattern[str]:
    """Finds a secret, or one in base64, wherever that begins in it: as "Basic" log-ins are written; and the others."""
    # The letters that what stands before and behind has a part in are left out.
    inside = []
    for before, (first, last) in enumerate(((0, 8), (2, 9), (3, 10))):
        inside.append(base64.b64encode(b"x" * before + SECRET.encode() + b"x").decode()[first:last])
    return re.compile("|".join([SECRET, *map(re.escape, [*inside, *others])]))


class Gossip:
    """A server that refuses everything, and says all that it was sent."""

    def __init__(self, host: str) -> None:
        self.host = host
        """And its port."""
        self.reports: list[str] = []
        """What it was sent as Sentry."""


@contextmanager
def gossip() -> Iterator[Gossip]:
    """One that is up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path.startswith("/api/1/"):
                here.reports.append(body.decode())
            sent = f"{self.requestline}\n{self.headers}\n{body.decode('latin-1')}"
            said: dict[str, Any] = {"detail": sent, "error": {"message": sent}, "message": sent, "title": sent}
            status = 400
            if self.path.startswith(PROVIDER):
                # As an OpenID provider it does not refuse before it was sent the secret.
                status, said = 200, {"issuer": f"http://{here.host}{PROVIDER}"}
                said |= {f"{name}_endpoint": f"http://{here.host}/{name}" for name in ("authorization", "token")}
            elif self.path == "/token":
                said["error"] = str(self.headers["Authorization"])
            answer = json.dumps(said).encode()
            self.send_response(status, re.sub(r"[^ -~]", " ", sent)[:2000])
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Sent", re.sub(r"[^ -~]", " ", sent)[:2000])
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Gossip(f"127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def sections(peer: str, mail_port: int, spy: Path, projects: Path, scripts: Path, audit: Path) -> str:
    """The part of the configuration that has the secrets, but that of the database."""
    return f"""
[auth]
mode = oidc
device_events = token
server_key = {SECRET}-server-key-{32 * "k"}
server_key_before = {SECRET}-server-key-before-{32 * "k"}
audit_log = {audit}
oidc_issuer = http://{peer}{PROVIDER}
oidc_client_id = mozpool
oidc_client_secret = {SECRET}-oidc
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
def peer() -> Iterator[Gossip]:
    with gossip() as peer:
        yield peer


@pytest.fixture
def site(account: str, peer: Gossip, tmp_path: Path) -> Iterator[Site]:
    seen = tmp_path / "environments"
    spy = program(tmp_path / "spy", f"tr '\\0' '\\n' </proc/self/environ >>{seen}; env >>{seen}; exit 3")
    projects = tmp_path / "lambdatest.yml"
    projects.write_text(
        "global:\n  contract_device_count: 1\nprojects:\n  defaults:\n    TASKCLUSTER_CLIENT_ID: me\n"
        "    USER_SCRIPTS_VERSION: '1'\n  a55-perf:\n    TC_WORKER_TYPE: t-lambda-a55\n"
        "device_groups:\n  a55-perf:\n    A55-1-1:\n"
    )
    scripts = tmp_path / "scripts"
    (scripts / "1").mkdir(parents=True)
    with mail_server(password="another") as mail:
        site = Site(tmp_path, account, boards=1, speed=20.0, seed=3, reliable=True)
        text = site.config.read_text().replace("[paths]", "heartbeat_interval = 0.5\naway_after = 3\n[paths]")
        text += sections(peer.host, mail.port, spy, projects, scripts, tmp_path / "audit.jsonl")
        site.config.write_text(text)
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
    mozpool_db(site.environment, "add-device", name, "--mac", f"0200000001{len(name):02x}", "--address", "127.254.0.9")
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
    text = f"engine = mysql://leaky:{SECRET}-database@h/x\n{sections('h:1', 25, *4 * [nowhere])}"
    for section in dataclasses.fields(Settings):
        named = section.metadata.get("named")
        found = named.section if isinstance(named, Named) else section.default_factory
        for field in dataclasses.fields(found) if isinstance(found, type) and dataclasses.is_dataclass(found) else ():
            setting = field.metadata.get("setting")
            if isinstance(setting, Setting) and setting.secret and field.name != "access_key":
                assert re.search(rf"^{field.name} = .*{SECRET}", text, re.M), field.name


def run(site: Site, module: str, *arguments: str, **environment: str) -> str:
    """All that one of our programs prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**site.environment, **os.environ, "MOZPOOL_CONFIG": str(site.config), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


COMMANDS = [
    ("mozpool.cli.db", "check"),
    ("mozpool.cli.db", "grants", "--host", "127.0.0.1"),
    ("mozpool.cli.inventorysync",),
    ("mozpool.cli.mld", "config-check"),
    ("mozpool.cli.netboot", "check"),
    ("mozpool.cli.pxeconfig", "show", "android"),
    ("mozpool.cli.server", "--test-notify", "chat"),
    ("mozpool.cli.server", "--test-notify", "mail"),
    ("mozpool.client.cli", "audit", "--limit", "1000", "--csv"),
    ("mozpool.client.cli", "check"),
    ("mozpool.client.cli", "log", "device1"),
    ("mozpool.client.cli", "requests"),
    ("mozpool.client.cli", "token", "list"),
    ("mozpool.client.cli", "token", "show"),
]
"""What is run while the server works: module and arguments."""


def boot_token(site: Site) -> str | None:
    """The token of a boot that is under way."""
    for path in (site.tftp / "pxelinux.cfg").glob("01-*"):
        with suppress(OSError):
            if found := re.search(r"mozpool-token=(\S+)", path.read_text()):
                return found[1]
    return None


class Calls:
    """Calls the server in the name of an administrator, and keeps what is answered."""

    def __init__(self, site: Site, said: dict[str, str]) -> None:
        self._site = site
        self._said = said
        output = run(site, "mozpool.cli.db", "create-token", "root@example.com", "--role", "admin")
        self.token = re.findall(r"mozpool_\d+_\S+", output)[0]
        self.http = requests.Session()
        self.http.headers["Authorization"] = f"Bearer {self.token}"

    def get(self, path: str, **headers: str) -> requests.Response:
        answer = self.http.get(self._site.url + path, headers=headers, timeout=30, allow_redirects=False)
        self._said[f"GET {path} {headers}"] = f"{answer.headers}\n{answer.text}"
        return answer

    def post(self, path: str, body: object, *, keep: bool = True, **headers: str) -> requests.Response:
        """``keep``: what is answered to whoever sent a secret may quote it."""
        answer = self.http.post(self._site.url + path, json=body, headers=headers, timeout=30, allow_redirects=False)
        if keep:
            self._said[f"POST {path} {body} {headers}"] = f"{answer.headers}\n{answer.text}"
        return answer


def sign_on(site: Site, peer: Gossip, calls: Calls, said: dict[str, str]) -> str:
    """Try to sign on through the provider, which refuses; sign on with a token: the session's secret."""
    browser = requests.Session()
    begun = browser.get(f"{site.url}/login/start", timeout=20, allow_redirects=False)
    assert begun.headers["Location"].startswith(f"http://{peer.host}/authorization?"), begun.text
    said["to the provider"] = begun.headers["Location"]
    state = parse_qs(urlsplit(begun.headers["Location"]).query)["state"][0]
    path = f"/login/return?code={SECRET}-code&state={state}"
    back = browser.get(site.url + path, headers={"Accept": "text/html"}, timeout=20)
    assert back.status_code == 403, back.text
    said["back from the provider"] = back.text
    form = {"token": calls.token}
    signed = browser.post(f"{site.url}/login", data=form, headers={"Origin": site.url}, timeout=20)
    assert signed.status_code == 200, signed.text
    for page in ("sessions", "tokens", "audit"):
        shown = browser.get(f"{site.url}/{page}", headers={"Accept": "text/html"}, timeout=20)
        assert shown.status_code == 200, shown.text
        said[f"page {page}"] = shown.text
    return str(browser.cookies["mozpool_session"])


def send_secrets(site: Site, calls: Calls) -> None:
    """Calls in which secrets stand, right and wrong ones: they are in no log and not in the audit."""
    event = "/api/device/device1/event/maint_mode/"
    for header in ("Bearer mozpool_1_{}", "Bearer {}", "Basic {}", "Mozpool-Server {}", "{}"):
        bad = {"Authorization": header.format(f"{SECRET}-{20 * 'x'}")}
        assert requests.get(f"{site.url}/api/whoami/", headers=bad, timeout=20).status_code == 401
    for headers, query in (({}, f"?token={SECRET}-boot"), ({"Mozpool-Boot-Token": f"{SECRET}-boot"}, "")):
        assert requests.get(f"{site.url}{event}{query}", headers=headers, timeout=20).status_code == 401
    requests.get(f"{site.url}/no-such-page?token={SECRET}-query", timeout=20)
    requests.post(f"{site.url}/login", data={"token": f"{SECRET}-form"}, headers={"Origin": site.url}, timeout=20)
    requests.post(f"{site.url}/api/token/create/", data=f"{SECRET}-no-json", timeout=20)
    requests.get(f"{site.url}/api/device/list/", cookies={"mozpool_session": f"{SECRET}-session"}, timeout=20)
    command = ["curl", "--password", f"{SECRET}-word", "-H", f"Authorization: Token {SECRET}-header"]
    for body in (
        {"command": [*command, f"http://me:{SECRET}-user@h/?token={SECRET}-query"], "timeout": 1},
        {"command": command, "timeout": "soon", "password": f"{SECRET}-unknown"},
    ):
        calls.post("/api/device/device1/agent/exec/", body, keep=False)
    calls.post("/api/device/device1/request/", {"callback_url": f"ftp://x/{SECRET}-callback"}, keep=False)
    calls.post("/api/image/create/", {"name": "x", "token": f"{SECRET}-key"}, keep=False)


def test_no_secret_gets_out(site: Site, peer: Gossip, mariadb: MariaDB, tmp_path: Path) -> None:
    assert site.daemon is not None
    pid = site.daemon.pid
    said: dict[str, str] = {}
    calls = Calls(site, said)
    others = [calls.token[-20:]]

    # Every peer is asked for something, and fails.
    add_device(site, "pdu", power="pdudaemon", options={"pdu": "pdu-1", "port": "1"})
    add_device(site, "redfish-1", power="redfish", options={"redfish": f"http://{peer.host}"})
    add_device(site, "pinged---", power="command", probe="fping", options={"command": "switch"})
    for name in ("pdu", "redfish-1", "pinged---"):
        assert calls.post(f"/api/device/{name}/power-off/", {}).status_code == 200
        calls.get(f"/api/device/{name}/ping/")
    made = calls.post(
        "/api/device/device1/request/",
        {
            "assignee": "me@example.com",
            "duration": 600,
            "image": "android",
            "wait": 60,
            "callback_url": f"http://user:{SECRET}-callback@{peer.host}/{SECRET}-callback?token={SECRET}-token",
        },
    )
    assert made.status_code == 200, made.text
    assert eventually(lambda: boot_token(site) is not None, 60), site.tail()
    others.append(str(boot_token(site)))
    lost = {"assignee": "me@example.com", "duration": 600, "image": "maintenance", "wait": 0}
    calls.post("/api/device/pdu/request/", lost)
    send_secrets(site, calls)
    others.append(sign_on(site, peer, calls, said))
    of_builder = calls.post("/api/token/create/", {"name": "builder", "role": "user"}, keep=False).json()["token"]
    others.append(of_builder["token"][-20:])
    calls.post(f"/api/token/{of_builder['id']}/revoke/", {})

    # As an imaging server: what is passed on to it is signed with the key.
    with site.database.begin() as conn:
        other = conn.execute(insert(tables.imaging_servers).values(fqdn=peer.host)).inserted_primary_key
        assert other is not None
        conn.execute(update(tables.devices).where(tables.devices.c.name == "pdu").values(imaging_server_id=other[0]))
    passed_on = calls.post(
        "/api/device/pdu/power-cycle/", {"pxe_config": f"{SECRET}-body"}, keep=False, **{HEADER: "1"}
    )
    assert "POST /api/device/pdu/power-cycle/" in passed_on.text
    said["passed on"] = passed_on.text.replace(f"{SECRET}-body", "")

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
    for command in COMMANDS:
        said[" ".join(command)] = run(site, *command, MOZPOOL_SERVERS=site.url, MOZPOOL_TOKEN=calls.token)
    said["token in the arguments"] = run(
        site, "mozpool.client.cli", "--server", f"http://u:{SECRET}-user@127.0.0.1:1", "devices"
    )

    # The database turns the server away, with a message of its own.
    cut_off(mariadb, "another")
    ready = f"{site.url}/api/ready/"
    assert eventually(lambda: requests.get(ready, timeout=20).status_code == 503, 60)
    calls.get("/api/ready/")
    calls.get("/api/device/list/?away")
    calls.get("/devices?away", Accept="text/html")

    # So it does with all commands.
    for module, *arguments in (
        ("mozpool.cli.server", str(site.port + 1)),
        ("mozpool.cli.db", "check"),
        ("mozpool.cli.db", "upgrade"),
        ("mozpool.cli.db", "create-token", "x", "--role", "user"),
        ("mozpool.cli.inventorysync",),
        ("mozpool.cli.mld", "config-check"),
        ("mozpool.cli.pxeconfig", "list"),
        ("mozpool.cli.server", "--test-notify", "chat"),
        ("mozpool.cli.server", "--test-notify", "mail"),
    ):
        said[f"{module} {arguments}, database away"] = run(site, module, *arguments)
    cut_off(mariadb, f"{SECRET}-database")
    assert eventually(lambda: requests.get(ready, timeout=20).status_code == 200, 60), site.tail()

    # All that can be asked for, by somebody who may.
    number = made.json()["request"]["id"]
    asked: set[str] = set()
    for rule in bare_app().url_map.iter_rules():
        if "GET" in (rule.methods or ()) and not rule.endpoint.startswith(("files.", "static")):
            for name in ("device1", "pdu", "redfish-1", "relay-1", "failed", "android"):
                known = {"name": name, "number": str(number), "event": "x", "report": "failed"}
                path = re.sub(r"<(?:[^<:>]+:)?([^>]+)>", lambda found: known.get(found[1], "x"), rule.rule)  # noqa: B023
                if "power-off" not in path and path not in asked:
                    asked.add(path)
                    assert calls.get(path, Accept="*/*").status_code not in (401, 500), path
    audited = calls.get("/api/audit/?limit=1000").json()["entries"]
    site.stop_daemon()
    said["log"] = site.log.read_text(errors="replace")
    said["audit_log"] = (tmp_path / "audit.jsonl").read_text()
    said["sentry"] = "".join(peer.reports).replace(f"{SECRET}dsn", "")

    pattern = secrets(*others)
    found = [(place, said[place], pattern.search(said[place])) for place in said]
    assert [f"{place}: {text[max(0, at.start() - 200) : at.end() + 40]}" for place, text, at in found if at] == []
    assert "request" in said["log"]
    assert "HOME=" in said["environments of programs"] or "PATH=" in said["environments of programs"]
    assert {"request_device", "token_create", "agent_exec", "power_off", "sign_on"} <= {
        row["action"] for row in audited
    }
    assert '"action": "agent_exec"' in said["audit_log"]
    assert '"exception"' in said["sentry"] or '"logentry"' in said["sentry"]
    assert "root@example.com" in said["mozpool.client.cli token list"]


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("database", "engine", f"mysql://u:{SECRET}@h:port/x"),
        ("database", "engine", f"oracle://u:{SECRET}@h/x"),
        ("auth", "server_key", SECRET),
        ("auth", "server_key_before", f"{SECRET} {32 * 'x'}"),
        ("inventory", "url", f"ftp://u:{SECRET}@h/"),
        ("inventory", "url", f"http://h/?{SECRET}"),
        ("notify a", "webhook", f"ftp://{SECRET}@h/"),
        ("lambdatest", "access-key", SECRET),
        ("lambdatest", "stray", f"\n{SECRET} = x"),
    ],
)
def test_a_wrong_configuration_is_told_without_its_secrets(tmp_path: Path, section: str, key: str, value: str) -> None:
    wrong = tmp_path / "wrong.ini"
    wrong.write_text(f"[{section}]\n{key} = {value}\n")
    with pytest.raises(ConfigError) as raised:
        load(wrong)
    assert f"[{section}] {key}: " in str(raised.value)
    assert SECRET not in str(raised.value)


def test_secrets_are_recognised_in_base64_too() -> None:
    pattern = secrets()
    for user in ("", "a", "ab", "abc", "admin"):
        assert pattern.search(base64.b64encode(f"{user}:{SECRET}-x".encode()).decode()), user
    assert not pattern.search("an answer without one")
