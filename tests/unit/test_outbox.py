# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The outbox of a real server over a real database: what it tells real receivers, who may be difficult."""

from __future__ import annotations

import hashlib
import hmac
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from mozpool.clock import Clock
from mozpool.config import NotifyTarget
from mozpool.daemon import Daemon
from mozpool.db import outbox as rows
from mozpool.db import servers, tables, upkeep
from mozpool.db.engine import Database
from mozpool.db.outbox import Letter
from mozpool.notify import outbox
from mozpool.notify.events import Event, server_away, server_back
from mozpool.pool import notices
from tests.app_fixtures import Server, add_relay_board, server
from tests.factories import NOW
from tests.processes import free_port
from tests.receivers import Listener, Postbox, listening, mail_server

SECRET = "only the two of us know"


def hook(listener: Listener, *events: str, **filters: Any) -> NotifyTarget:
    return NotifyTarget(events=events, webhook=listener.url, secret=SECRET, **filters)


@contextmanager
def telling(
    url: str, directory: Path, targets: dict[str, NotifyTarget] | None = None, **changes: Any
) -> Iterator[Server]:
    """A server whose timers run, and nothing else by itself."""
    with server(url, directory, targets=targets or {}, **changes) as site:
        site.daemon.timers.start()
        yield site


def ended(site: Server) -> list[tuple[str, str, int, str | None]]:
    """(event, target, whether delivered, why not) of what is over."""
    table = tables.outbox
    query = select(table.c.event, table.c.target, table.c.delivered, table.c.last_error).where(
        table.c.ended.is_not(None)
    )
    with site.daemon.database.read() as conn:
        return [tuple(row) for row in conn.execute(query.order_by(table.c.id))]


def waiting(site: Server) -> dict[str, int]:
    with site.daemon.database.read() as conn:
        return {found.target: found.number for found in rows.waiting(conn)}


def neighbour(site: Server) -> Daemon:
    """Another server of the same pool, with the same targets."""
    settings = site.daemon.settings
    name = "server-3.example.com"
    return Daemon(replace(settings, server=replace(settings.server, fqdn=name)), rng=random.Random(2))


def something(key: str, kind: str = "device_failed", **properties: Any) -> Event:
    return Event(
        kind=kind, key=key, time=NOW, subject="panda", summary=f"{key} failed", text="It broke.", page="/", **properties
    )


# Callback URLs


def test_a_client_is_told_until_it_takes_it(database_url: str, tmp_path: Path) -> None:
    with listening(500, 503) as listener, telling(database_url, tmp_path) as site:
        # Nothing is there that it could get: it ends at once.
        number = site.made(environment="nowhere", wait=0, callback_url=listener.url)
        site.wait_until(lambda: ended(site))
        said = {"request": {"id": number, "state": "failed_device_not_found", "assigned_device": ""}}
        assert [call.body for call in listener.calls] == [said] * 3
        first = listener.calls[0]
        assert first.path == "/done?build=7"
        assert first.headers["content-type"] == "application/json"
        assert first.headers["x-mozpool-event"] == "callback"
        assert "x-mozpool-signature" not in first.headers
        # By this it is known that it is the same thing again.
        assert len({call.headers["x-mozpool-delivery"] for call in listener.calls}) == 1
        assert ended(site) == [("callback", listener.host, 1, None)]


def test_what_a_killed_server_had_not_told_is_told_by_the_next_one(database_url: str, tmp_path: Path) -> None:
    with listening() as listener:
        with server(database_url, tmp_path) as site:
            site.daemon.outbox.wake = lambda: None  # type: ignore[method-assign]  # it is killed before it looks
            site.made(environment="nowhere", wait=0, callback_url=listener.url)
            assert (waiting(site), listener.calls) == ({listener.host: 1}, [])
            settings = site.daemon.settings
        again = Daemon(settings, rng=random.Random(2))
        try:
            again.outbox.look()
            end = time.monotonic() + 10
            while not listener.calls and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            again.stop()
        assert [call.body["request"]["state"] for call in listener.calls] == ["failed_device_not_found"]


def test_a_request_that_another_server_ends_is_told_of(database_url: str, tmp_path: Path) -> None:
    with listening() as listener, telling(database_url, tmp_path) as site:
        number = site.made(environment="nowhere", wait=600, callback_url=listener.url)
        other = site.other_server()
        table = tables.requests
        lost = update(table).where(table.c.id == number).values(imaging_server_id=other, version=table.c.version + 1)
        site.daemon.database.run(lambda conn: conn.execute(lost))
        site.daemon.requests.forget_all()
        assert site.daemon.requests.handle(number, "expire", for_others=True).accepted
        site.wait_until(lambda: listener.calls)
        assert listener.calls[0].body == {"request": {"id": number, "state": "closed", "assigned_device": ""}}


def test_a_client_that_says_it_is_gone_is_not_told_again(database_url: str, tmp_path: Path) -> None:
    with listening(410) as listener, telling(database_url, tmp_path) as site:
        site.made(environment="nowhere", wait=0, callback_url=listener.url)
        site.wait_until(lambda: ended(site))
        assert ended(site) == [("callback", listener.host, 0, "answered 410")]


def test_clients_that_hang_hold_up_nobody_else(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mozpool.notify.webhook.CALL_LIMIT", 1.0)
    with listening(*["hang"] * 50) as slow, listening() as quick, telling(database_url, tmp_path) as site:
        for _ in range(8):
            site.made(environment="nowhere", wait=0, callback_url=slow.url)
        site.wait_until(lambda: slow.calls)
        begun = time.monotonic()
        site.made(environment="nowhere", wait=0, callback_url=quick.url)
        site.wait_until(lambda: quick.calls)
        assert time.monotonic() - begun < 0.9
        assert len(slow.calls) <= outbox.ABREAST


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("hang", "no answer within 0.5 s"),
        ("drip", "no answer within 0.5 s"),
        ("close", "closed the connection without an answer"),
        (302, "answered 302, a redirect, which is not followed"),
        (404, "answered 404"),
        (500, "answered 500"),
    ],
)
def test_why_it_was_not_taken_is_shown(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int | str, reason: str
) -> None:
    monkeypatch.setattr("mozpool.notify.webhook.CALL_LIMIT", 0.5)
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 3600.0)
    with listening(answer, answer) as listener, telling(sqlite_url, tmp_path) as site:
        site.made(environment="nowhere", wait=0, callback_url=listener.url)
        path = "/api/notifications/"
        (shown,) = site.wait_until(lambda: site.get(path).get_json()["targets"])
        since = shown.pop("since")
        assert since.startswith("20")
        assert shown == {
            "name": listener.host,
            "way": "callback",
            "events": [],
            "waiting": 1,
            "last_error": reason,
        }
        page = site.get("/servers").text
        assert listener.host in page
        assert reason in page
        assert [call.path for call in listener.calls] == ["/done?build=7"]


# Webhooks


def verified(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """As the documents tell receivers to do it."""
    signed = headers["x-mozpool-timestamp"].encode() + b"." + body
    expected = "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, headers["x-mozpool-signature"])


def test_a_webhook_is_told_with_a_signature(database_url: str, tmp_path: Path) -> None:
    with listening() as listener, telling(database_url, tmp_path, {"chat": hook(listener, "device_failed")}) as site:
        site.daemon.devices.force(site.device("device1").id, "failed_self_test", detail="by ops")
        site.wait_until(lambda: ended(site))
        (call,) = listener.calls
        assert call.body["summary"] == "device1 failed: self test"
        assert call.body["details"]["reason"] == "by ops"
        assert call.body["url"] == "http://server-1.example.com/devices/device1"
        assert call.headers["x-mozpool-event"] == "device_failed"
        assert abs(int(call.headers["x-mozpool-timestamp"]) - time.time()) < 60
        assert verified(SECRET, call.headers, call.raw)
        assert not verified("guessed", call.headers, call.raw)
        assert not verified(SECRET, call.headers, call.raw + b" ")
        assert not verified(SECRET, {**call.headers, "x-mozpool-timestamp": "1"}, call.raw)


def test_what_only_heals_itself_or_is_filtered_is_told_to_nobody(sqlite_url: str, tmp_path: Path) -> None:
    with listening() as listener:
        targets = {
            "chat": hook(listener, "device_failed", devices=("device2",)),
            "other": hook(listener, "server_away"),
        }
        with telling(sqlite_url, tmp_path, targets) as site:
            site.daemon.devices.force(site.device("device1").id, "failed_self_test")
            site.daemon.devices.force(site.device("device3").id, "failed_sut_verifying")
            site.daemon.devices.force(site.device("device2").id, "failed_self_test")
            site.wait_until(lambda: ended(site))
        assert [call.body["subject"] for call in listener.calls] == ["device2"]


def test_nothing_is_told_of_a_transition_that_did_not_take_place(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as listener, telling(database_url, tmp_path, {"chat": hook(listener, "device_failed")}) as site:
        noted = site.daemon.outbox.note

        def note(conn: Any, letters: Any) -> None:
            noted(conn, letters)
            raise RuntimeError("killed before the commit")

        monkeypatch.setattr(site.daemon.outbox, "note", note)
        with pytest.raises(RuntimeError, match="killed"):
            site.daemon.devices.force(site.device("device1").id, "failed_self_test")
        assert (site.device("device1").state, waiting(site)) == ("ready", {})


def test_two_servers_tell_each_thing_once(database_url: str, tmp_path: Path) -> None:
    with listening() as listener, telling(database_url, tmp_path, {"chat": hook(listener, "device_failed")}) as site:
        settings = replace(
            site.daemon.settings, server=replace(site.daemon.settings.server, fqdn="server-2.example.com")
        )
        other = Daemon(settings, rng=random.Random(2))
        try:
            for number in range(30):
                letters = site.daemon.outbox.letters(something(f"device:{number}:1"))
                site.daemon.database.run(lambda conn, letters=letters: rows.add(conn, letters))  # type: ignore[misc]
            for _ in range(10):
                site.daemon.outbox.wake()
                other.outbox.wake()
            site.wait_until(lambda: len(ended(site)) == 30, 30)
        finally:
            other.stop()
        assert sorted(call.body["id"] for call in listener.calls) == sorted(f"device:{n}:1" for n in range(30))


def test_a_server_that_dies_while_it_tells_leaves_it_to_another(database_url: str, tmp_path: Path) -> None:
    with listening() as listener, telling(database_url, tmp_path, {"chat": hook(listener, "device_failed")}) as site:
        database, now = site.daemon.database, site.daemon.clock.now()
        database.run(lambda conn: rows.add(conn, site.daemon.outbox.letters(something("device:1:1"))))
        with database.read() as conn:
            found = rows.due(conn, "chat", now + timedelta(seconds=1), 10)
        taken = database.run(lambda conn: rows.take(conn, found, now + timedelta(seconds=1), 77))
        assert [letter.tries for letter in taken] == [1]
        assert database.run(lambda conn: rows.take(conn, found, now, 78)) == []
        site.daemon.outbox.look()
        assert listener.calls == []
        site.wait_until(lambda: listener.calls, 20)
        # What the dead one would write comes too late to undo anything.
        site.wait_until(lambda: ended(site))
        database.run(lambda conn: rows.again(conn, taken, now, "late"))
        assert (waiting(site), len(listener.calls)) == ({}, 1)


def test_what_the_process_before_this_one_was_telling_is_told_at_once(database_url: str, tmp_path: Path) -> None:
    with listening() as listener, telling(database_url, tmp_path, {"chat": hook(listener, "device_failed")}) as site:
        database, later = site.daemon.database, site.daemon.clock.now() + timedelta(hours=1)
        database.run(lambda conn: rows.add(conn, site.daemon.outbox.letters(something("device:1:1"))))
        database.run(lambda conn: rows.add(conn, site.daemon.outbox.letters(something("device:2:1"))))
        with database.read() as conn:
            mine, other = rows.due(conn, "chat", later, 10)
        database.run(lambda conn: rows.take(conn, [mine], later, site.daemon.server_id))
        database.run(lambda conn: rows.take(conn, [other], later, 77))
        site.daemon.outbox.look()
        site.wait_until(lambda: ended(site))
        assert [call.body["id"] for call in listener.calls] == ["device:1:1"]


def test_a_webhook_that_is_back_is_told_all_that_waits(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 24 * 3600.0)
    port = free_port()
    target = NotifyTarget(events=("device_failed",), webhook=f"http://127.0.0.1:{port}/", secret=SECRET)
    with telling(sqlite_url, tmp_path, {"chat": target}, email={"timeout": 1.0}) as site:
        caplog.set_level(logging.INFO, "mozpool.notify")
        site.daemon.outbox.note_once(something("device:1:1"))
        site.wait_until(lambda: "is again later" in caplog.text)
        site.daemon.outbox.note_once(something("device:2:1"))
        with listening(port=port) as listener:
            site.wait_until(lambda: len(ended(site)) == 2, 20)
        # The second one showed that somebody is there again; the first one need not wait for its day.
        assert [call.body["id"] for call in listener.calls] == ["device:2:1", "device:1:1"]
        assert "chat takes what it is told" in caplog.text
        assert SECRET not in caplog.text


def test_pauses_become_longer_and_end_with_a_line_in_the_log(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(*[500] * 50) as listener:
        targets = {"chat": hook(listener, "device_failed")}
        with telling(sqlite_url, tmp_path, targets, testing={"speed": 500.0}) as site:
            site.daemon.outbox.note_once(something("device:1:1"))
            site.wait_until(lambda: len(listener.calls) >= 5, 20)
            table = tables.outbox
            with site.daemon.database.read() as conn:
                assert (conn.scalar(select(table.c.tries)) or 0) >= 5
            now = site.daemon.clock.now()
            old = update(table).values(created=now - timedelta(days=3.1), due=now - timedelta(days=3))
            site.daemon.database.run(lambda conn: conn.execute(old))
            site.daemon.outbox.wake()
            site.wait_until(lambda: ended(site), 20)
        assert ended_error(site) == "answered 500"
        assert "chat is not told of device:1:1: answered 500, given up after" in caplog.text


def ended_error(site: Server) -> str | None:
    return ended(site)[0][3]


def test_too_much_that_waits_is_given_up_from_its_oldest_end(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "MOST", 10)
    target = NotifyTarget(events=("device_failed",), webhook=f"http://127.0.0.1:{free_port()}/", secret=SECRET)
    with server(database_url, tmp_path, targets={"chat": target}) as site:
        site.daemon.outbox.wake = lambda: None  # type: ignore[method-assign]
        for number in range(15):
            site.daemon.outbox.note_once(something(f"device:{number}:1"))
        site.daemon.outbox.look()
        assert waiting(site) == {"chat": 10}
        assert ended(site) == [("device_failed", "chat", 0, "more than 10 waited")] * 5
        assert "the oldest 5 are given up" in caplog.text


def test_what_nobody_knows_any_more_is_given_up_after_days(database_url: str, tmp_path: Path) -> None:
    with server(database_url, tmp_path) as site:
        database, now = site.daemon.database, site.daemon.clock.now()
        for key, age in (("old", 3.1), ("new", 2.9)):
            letter = Letter("device_failed", key, "unknown", "{}", now - timedelta(days=age), now - timedelta(days=age))
            database.run(lambda conn, letter=letter: rows.add(conn, [letter]))  # type: ignore[misc]
        site.daemon.outbox.look()
        site.daemon.tidy_up()
        assert (waiting(site), len(ended(site))) == ({"unknown": 1}, 1)


def test_what_was_told_is_forgotten_after_a_week(database: Database) -> None:
    clock = Clock()
    now = clock.now()
    values = {"event": "e", "target": "t", "body": "{}", "created": now, "due": now}
    for key, days in (("a", 7.1), ("b", 6.9)):
        row = insert(tables.outbox).values(event_key=key, ended=now - timedelta(days=days), **values)
        database.run(lambda conn, row=row: conn.execute(row))  # type: ignore[misc]
    upkeep.run(database, clock)
    with database.read() as conn:
        assert list(conn.scalars(select(tables.outbox.c.event_key))) == ["b"]


# Mail


def by_mail(box: Postbox) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": box.port, "delay": 10.0, "timeout": 5.0, "sender": "pool@example.com"}


def test_what_happens_within_some_seconds_is_one_mail(database_url: str, tmp_path: Path) -> None:
    ops = NotifyTarget(events=("device_failed", "request_ready"), email=("ops@example.com", "boss@example.com"))
    with mail_server() as box, telling(database_url, tmp_path, {"ops": ops}, email=by_mail(box)) as site:
        for name in ("device1", "device2", "device3"):
            site.daemon.devices.force(site.device(name).id, "failed_pxe_booting")
        site.wait_until(lambda: len(ended(site)) == 3)
        (arrived,) = box.mails
        assert arrived.recipients == ["ops@example.com", "boss@example.com"]
        assert arrived.message["Subject"] == "[mozpool] device failed (3)"
        assert "http://server-1.example.com/devices/device2" in arrived.text
        assert "a person must look at its network" in " ".join(arrived.text.split())


def test_who_asked_gets_mail_and_others_do_not(database_url: str, tmp_path: Path) -> None:
    mine = NotifyTarget(events=("request_failed",), email=("assignee",))
    with mail_server() as box, telling(database_url, tmp_path, {"mine": mine}, email=by_mail(box)) as site:
        for assignee in ("a@example.com", "ci-7", "b@example.com", "a@example.com"):
            site.made(environment="nowhere", wait=0, assignee=assignee)
        site.wait_until(lambda: len(ended(site)) == 3)
        assert sorted((mail.recipients, mail.message["Subject"][:27]) for mail in box.mails) == [
            (["a@example.com"], "[mozpool] request failed (2"),
            (["b@example.com"], "[mozpool] request 3: failed"),
        ]


def test_mail_waits_for_its_server(sqlite_url: str, tmp_path: Path) -> None:
    port = free_port()
    ops = NotifyTarget(events=("device_failed",), email=("ops@example.com",))
    settings = {"host": "127.0.0.1", "port": port, "delay": 0.0}
    with telling(sqlite_url, tmp_path, {"ops": ops}, email=settings) as site:
        site.daemon.devices.force(site.device("device1").id, "failed_pxe_booting")
        site.wait_until(lambda: site.get("/api/notifications/").get_json()["targets"][0]["last_error"])
        site.daemon.devices.force(site.device("device2").id, "failed_pxe_booting")
        with mail_server("451 not yet", port=port) as box:
            site.wait_until(lambda: len(ended(site)) == 2, 30)
        text = "".join(mail.text for mail in box.mails)
        assert text.count("/devices/device1") == text.count("/devices/device2") == 1


# Relay boards and servers


def test_a_relay_board_is_told_of_when_it_fails_and_not_again_while_it_has(database_url: str, tmp_path: Path) -> None:
    with (
        listening() as listener,
        telling(database_url, tmp_path, {"chat": hook(listener, "relay_board_failed")}) as site,
    ):
        add_relay_board(site, "relay-7", "relay-7.example.com")
        lane = "relay:relay-7.example.com:2101"
        for state in ("suspect", "failed", "failed", "ok", "suspect"):
            site.daemon._lane_changed(lane, state, None if state == "ok" else "no answer")
        site.wait_until(lambda: len(ended(site)) == 1)
        site.daemon._lane_changed(lane, "failed", "no answer")
        site.wait_until(lambda: len(ended(site)) == 2)
        assert [call.body["summary"] for call in listener.calls] == ["relay-7 failed: no answer"] * 2
        assert listener.calls[0].body["id"] != listener.calls[1].body["id"]
        assert listener.calls[0].body["url"] == "http://server-1.example.com/relays/relay-7"


def test_a_server_that_several_see_go_and_come_back_is_told_of_once(database_url: str, tmp_path: Path) -> None:
    with listening() as listener:
        targets = {"chat": hook(listener, "server_away", "server_back")}
        with telling(database_url, tmp_path, targets) as site:
            lost = site.other_server()
            said = servers.Presence(lost, 41, False, "5", NOW, site.daemon.clock.now(), 4, 0, "lab")
            site.daemon.database.run(lambda conn: servers.say_here(conn, said))
            third = replace(
                site.daemon.settings, server=replace(site.daemon.settings.server, fqdn="server-3.example.com")
            )
            other = Daemon(third, rng=random.Random(2))
            try:
                for daemon in (site.daemon, other):
                    daemon.presence._away_after = 0.05
                    daemon.presence.beat()

                def is_told() -> bool:
                    for daemon in (site.daemon, other):
                        daemon.presence.beat()
                    return any(call.body["id"] == f"server:{lost}:41:away" for call in listener.calls)

                site.wait_until(is_told)
                back = replace(said, beat=42, seen=site.daemon.clock.now())
                site.daemon.database.run(lambda conn: servers.say_here(conn, back))
                for daemon in (other, site.daemon):
                    daemon.presence._away_after = 30.0
                    daemon.presence.beat()
                site.wait_until(lambda: any(call.body["id"] == f"server:{lost}:41:back" for call in listener.calls))
                site.wait_until(lambda: not waiting(site))
            finally:
                other.stop()
            told = [call.body for call in listener.calls if call.body["subject"].startswith("server-2")]
            assert [body["id"] for body in told] == [f"server:{lost}:41:away", f"server:{lost}:41:back"]
            assert "are taken over by the other servers of group lab" in told[0]["text"]


def test_nobody_is_told_of_a_server_that_is_away_for_ages(sqlite_url: str, tmp_path: Path) -> None:
    with listening() as listener, telling(sqlite_url, tmp_path, {"chat": hook(listener, "server_away")}) as site:
        lost = site.other_server()
        for beat, days in ((1, 4), (2, 2)):
            seen = site.daemon.clock.now() - timedelta(days=days)
            said = servers.Presence(lost, beat, False, "5", NOW, seen, 4, 0)
            site.daemon.database.run(lambda conn, said=said: servers.say_here(conn, said))  # type: ignore[misc]
            site.daemon._tell_of_server(lost, beat, server_away)
            site.daemon._tell_of_server(lost, beat, server_back)  # nobody listens to that
            site.wait_until(lambda: site.daemon.quick.backlog() == 0 and site.daemon.quick.load[1] == 0)
        site.wait_until(lambda: ended(site))
        assert [call.body["id"] for call in listener.calls] == [f"server:{lost}:2:away"]


# What ends soon


@pytest.fixture
def lent(database_url: str, tmp_path: Path) -> Iterator[tuple[Server, Listener, Callable[..., None]]]:
    """A server, who is warned, and how to say when request 1 became ready and ends, in seconds from now."""
    with listening() as listener, telling(database_url, tmp_path, {"chat": hook(listener, "request_expiring")}) as site:
        number = site.made("device1", image="b2g")
        assert number == 1
        site.daemon.calls.stop(5)
        site.daemon.timers.stop()

        def make(since: float, expires: float, state: str = "ready") -> None:
            now, table = site.daemon.clock.now(), tables.requests
            values = {
                "state": state,
                "state_since": now + timedelta(seconds=since),
                "expires": now + timedelta(seconds=expires),
                "version": table.c.version + 1,
            }
            site.daemon.database.run(lambda conn: conn.execute(update(table).where(table.c.id == 1).values(**values)))

        yield site, listener, make


def test_a_request_that_ends_soon_is_told_of_once_for_each_end(lent: Any) -> None:
    site, listener, make = lent
    warnings = site.daemon.warnings
    assert warnings.is_wanted
    make(-1000, 301)
    warnings.look()
    assert waiting(site) == {}
    make(-1000, 299)
    for _ in range(3):
        warnings.look()
    site.wait_until(lambda: ended(site))
    make(-1000, 200)  # renewed, and for a short time only
    warnings.look()
    site.wait_until(lambda: len(ended(site)) == 2)
    warnings.look()
    assert [call.body["event"] for call in listener.calls] == ["request_expiring"] * 2
    assert listener.calls[0].body["summary"] == "request 1: device1 is taken back in 5 minutes"


@pytest.mark.parametrize(
    ("since", "expires", "state"),
    [(-10, 250, "ready"), (-1000, 250, "closed"), (-1000, 250, "pending"), (-1000, -1, "ready")],
)
def test_what_was_meant_to_be_short_or_is_over_is_not_told_of(
    lent: Any, since: float, expires: float, state: str
) -> None:
    site, _, make = lent
    make(since, expires, state)
    site.daemon.warnings.look()
    assert (waiting(site), ended(site)) == ({}, [])


def test_a_warning_that_could_not_be_told_in_time_is_not_told(lent: Any) -> None:
    site, listener, make = lent
    site.daemon.outbox.wake = lambda: None
    make(-1000, 100)
    site.daemon.warnings.look()
    passed = update(tables.outbox).values(valid_until=site.daemon.clock.now() - timedelta(seconds=1))
    site.daemon.database.run(lambda conn: conn.execute(passed))
    site.daemon.outbox.look()
    site.wait_until(lambda: ended(site))
    assert (ended(site)[0][3], listener.calls) == ("it came too late to be of use", [])


def test_a_request_that_was_renewed_meanwhile_is_not_told_of(lent: Any) -> None:
    site, _, make = lent
    make(-1000, 100)
    row = site.request(1)
    make(-1000, 5000)
    event = notices.expiring(row, site.daemon.clock.now())
    site.daemon.outbox.note_once(event, lambda conn: site.daemon.warnings._still(conn, row))
    assert waiting(site) == {}


# The API


def test_the_api_shows_who_is_told_without_their_addresses(sqlite_url: str, tmp_path: Path) -> None:
    hidden = "http://chat.example.com/hooks/T0K3N"
    targets = {
        "chat": NotifyTarget(events=("device_failed", "server_away"), webhook=hidden, secret=SECRET),
        "ops": NotifyTarget(events=("request_failed",), email=("ops@example.com",)),
    }
    with server(sqlite_url, tmp_path, targets=targets) as site:
        shown = site.get("/api/notifications/").get_json()
        nothing = {"waiting": 0, "since": None, "last_error": None}
        assert shown == {
            "targets": [
                {"name": "chat", "way": "webhook", "events": ["device_failed", "server_away"], **nothing},
                {"name": "ops", "way": "e-mail", "events": ["request_failed"], **nothing},
            ]
        }
        page = site.get("/servers").text
        assert "device failed, server away" in page
        assert "T0K3N" not in page
        assert "T0K3N" not in repr(site.daemon.settings)
        assert SECRET not in repr(site.daemon.settings)


def test_the_page_says_nothing_where_nobody_is_told(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path) as site:
        assert site.get("/api/notifications/").get_json() == {"targets": []}
        assert "Who is told" not in site.get("/servers").text
