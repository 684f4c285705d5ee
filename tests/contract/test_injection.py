# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""SQL, markup, templates, headers, paths and log lines, put into every input that there is.

What inputs there are is not listed here. The API's description says it of the API; of pages, those keys of the address
count that they look for. Each input is tried with each kind of payload; ``MOZPOOL_LONG_TESTS=1`` tries all payloads.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, urlencode

import pytest
from flask import Request
from sqlalchemy import func, inspect, select
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from mozpool.apikit import OPERATION
from mozpool.cli.logs import FORMAT
from mozpool.db import tables
from mozpool.logbook import OneLineEach
from tests.app_fixtures import Server, add_relay_board, server

LONG = bool(os.environ.get("MOZPOOL_LONG_TESTS"))

SECRET = "what no caller is to read"
FORGED = "2026-01-01 00:00:00,000 ERROR mozpool: forged"

PAYLOADS: dict[str, tuple[str, ...]] = {
    "sql": (
        "' OR '1'='1",
        "device1'; DROP TABLE devices; -- ",
        "x' UNION SELECT name, name, name FROM devices -- ",
        '" OR ""="',
        "\\'; DELETE FROM devices; -- ",
        "1 OR 1=1",
        "1; UPDATE devices SET comments = 'taken'",
        "%' OR name LIKE '%",
        "1' AND SLEEP(30) -- ",
        "1) OR (1=1",
        "0x27 OR 1=1 /*",
        "nobody\N{MODIFIER LETTER APOSTROPHE} OR 1=1",
    ),
    "template": (
        "{{719171*7777771}}",
        "{% for x in (1,) %}zq{{ x }}zq{% endfor %}",
        "${719171*7777771}",
        "#{719171*7777771}",
        "{{config.items()}}{{719171*7777771}}",
        "%(message)s %s %d {0} {message.__class__}",
    ),
    "markup": (
        '"><script>zq9()</script>',
        "'><img src=x onerror=zq9()>",
        "javascript:zq9()",
        "</title><svg/onload=zq9()>",
        "</textarea><script>zq9()</script>",
        "--></script><script>zq9()</script>",
        '" autofocus onfocus="zq9()',
        "`<b onclick=zq9()>`",
    ),
    "header": (
        "x\r\nX-Injected: zq9\r\n\r\n<html>",
        "x\nSet-Cookie: zq9=1",
        "x\rX-Injected: zq9",
        "x\N{LINE SEPARATOR}X-Injected: zq9",
    ),
    "path": (
        "../../../../../../etc/passwd",
        "../secret.txt",
        "..%2fsecret.txt",
        "..\\secret.txt",
        "....//secret.txt",
        "/etc/passwd",
        "file:///etc/passwd",
        "secret.txt\0.img",
        "01-02-00-00-00-00-01/../../secret.txt",
        ".",
        "..",
    ),
    "log": (
        f"x\n{FORGED}",
        f"x\r\n{FORGED}",
        f"x\r{FORGED}",
        f"x\x85{FORGED}",
        f"x\N{LINE SEPARATOR}{FORGED}",
        f"x\x1b[2J\x1b]0;zq9\x07{FORGED}",
        "\N{RIGHT-TO-LEFT OVERRIDE}degrof",
        "\ud800half",
    ),
}

HEADERS = (
    "Accept",
    "Accept-Language",
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Cookie",
    "Host",
    "Idempotency-Key",
    "If-Modified-Since",
    "If-None-Match",
    "Mozpool-Forward",
    "Mozpool-Part",
    "Origin",
    "Range",
    "Referer",
    "User-Agent",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
)

MAY_FAIL = re.compile(r"/(ping|test|health|ready|verify|exec|check)/")
"""Calls that may say 502 or 503 here, where no board answers and the server has not been started."""

CANARY = "canary"
"""The device, image, PXE config, hardware type and environment that no call names: nothing may happen to them."""


class Seen(ImmutableMultiDict[str, str]):
    """A query that notes which keys somebody looks for."""

    keys_seen: ClassVar[set[str]] = set()

    def get(self, key: str, *args: Any, **options: Any) -> Any:
        self.keys_seen.add(key)
        return super().get(key, *args, **options)

    def getlist(self, key: str, *args: Any, **options: Any) -> Any:
        self.keys_seen.add(key)
        return super().getlist(key, *args, **options)

    def __getitem__(self, key: str) -> Any:
        self.keys_seen.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.keys_seen.add(str(key))
        return super().__contains__(key)


class Watched(Request):
    """A request whose query notes that."""

    parameter_storage_class = Seen


class Page(HTMLParser):
    """Looks for what a browser would run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.runs: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text = self.get_starttag_text() or tag
        for name, value in attrs:
            leads = name in ("href", "src", "action", "formaction", "data", "xlink:href")
            if name.startswith("on") or (leads and re.match(r"\s*(javascript|data|vbscript):", value or "", re.I)):
                self.runs.append(text)
        if tag == "script" and not (dict(attrs).get("src") or "").startswith("/static/"):
            self.runs.append(text)


class Attack:
    """Calls a server with payloads and looks at each answer."""

    def __init__(self, site: Server) -> None:
        self.site = site
        self.calls = 0
        self._turn = {kind: itertools.cycle(all_of) for kind, all_of in PAYLOADS.items()}

    def payloads(self, *all_of_kinds: str) -> Iterator[tuple[str, str]]:
        """What the next input is tried with: one of each kind, or all."""
        for kind, all_of in PAYLOADS.items():
            for payload in all_of if LONG or kind in all_of_kinds else (next(self._turn[kind]),):
                yield kind, payload

    def call(
        self, kind: str, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """Make a call; whatever is in it, the answer is a good one."""
        self.calls += 1
        begun = time.monotonic()
        # Pages are asked for as a browser does, so that errors are pages, too.
        wanted = {} if path.startswith("/api/") else {"Accept": "text/html"}
        data = None if body is None else json.dumps(body)
        said = self.site.client.open(path, method=method, data=data, headers={**wanted, **(headers or {})})
        place = f"{method} {path} {body} {headers}: {said.status_code}"
        assert time.monotonic() - begun < 20, place
        if not MAY_FAIL.search(path):
            assert said.status_code < 500, f"{place} {said.text[:500]}"
        assert said.status_code != 500, place
        names = {name.lower() for name, _ in said.headers}
        assert "x-injected" not in names, place
        assert not any("zq9=" in cookie for cookie in said.headers.getlist("Set-Cookie")), place
        for name, value in said.headers:
            assert not re.search(r"[\r\n\x85\u2028]", name + value), place
        text = said.get_data().decode("utf-8", "replace")
        assert SECRET not in text, place
        assert "root:x:0:0" not in text, place
        assert "5593547347841" not in text, place
        assert "zq1zq" not in text, place
        if said.mimetype == "text/html":
            assert not Page(text).runs, f"{place} {Page(text).runs}"
        if kind == "sql" and said.status_code == 200 and said.is_json:
            self.compare(place, path, said.get_json())
        said.close()
        return said

    def compare(self, place: str, path: str, found: Any) -> None:
        """A filter that says SQL finds nothing."""
        address, _, query = path.partition("?")
        shown = {"/api/device/list/": "devices", "/api/request/list/": "requests"}.get(address)
        filters = set(parse_qs(query)) - {"details", "cache", "limit", "cursor", "include_closed", "claimed"}
        if shown is not None and filters:
            assert found[shown] == [], place


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "secret.txt").write_text(SECRET)
    store = tmp_path / "store"
    store.mkdir()
    (store / "some.img").write_text("an image")
    with server(database_url, tmp_path, paths={"image_store": store}) as made:
        made.app.request_class = Watched
        add_relay_board(made, "relay-x", "127.254.0.9")
        for path, body in (
            ("/api/image/create/", {"name": CANARY}),
            ("/api/bmm/pxe_config/create/", {"name": CANARY, "description": "x", "contents": "y"}),
            ("/api/hardware_type/create/", {"type": CANARY, "model": CANARY}),
        ):
            assert made.post(path, body).status_code == 200
        made.change("device3", name=CANARY, environment=CANARY, comments=CANARY, state="locked_out")
        yield made


def canaries(site: Server) -> list[Any]:
    """All rows of what no call names, and which tables and columns there are."""
    found: list[Any] = []
    with site.daemon.database.read() as conn:
        for table, column in (
            (tables.devices, "name"),
            (tables.images, "name"),
            (tables.pxe_configs, "name"),
            (tables.hardware_types, "type"),
        ):
            found.append([tuple(row) for row in conn.execute(select(table).where(table.c[column] == CANARY))])
            assert found[-1], table.name
        found.append([tuple(row) for row in conn.execute(select(tables.imaging_servers))])
        found.append(conn.scalar(select(func.count()).select_from(tables.devices)))
        look = inspect(conn)
        found.append({name: sorted(c["name"] for c in look.get_columns(name)) for name in look.get_table_names()})
    return found


def files_of(directory: Path) -> set[str]:
    """All files below, without those of the database and those that belong to devices' boots."""
    return {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and "sqlite" not in path.name and not re.fullmatch(r"01(-[0-9a-f]{2}){6}", path.name)
    }


KNOWN = {
    "device": "device1",
    "assignee": "me@example.com",
    "image": "b2g",
    "status": "offline",
    "event": "nothing",
    "old": "ready",
    "new": "ready",
    "report": "failed",
    "mac": "02-00-00-00-00-01",
    "filename": "css/mozpool.css",
}


NAMES = (
    ("/api/bmm/", "spare"),
    ("/api/image/", "spare"),
    ("/api/relay/", "relay-x"),
    ("/images/", "some.img"),
    ("/machines/", "device"),
    ("/pxe-configs/", "spare"),
    ("/relays/", "relay-x"),
    ("/reports/", "failed"),
    ("/scripts/", "mozpool.sh"),
    ("/api/team/", "team"),
)
"""What NAME stands for below these paths; elsewhere it is a device's."""


def sensible(name: str, path: str, request_number: int) -> str:
    """Something that there is, for what stands in a path."""
    if name == "number" and "/request" in path:
        return str(request_number)
    if name == "name":
        for part, known in NAMES:
            if path.startswith(part):
                return known
        return "device1"
    return KNOWN.get(name, "1")


def filled(rule: Rule, number: int, wrong: str | None = None, payload: str = "") -> str:
    """An address of a rule, with the payload in place of one part."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        text = payload if name == wrong else sensible(name, rule.rule, number)
        # Payloads are sent as they are said here, or percent-encoded as a whole: slashes separate only in the latter.
        return quote(text.encode("utf-8", "surrogatepass"), safe="%" if name == wrong else "/")

    return re.sub(r"<(?:[^<:>]+:)?([^>]+)>", value, rule.rule)


def body_fields(app: Any, rule: Rule) -> Mapping[str, Any]:
    """The example of a call's body, with the fields that it lacks."""
    operation = getattr(app.view_functions[rule.endpoint], OPERATION, None)
    if operation is None or operation.body is None:
        return {}
    fields = dict.fromkeys(operation.body.model_fields)
    return {**fields, **(operation.example or {})}


def placed(fields: Mapping[str, Any], payload: str) -> Iterator[dict[str, Any]]:
    """Bodies with the payload in one place: a field, what is in it, its name."""
    for name, value in fields.items():
        yield {**fields, name: payload}
        if isinstance(value, dict):
            yield {**fields, name: {**value, payload: "x"}}
            yield {**fields, name: dict.fromkeys(value, payload)}
        if isinstance(value, list) or name in ("boot_config_keys", "command"):
            yield {**fields, name: [payload]}
    yield {**fields, payload: payload}


@contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the process would have written to its log, when this is over."""
    caplog.set_level(logging.DEBUG, "mozpool")
    lines: list[str] = []
    yield lines
    form = OneLineEach(FORMAT)
    for record in caplog.records:
        lines += form.format(record).split("\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whatever_is_put_into_any_input_stays_what_it_is(
    site: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.app.extensions["mozpool.site"].long_polls._free = threading.BoundedSemaphore(1)
    attack = Attack(site)
    before, files = canaries(site), files_of(tmp_path)
    with logged(caplog) as lines, site.app.extensions["mozpool.site"].long_polls.slot(1):  # nobody waits
        for rule in site.app.url_map.iter_rules():
            for method in sorted((rule.methods or set()) & {"GET", "POST"}):
                attack_rule(attack, rule, method)
    assert attack.calls > 2000
    assert canaries(site) == before
    assert files_of(tmp_path) == files
    assert (tmp_path / "secret.txt").read_text() == SECRET
    # Lines of the process's log begin as its own do, and hold nothing that steers a terminal.
    assert len(lines) > 500
    for line in lines:
        assert line.startswith("    ") or re.match(r"20\d\d-\d\d-\d\d [\d:]{8},\d{3} [A-Z]+ mozpool", line), line
        assert not line.startswith(FORGED), line
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u202e]", line), line
    # So do those of devices and requests.
    site.daemon.logbook.flush()
    with site.daemon.database.read() as conn:
        for table in (tables.device_logs, tables.request_logs):
            for message in conn.scalars(select(table.c.message)):
                assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u202e]", message), message
    # What was stored is shown by all pages, and runs in none.
    for rule in site.app.url_map.iter_rules():
        if rule.endpoint.startswith("pages."):
            for part in ({}, {"Mozpool-Part": "1"}):
                attack.call("markup", "GET", filled(rule, 1), headers=part)


def attack_rule(attack: Attack, rule: Rule, method: str) -> None:
    """Put payloads into each part of the address, the query, the body and the headers of one route."""
    site = attack.site
    number = an_open_request(site)
    make_spares(site)
    path = filled(rule, number)
    Seen.keys_seen = set()
    with site.client.open(path, method=method, data="{}" if method == "POST" else None) as said:
        # What stands there in place of payloads leads to what they are meant for; nobody has signed on in mode open.
        assert said.status_code != 404 or path.startswith(("/api/session/", "/api/token/")), path
    keys = set(Seen.keys_seen)
    operation = getattr(site.app.view_functions[rule.endpoint], OPERATION, None)
    if operation is not None and operation.query is not None:
        keys |= set(operation.query.model_fields)
    fields = body_fields(site.app, rule) if method == "POST" else {}
    for name in re.findall(r"<(?:[^<:>]+:)?([^>]+)>", rule.rule):
        for kind, payload in attack.payloads("path"):
            attack.call(kind, method, filled(rule, number, name, payload), body=fields or None)
    for key in sorted(keys):
        for kind, payload in attack.payloads():
            query = urlencode({key: payload}, errors="surrogatepass")
            attack.call(kind, method, f"{path}?{query}", body=fields or None)
    if method == "POST":
        for kind, payload in attack.payloads():
            for body in placed(fields, payload):
                if path.startswith(("/api/bmm/", "/api/image/")):
                    make_spares(site)
                attack.call(kind, method, path, body=body)
    for header in HEADERS if LONG or not rule.endpoint.startswith("pages.") else ("Cookie", "Host", "If-None-Match"):
        kind, payload = next(itertools.islice(attack.payloads(), attack.calls % 6, None))
        # Line ends can't be in what a server takes for a header; what remains of them can.
        text = re.sub(r"[\r\n\0]", " ", payload).encode("utf-8", "replace").decode("latin-1")
        text = f"mozpool_me={quote(payload.encode('utf-8', 'replace'))}" if header == "Cookie" else text
        attack.call(kind, method, path, body=fields or None, headers={header: text})


def make_spares(site: Server) -> None:
    """Make an image and a PXE config that may be changed and deleted, if they are not there."""
    site.post("/api/image/create/", {"name": "spare"})
    site.post("/api/team/create/", {"name": "team"})
    site.post("/api/bmm/pxe_config/create/", {"name": "spare", "description": "x", "contents": "y"})


def an_open_request(site: Server) -> int:
    """The id of a request that has device1."""
    device = site.device("device1")
    if device.claim_id is None or device.request_id is None:
        site.change("device1", state="ready", environment="production", claim_id=None)
        answer = site.ask("device1")
        number: int = answer.get_json().get("request", {}).get("id", 1)
        return number
    return device.request_id
