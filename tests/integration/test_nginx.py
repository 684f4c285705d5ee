# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""docs/nginx.conf in a real nginx, in front of a real daemon: by plain HTTP, and by https as its comments say."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter

from mozpool import resources
from mozpool.web.http import MAX_BODY
from tests.access_support import bearer, make_token
from tests.integration.mozpool_site import Site, eventually, free_ports
from tests.processes import end, mozpool_db, needs
from tests.receivers import certificate

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

BOARD, STRANGER = "127.0.0.7", "127.0.0.8"
"""From where a board and somebody else call."""

SHORT = 1
"""Seconds that nginx waits for slow clients here; in the sample they are more."""

LEAST = 3
"""How many calls of one address may be under way here."""


def program() -> str:
    """nginx, which lies where only root's PATH may lead."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    needs(None if found else "the Debian package nginx-light is missing")
    assert found is not None
    return found


def sample() -> str:
    """docs/nginx.conf with a server for https, made as its comments say."""
    assert resources.CHECKOUT is not None
    text = (resources.CHECKOUT / "docs" / "nginx.conf").read_text()
    plain, _, comments = text.partition("\n# Pages by https")
    listens = re.findall(r"^#    (.+)$", comments, re.M)
    assert listens[0] == "listen 443 ssl;"
    server = re.search(r"^server \{.+?^\}$", plain, re.M | re.S)
    assert server is not None
    encrypted = re.sub(r"( +listen .+\n)+", "".join(f"    {line}\n" for line in listens), server[0], count=1)
    return f"{plain}\n{encrypted}\n"


def placed(text: str, directory: Path, daemon: int, port: int) -> str:
    """The sample with this test's own ports (``port``, and for https the next one), files and, in part, limits."""
    changes = {
        "127.0.0.1:8080;": f"127.0.0.1:{daemon};",
        "listen 80;": f"listen 127.0.0.1:{port};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port + 1} ssl;",
        "listen [::]:80;": "",
        "listen [::]:443 ssl;": "",
        "/srv/mozpool/images/": f"{directory}/images/",
        "/etc/ssl/mozpool.pem": f"{directory}/cert.pem",
        "/etc/ssl/private/mozpool.key": f"{directory}/key.pem",
        "client_header_timeout 20s;": f"client_header_timeout {SHORT}s;",
        "client_body_timeout 20s;": f"client_body_timeout {SHORT}s;",
        "send_timeout 60s;": f"send_timeout {SHORT}s;",
        "limit_conn mozpool 500;": f"limit_conn mozpool {LEAST};",
    }
    for said, put in changes.items():
        assert said in text, said
        text = text.replace(said, put)
    temporary = "".join(
        f"{what}_temp_path {directory}/{what};\n" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
access_log off;
{temporary}{text}
}}
"""


class From(HTTPAdapter):
    """Calls from an address of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *arguments: object, **options: object) -> None:
        super().init_poolmanager(*arguments, source_address=(self._address, 0), **options)  # type: ignore[arg-type]


@dataclass
class Front:
    """nginx with the daemon behind it."""

    site: Site
    directory: Path
    port: int
    admin: dict[str, str]

    @property
    def plain(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def encrypted(self) -> str:
        return f"https://127.0.0.1:{self.port + 1}"

    def caller(self, address: str = "127.0.0.1") -> requests.Session:
        """A client at this address, which trusts the certificate."""
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.directory / "cert.pem")
        for scheme in ("http://", "https://"):
            session.mount(scheme, From(address))
        return session

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        """A connection from this address, by plain HTTP."""
        return socket.create_connection(("127.0.0.1", self.port), 20, source_address=(address, 0))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    nginx, directory = program(), tmp_path_factory.mktemp("nginx")
    directory.chmod(0o755)
    certificate(directory)
    (directory / "images").mkdir()
    (directory / "images" / "page.html").write_text("<script>alert(1)</script>")
    site = Site(directory, f"sqlite:///{directory}/mozpool.sqlite", boards=0, speed=1.0, seed=1)
    port = free_ports(4) + 2  # those of the daemon are still free
    public = f"https://127.0.0.1:{port + 1}"
    site.config.write_text(site.config.read_text() + f"[auth]\nmode = token\npublic_url = {public}\n")
    config = directory / "nginx.conf"
    # Started by root, its workers could not read pytest's directories as anybody else.
    user = "" if os.geteuid() else "user root;\n"
    config.write_text(user + placed(sample(), directory, site.port, port))
    checked = subprocess.run([nginx, "-t", "-c", config], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr, checked.stderr
    token = make_token(site.database, "root@example.com", "admin")
    with site, (directory / "nginx.log").open("wb") as log:
        mozpool_db(site.environment, "add-device", "board1", "--mac", "020000000001", "--address", BOARD)
        process = subprocess.Popen([nginx, "-c", config], stdout=log, stderr=log)
        try:
            here = Front(site, directory, port, bearer(token))
            assert eventually(lambda: answers(here), 20), (directory / "nginx.log").read_text()
            yield here
        finally:
            end(process)


def answers(front: Front) -> bool:
    """Whether nginx and the daemon are up."""
    try:
        return requests.get(f"{front.plain}/api/version/", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def test_callers_are_known_whatever_they_say_of_themselves(front: Front) -> None:
    """A device is known by its address, and the audit says from where a change came."""
    event = "/api/device/board1/event/mobile_init_started/"
    forged = {"X-Forwarded-For": BOARD, "X-Real-IP": BOARD, "Forwarded": f"for={BOARD}"}
    for url in (front.plain, front.encrypted):
        assert front.caller(BOARD).get(url + event, headers={"X-Forwarded-For": STRANGER}).status_code == 200
        for lists in (forged, {"X-Forwarded-For": f"{BOARD}, {BOARD}"}, {}):
            assert front.caller(STRANGER).get(url + event, headers=lists).status_code == 401
        comments = front.caller(STRANGER).post(
            f"{url}/api/device/board1/set-comments/", json={"comments": url}, headers={**front.admin, **forged}
        )
        assert comments.status_code == 200, comments.text
    # Who comes to the daemon past nginx is no proxy, unless it is on this very address.
    assert front.caller(STRANGER).get(front.site.url + event, headers=forged).status_code == 401
    addresses = front.site.rows("SELECT address FROM audit WHERE action = 'set_comments'")
    assert addresses == [(STRANGER,), (STRANGER,)]


def test_only_who_came_by_https_is_told_to_stay_with_it(front: Front) -> None:
    path = "/api/version/"
    plain = front.caller().get(front.plain + path, headers={"X-Forwarded-Proto": "https"})
    assert "Strict-Transport-Security" not in plain.headers
    encrypted = front.caller().get(front.encrypted + path, headers={"X-Forwarded-Proto": "http"})
    assert encrypted.headers["Strict-Transport-Security"] == "max-age=86400"
    assert encrypted.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    past = front.caller(STRANGER).get(front.site.url + path, headers={"X-Forwarded-Proto": "https"})
    assert "Strict-Transport-Security" not in past.headers
    for said in (plain, encrypted):
        assert said.headers["Server"] == "nginx"
        assert said.headers["X-Content-Type-Options"] == "nosniff"


def test_who_signs_on_gets_a_cookie_for_https_alone(front: Front) -> None:
    form = {"token": front.admin["Authorization"].removeprefix("Bearer ")}
    with front.caller() as browser:
        said = browser.post(
            f"{front.encrypted}/login", data=form, headers={"Origin": front.encrypted}, allow_redirects=False
        )
        assert said.status_code == 303, said.text
        kept = said.headers["Set-Cookie"]
        assert kept.startswith("__Host-mozpool_session=")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= set(kept.split("; "))
        assert browser.get(f"{front.encrypted}/tokens", headers={"Accept": "text/html"}).status_code == 200
        foreign = browser.post(f"{front.encrypted}/login", data=form, headers={"Origin": "https://evil.example.com"})
        assert foreign.status_code == 403


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "spoken"), [("TLSv1_1", None), ("TLSv1_2", "TLSv1.2"), ("MAXIMUM_SUPPORTED", "TLSv1.3")]
)
def test_old_tls_is_refused(front: Front, version: str, spoken: str | None) -> None:
    context = ssl.create_default_context(cafile=front.directory / "cert.pem")
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else this side would refuse
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion[version]
    with closing(socket.create_connection(("127.0.0.1", front.port + 1), 20)) as plain:
        if spoken is None:
            with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|protocol version"):
                context.wrap_socket(plain, server_hostname="127.0.0.1")
            return
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
            assert encrypted.version() == spoken


def test_bodies_that_are_too_large_do_not_get_to_the_daemon(front: Front) -> None:
    url = f"{front.plain}/api/device/board1/set-comments/"
    said = front.caller().post(url, data=b"x" * (MAX_BODY + 1), headers=front.admin)
    assert (said.status_code, said.headers["Content-Type"]) == (413, "text/html")
    said = front.caller().post(url, data=b"x" * (MAX_BODY - 1), headers=front.admin)
    assert said.headers["Content-Type"] == "application/json", "the daemon's own words"
    assert said.status_code == 413
    largest = {"comments": "x" * 60_000}
    assert front.caller().post(url, json=largest, headers=front.admin).status_code in (200, 400)


@pytest.mark.parametrize(
    "part",
    [
        b"GET /api/version/ HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /api/device/board1/set-comments/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    ],
    ids=["head", "body"],
)
def test_who_sends_too_slowly_is_cut_off_and_the_daemon_does_not_notice(front: Front, part: bytes) -> None:
    before = front.site.log.read_text()
    begun = time.monotonic()
    with front.connect(STRANGER) as slow:
        slow.sendall(part)
        assert front.caller().get(f"{front.plain}/api/version/", timeout=20).status_code == 200
        said = b"".join(iter(lambda: slow.recv(65536), b""))
    assert said == b"" or said.startswith(b"HTTP/1.1 408")
    assert SHORT * 0.9 <= time.monotonic() - begun < 20
    assert STRANGER not in front.site.log.read_text().removeprefix(before)


def test_one_address_does_not_have_all_connections(front: Front) -> None:
    """As long as calls of it are under way: the bodies of these never come."""
    part = b"POST /api/version/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    held = [front.connect(STRANGER) for _ in range(LEAST)]
    try:
        for connection in held:
            connection.sendall(part)
        statuses = set()

        def is_refused() -> bool:
            statuses.add(front.caller(STRANGER).get(f"{front.plain}/api/version/").status_code)
            return 429 in statuses

        assert eventually(is_refused, SHORT * 0.9), statuses
        assert front.caller(BOARD).get(f"{front.plain}/api/version/").status_code == 200
    finally:
        for connection in held:
            connection.close()
    assert eventually(lambda: front.caller(STRANGER).get(f"{front.plain}/api/version/").status_code == 200)


def test_images_are_files_and_no_pages(front: Front) -> None:
    said = front.caller().get(f"{front.plain}/images/page.html")
    assert (said.status_code, said.text) == (200, "<script>alert(1)</script>")
    assert said.headers["Content-Type"] == "application/octet-stream"
    assert said.headers["X-Content-Type-Options"] == "nosniff"
    assert said.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    for path in ("/images/../config.ini", "/images/%2e%2e/config.ini", "/images../config.ini"):
        with front.connect() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.split()[1] in (b"400", b"401", b"404"), path
        assert b"[database]" not in answer
