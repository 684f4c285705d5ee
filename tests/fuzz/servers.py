# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What other servers answer: imaging servers, receivers of webhooks, mail servers, whatever speaks HTTP."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mozpool.bmm import httpio
from mozpool.client import Client, ClientError
from mozpool.clock import Clock, Deadline
from mozpool.config import Email, Settings
from mozpool.db import images, schema
from mozpool.links import http_post
from mozpool.notify import webhook
from mozpool.notify.mail import Mailer, compose
from mozpool.notify.webhook import NotTaken
from mozpool.pool.link import LinkError
from mozpool.web.forward import HEADER
from mozpool.web.peers import Peers
from tests.app_fixtures import server
from tests.conftest import open_database
from tests.fuzz.engine import Target, fuzzer
from tests.fuzz.peers import SEPARATOR, HastyClock, Peer, no_errors_logged


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


DEEP = b"[" * 20_000

ANSWERS = [
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\nX: 1\r\n\r\n{"accepted": true}',
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n2;x=y\r\n1}\r\n0\r\nT: x\r\n\r\n',
    b'HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n folded: x\r\n\r\n{"a": 1}',
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nSet-Cookie: a=b; Max-Age=1; Path=/x\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: 5\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}",
]


@fuzzer(
    seeds=ANSWERS,
    raises=(httpio.CallError,),
    once_failed=[b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello"],
)
def http() -> Iterator[Target]:
    """HTTP as all backends, inventories, clouds, links and webhooks read it."""
    with Peer() as peer:
        url = f"http://127.0.0.1:{peer.port}/"

        def one(data: bytes) -> None:
            peer.says_exactly(data)
            with httpio.session(Deadline(Clock(), 20.0), 4096) as session:
                answer = session.get(url)
                assert len(answer.content) <= 4096

        yield one


@fuzzer(
    seeds=[*ANSWERS, b'{"accepted": false, "reason": "busy"}', b'409 {"error": {"code": "x"}}'],
    raises=(LinkError,),
    once_failed=[DEEP],
)
def imaging_server() -> Iterator[Target]:
    """What another imaging server answers to an event."""
    peers = Peers(Settings(), Clock())
    with Peer(http=True) as peer:

        def one(data: bytes) -> None:
            peer.says(data)
            said = http_post(peers, f"127.0.0.1:{peer.port}", "/api/device/d1/event/x/", {"a": 1})
            bool(said.get("accepted")), said.get("reason")

        yield one


@fuzzer(
    seeds=[
        *ANSWERS,
        b'200 {"comments": "x"}',
        b'404 {"error": {"code": "not_found", "message": "no"}}',
        b"204 ",
        b"500 ",
    ]
)
def forwarded_call() -> Iterator[Target]:
    """What another imaging server answers to a call that is made for a page."""
    with tempfile.TemporaryDirectory() as directory, Peer(http=True) as peer, no_errors_logged() as errors:
        database_url = f"sqlite:///{directory}/mozpool.sqlite"
        database = open_database(database_url)
        schema.create(database)
        database.dispose()
        with server(database_url, Path(directory)) as here:
            here.app.after_request_funcs[None].remove(here._compare)  # what the other one says is not described here
            name = f"127.0.0.1:{peer.port}"
            here.move("device1", here.daemon.database.run(lambda conn: images.ensure_imaging_server(conn, name)))

            def one(data: bytes) -> None:
                peer.says(data)
                here.post("/api/device/device1/power-cycle/", {}, headers={HEADER: "1"})
                assert not errors, errors

            yield one


@fuzzer(seeds=[*ANSWERS, b"410 gone", b"200 "], raises=(NotTaken,))
def webhook_receiver() -> Iterator[Target]:
    """What a receiver of a webhook answers."""
    with Peer(http=True) as peer:

        def one(data: bytes) -> None:
            peer.says(data)
            webhook.post(f"http://127.0.0.1:{peer.port}/hook", b"{}", {"X": "y"})

        yield one


HELLO = b"220 mail ESMTP\r\n"
EHLO = b"250-mail\r\n250-SIZE 1000\r\n250-AUTH PLAIN LOGIN CRAM-MD5\r\n250 8BITMIME\r\n"


@fuzzer(
    seeds=[
        SEPARATOR.join(
            (HELLO, EHLO, b"235 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", b"550 no\r\n", b"354 go\r\n", b"250 x\r\n")
        ),
        SEPARATOR.join((HELLO, EHLO, b"334 PDEyMzRAbWFpbD4=\r\n", b"235 ok\r\n", b"250 ok\r\n", b"550 no\r\n")),
        SEPARATOR.join((HELLO, b"502 no\r\n", b"250 mail\r\n")),
        b"554-busy\r\n554 later\r\n",
    ],
    raises=(NotTaken,),
)
def mail_server() -> Iterator[Target]:
    """What a mail server answers."""
    with Peer(speaks_first=True) as peer:
        settings = Email(host="127.0.0.1", port=peer.port, username="u", password="p", timeout=20.0)
        mailer = Mailer(settings)
        told = {"event": "x", "summary": "something", "text": "happened", "url": "http://x/"}
        mail = compose([told], sender="a@b.c", recipients=["d@e.f", "g@h.i"], identity="1", now=Clock().now())

        def one(data: bytes) -> None:
            peer.says(data)
            mailer(mail, ["d@e.f", "g@h.i"])

        yield one


REQUEST = {
    "id": 1,
    "requested_device": "any",
    "assigned_device": "device1",
    "assignee": "me@example.com",
    "expires": "2030-01-01T00:00:00",
    "environment": "any",
    "image": "b2g",
    "boot_config": '{"b2gbase": "x"}',
    "url": "http://x/api/request/1/",
    "state": "ready",
}
DEVICE = {
    "id": 1,
    "name": "device1",
    "fqdn": "device1.example.com",
    "state": "ready",
    "labels": {"pool": "b2g"},
    "relay_info": None,
    "request_id": None,
    "boot_config": None,
    "last_seen": "2030-01-01T00:00:00",
}
LOG = {"id": 1, "timestamp": "2030-01-01T00:00:00", "source": "bmm", "message": "x"}


def _asked(call: int, *answers: bytes) -> bytes:
    return bytes((call,)) + SEPARATOR.join(answers)


@fuzzer(
    seeds=[
        _asked(0, _json({"version": "5.0.0"})),
        _asked(1, _json({"devices": [DEVICE]})),
        _asked(2, _json(DEVICE)),
        _asked(3, _json({"requests": [REQUEST]})),
        _asked(4, _json({"request": REQUEST})),
        _asked(4, b"409 " + _json({"request": REQUEST})),
        _asked(5, _json({**REQUEST, "request": REQUEST})),
        _asked(6, _json({"state": "ready", "log": [LOG]})),
        _asked(7, b"204 "),
        _asked(8, _json({"output": "x", "return_code": 0})),
        _asked(9, _json({"images": [{"id": 1, "name": "b2g", "boot_config_keys": ["b2gbase"], "can_reuse": True}]})),
        _asked(10, _json({"log": [LOG]})),
        _asked(11, b"HTTP/1.1 302 Found\r\nLocation: /api/x\r\nContent-Length: 0\r\n\r\n", b"204 "),
        _asked(11, b"503 " + _json({"error": {"code": "database_away", "message": "away", "field": None}}), b"204 "),
        *(_asked(12, answer) for answer in ANSWERS),
    ],
    raises=(ClientError,),
    once_failed=[
        _asked(4, _json({"request": {**REQUEST, "id": None}})),
        _asked(12, b"null"),
        _asked(1, DEEP),
        _asked(10, _json({"log": [{**LOG, "timestamp": "0001-01-01T00:00+23:00"}]})),
        _asked(11, b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n"),
    ],
)
def client() -> Iterator[Target]:
    """What an imaging server answers to the client."""
    with Peer(http=True) as peer:
        clock = HastyClock()
        made = Client(f"127.0.0.1:{peer.port}", timeout=20.0, assignee="a@b.c", rng=random.Random(1), clock=clock)
        calls: list[Callable[[], Any]] = [
            made.version,
            made.devices,
            lambda: made.device("device1"),
            made.requests,
            lambda: made.request(image="b2g", duration=60, boot_config={"b2gbase": "x"}),
            lambda: made.get_request(1),
            lambda: made.status(1),
            lambda: made.return_request(1),
            lambda: made.agent_exec("device1", ["ls"]),
            made.images,
            lambda: made.log("device1"),
            lambda: made.renew(1, 60),
            made.pool_status,
            made.reports,
            lambda: made.report("usage"),
            made.environments,
        ]

        def one(data: bytes) -> None:
            peer.says(data[1:])
            calls[(data[0] if data else 0) % len(calls)]()

        yield one
