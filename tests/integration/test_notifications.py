# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Real servers that tell real receivers: what a killed one has begun, what two of them see, and that one is gone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mozpool.client import Client
from tests.integration.mozpool_site import Site, another_server, check_log, eventually
from tests.receivers import Listener, listening, mail_server

pytestmark = pytest.mark.timeout(300)


def hook(listener: Listener, *events: str) -> str:
    return f"[notify chat]\nevents = {' '.join(events)}\nwebhook = {listener.url}\nsecret = s3cret\n"


SIGNS = "heartbeat_interval = 0.5\naway_after = 3\n"
"""Of life."""


def add(site: Site, sections: str) -> None:
    """To the configuration of a server that has not started yet."""
    site.config.write_text(site.config.read_text().replace("[paths]", f"{SIGNS}[paths]") + f"\n{sections}")


def open_letters(site: Site) -> int:
    """How much waits to be told."""
    (row,) = site.rows("SELECT COUNT(*) FROM outbox WHERE ended IS NULL")
    return int(row[0])


def test_what_a_killed_server_was_telling_is_told_by_its_next_process(sqlite_url: str, tmp_path: Path) -> None:
    site = Site(tmp_path, sqlite_url, boards=1, speed=20.0, seed=3, reliable=True)
    with listening("hang") as listener, site:
        client = Client([site.url])
        made = client.request("device1", image="android", duration=600, wait=2400, callback_url=listener.url)
        assert eventually(lambda: bool(listener.calls), 60), site.tail()
        # It has been sent, and nobody knows whether it arrived.
        site.kill_daemon()
        assert open_letters(site) == 1
        site.start_daemon()
        assert eventually(lambda: len(listener.calls) == 2, 30), site.tail()
        first, second = listener.calls
        assert first.body == {"request": {"id": made.id, "state": "ready", "assigned_device": "device1"}}
        assert second.body == first.body
        assert second.headers["x-mozpool-delivery"] == first.headers["x-mozpool-delivery"]
        client.return_request(made.id)
        assert eventually(lambda: len(listener.calls) == 3), site.tail()
        assert listener.calls[2].body == {"request": {"id": made.id, "state": "closed", "assigned_device": ""}}
        assert eventually(lambda: open_letters(site) == 0), site.tail()
    check_log(site.log)


@pytest.mark.mysql
def test_two_servers_tell_each_thing_once_and_of_each_other(mysql_url: str, tmp_path: Path) -> None:
    site = Site(tmp_path, mysql_url, boards=3, speed=20.0, seed=3, reliable=True)
    with listening() as listener, mail_server() as box:
        sections = hook(listener, "request_ready", "server_away", "server_back")
        sections += "[notify mine]\nevents = request_failed\nemail = assignee\n"
        sections += f"[email]\nhost = 127.0.0.1\nport = {box.port}\nsender = pool@example.com\n"
        add(site, sections)
        with site, another_server(site, tmp_path / "other", f"{SIGNS}{sections}") as (url, log):
            here, there = Client([site.url], assignee="me@example.com"), Client([url])
            for _ in range(3):
                for client in (here, there):
                    made = client.request("any", image="android", duration=600, wait=2400)
                    client.wait_ready(made.id, 120)
                    client.return_request(made.id)
            assert eventually(lambda: len(listener.calls) >= 6), site.tail()
            here.request("any", image="android", environment="nowhere", wait=0, duration=600)
            assert eventually(lambda: bool(box.mails)), site.tail()
            assert box.mails[0].recipients == ["me@example.com"]

            # Each of them says which ones it tells.
            assert "chat is told by webhook of request_ready, server_away, server_back" in log.read_text()
            assert "s3cret" not in log.read_text() + site.log.read_text()

            def told_of(event: str) -> list[str]:
                return [call.body["summary"] for call in listener.calls if call.body["event"] == event]

            name = site.settings.server.fqdn
            # What it is telling when it is killed is told again.
            assert eventually(lambda: open_letters(site) == 0), site.tail()
            site.kill_daemon()
            assert eventually(lambda: told_of("server_away") == [f"{name} is away"], 60), log.read_text()
            site.start_daemon()
            assert eventually(lambda: told_of("server_back") == [f"{name} is back"], 60), log.read_text()
        assert len(box.mails) == 1
        events = Counter(call.body["event"] for call in listener.calls)
        assert events == {"request_ready": 6, "server_away": 1, "server_back": 1}
        assert len({call.headers["x-mozpool-delivery"] for call in listener.calls}) == 8
    check_log(site.log)
    check_log(log)
