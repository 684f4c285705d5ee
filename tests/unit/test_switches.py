# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is known of relay boards and other power switches: their rows, the API, the page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, insert

from mozpool.bmm.api import HARDWARE, hardware
from mozpool.db import images, relay_boards, tables
from mozpool.db.engine import Database
from mozpool.db.relay_boards import RelayBoard, name_of
from tests.app_fixtures import OTHER, OWN, Server, add_relay_board, server
from tests.contract.peers import RelayBoard as Peer
from tests.contract.peers import RelayFault

PDU = "pdudaemon:http://pdu-host:16421:apc 7/left"


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server on SQLite: the database makes no difference here."""
    with server(sqlite_url, tmp_path) as made:
        yield made


def note(database: Database, lane: str, state: str, reason: str | None = None, *, later: float = 0) -> None:
    now = database.clock.now() + timedelta(seconds=later)
    database.run(
        lambda conn: relay_boards.set_state_by_lane(
            conn, lane, state, reason, now, images.ensure_imaging_server(conn, OWN)
        )
    )


def known(database: Database) -> dict[str, RelayBoard]:
    with database.read() as conn:
        return {board.name: board for board in relay_boards.find(conn)}


def add(database: Database, name: str, fqdn: str) -> None:
    def work(conn) -> None:
        server_id = images.ensure_imaging_server(conn, OWN)
        conn.execute(
            insert(tables.relay_boards).values(
                name=name, fqdn=fqdn, imaging_server_id=server_id, state="ok", state_counters="{}"
            )
        )

    database.run(work)


# --- Rows ---


@pytest.mark.parametrize("fqdn", ["relay-7.example.com", "Relay-7.example.com", "relay-7.example.com:2101"])
def test_a_relay_boards_row_is_found_with_and_without_its_port(database: Database, fqdn: str):
    add(database, "relay-7", fqdn)
    add(database, "relay-8", "relay-8.example.com")
    note(database, "relay:relay-7.example.com:2101", "failed", "no answer")
    boards = known(database)
    assert set(boards) == {"relay-7", "relay-8"}
    assert (boards["relay-7"].state, boards["relay-7"].reason) == ("failed", "no answer")
    assert (boards["relay-7"].lane, boards["relay-7"].backend) == ("relay:relay-7.example.com:2101", "proxr")
    assert (boards["relay-8"].state, boards["relay-8"].since) == ("ok", None)


def test_since_tells_when_the_state_changed(database: Database):
    add(database, "relay-7", "relay-7")
    note(database, "relay:relay-7:2101", "suspect", "first")
    since = known(database)["relay-7"].since
    assert since is not None
    note(database, "relay:relay-7:2101", "suspect", "second", later=60)
    again = known(database)["relay-7"]
    assert (again.since, again.reason) == (since, "second")
    note(database, "relay:relay-7:2101", "ok", later=120)
    fine = known(database)["relay-7"]
    assert fine.since is not None
    assert fine.since > since + timedelta(seconds=100)
    assert fine.reason is None


def test_a_lane_without_a_row_gets_one_that_keeps_its_state(database: Database):
    note(database, PDU, "suspect", "HTTP 500")
    note(database, PDU, "failed", "HTTP 500")
    (board,) = known(database).values()
    assert (board.name, board.fqdn, board.lane) == ("apc-7-left", "http://pdu-host:16421:apc 7/left", PDU)
    assert (board.backend, board.imaging_server, board.state) == ("pdudaemon", OWN, "failed")
    note(database, PDU, "ok")
    assert [board.state for board in known(database).values()] == ["ok"]


def test_rows_of_different_lanes_do_not_get_in_each_others_way(database: Database):
    lanes = ["redfish:bmc-1:443", "command:bmc-1:443", "relay:bmc-1:443", f"command:{'x' * 180}"]
    for lane in lanes:
        note(database, lane, "failed", lane)
    boards = known(database)
    assert {board.lane: board.reason for board in boards.values()} == {lane: lane for lane in lanes}
    assert set(boards) == {"bmc-1", "bmc-1-2", "bmc-1-3", "x" * 32}


def test_a_lane_that_is_too_long_is_let_go(database: Database):
    note(database, f"command:{'x' * 200}", "failed", "no")
    assert known(database) == {}


@pytest.mark.parametrize(
    ("lane", "taken", "name"),
    [
        ("pdudaemon:http://host:16421:pdu1", (), "pdu1"),
        ("redfish:host.example.com:443", (), "host.example.com"),
        ("redfish:[fe80::1]:443", (), "fe80-1"),
        ("command:" + "x" * 40, (), "x" * 32),
        ("command:" + "x" * 40, ("x" * 32, "x" * 30 + "-2"), "x" * 30 + "-3"),
        ("command:PDU", ("pdu",), "PDU-2"),
        ("command:7", (), "7"),
        ("command:///", (), "switch"),
        ("odd", (), "odd"),
    ],
)
def test_names_fit_their_column_and_are_taken_once(lane: str, taken: tuple[str, ...], name: str):
    assert name_of(lane, taken) == name


# --- API and page ---


def test_the_list_says_what_is_wrong_since_when_and_for_how_many(imaging_server: Server) -> None:
    note(imaging_server.daemon.database, PDU, "failed", "HTTP 500")
    imaging_server.change("device1", relay_info="127.0.0.1:9:bank1:relay1")
    imaging_server.change("device2", relay_info="127.0.0.1:9:bank1:relay2")
    imaging_server.change("device3", relay_info="none of the kind")
    found = {row["name"]: row for row in imaging_server.get("/api/relay/list/").get_json()["relays"]}
    assert (found["relay-9"]["devices"], found["relay-9"]["since"], found["relay-9"]["reason"]) == (2, None, None)
    pdu = found["apc-7-left"]
    assert (pdu["backend"], pdu["state"], pdu["reason"], pdu["devices"]) == ("pdudaemon", "failed", "HTTP 500", 0)
    assert pdu["since"].startswith("20")


def test_a_switch_that_no_device_has_used_yet_is_tested_by_the_backend_of_its_lane(site: Server) -> None:
    with Peer() as board:
        note(site.daemon.database, f"relay:127.0.0.1:{board.port}", "failed", "no answer")
        assert site.get("/api/relay/127.0.0.1/test/").get_json() == {"success": True}
    note(site.daemon.database, PDU, "failed", "HTTP 500")
    said = site.get("/api/relay/apc-7-left/test/").get_json()
    assert said["success"] is False
    assert PDU in said["reason"]


def test_a_switch_that_is_not_held_is_tried_again_and_its_row_tells(site: Server) -> None:
    with Peer() as board:
        add_relay_board(site, "relay-7", f"127.0.0.1:{board.port}")
        board.fault = RelayFault.CLOSES_AT_ONCE
        assert site.post("/api/relay/relay-7/retry/").get_json() == {}
        site.wait_until(lambda: known(site.daemon.database)["relay-7"].state == "suspect")
        assert "127.0.0.1" in (known(site.daemon.database)["relay-7"].reason or "")
        board.fault = None
        site.post("/api/relay/relay-7/retry/")
        site.wait_until(lambda: known(site.daemon.database)["relay-7"].state == "ok")


def test_only_its_own_server_tries_a_switch_again(site: Server) -> None:
    add_relay_board(site, "far", "relay.example.com", site.other_server())
    answer = site.post("/api/relay/far/retry/")
    assert (answer.status_code, answer.headers["Location"]) == (302, f"http://{OTHER}/api/relay/far/retry/")
    assert site.post("/api/relay/nix/retry/").status_code == 404
    assert site.get("/api/relay/far/retry/").status_code == 405


PART = {"Mozpool-Part": "1"}


def test_the_page_shows_failed_switches_first_and_offers_to_try_them(site: Server) -> None:
    add_relay_board(site, "far", "relay.example.com", site.other_server())
    site.daemon.database.run(lambda conn: conn.execute(tables.relay_boards.update().values(state="suspect")))
    note(site.daemon.database, PDU, "failed", "<b>HTTP 500</b>")
    page = site.get("/relays").text
    assert page.index("apc-7-left") < page.index("far")
    assert "&lt;b&gt;HTTP 500" in page
    for name in ("apc-7-left", "far"):
        assert f'data-call="/api/relay/{name}/retry/"' in page
        assert f'data-test="/api/relay/{name}/test/"' in page
    assert page.count('class="alarm"') == 1
    assert "apc-7-left" in site.get("/").text, "the overview points to it"


def test_what_changes_of_the_page_is_sent_only_when_it_changed(site: Server) -> None:
    first = site.get("/relays", headers=PART)
    again = site.get("/relays", headers={**PART, "If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert "A power switch has failed" not in site.get("/").text


def test_many_who_look_at_once_cost_one_look(site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    @event.listens_for(site.daemon.database.reader, "before_cursor_execute")
    def note_look(_conn, _cursor, statement, *_rest) -> None:
        if "relay_boards.name" in statement:
            looks.append(statement)

    monkeypatch.setattr("mozpool.bmm.api.FRESH", 1000.0)
    threads = [threading.Thread(target=lambda: site.app.test_client().get("/relays", headers=PART)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looks) == 1


def test_what_hangs_on_a_switch_follows_devices_and_their_types(site: Server) -> None:
    def on(name: str) -> list[str]:
        with site.app.app_context():
            site.app.extensions[HARDWARE]._looked = None
            return [each for switch in hardware().switches() if switch.board.name == name for each in switch.names]

    devices_there = on("relay-9")
    assert len(devices_there) > 1
    moved = devices_there[0]
    site.change(moved, relay_info="elsewhere.example.com:bank1:relay1")
    assert on("relay-9") == devices_there[1:]
    site.change(moved, relay_info="127.0.0.1:9:bank1:relay1")
    assert on("relay-9") == devices_there
    table = tables.hardware_types
    site.daemon.database.run(lambda conn: conn.execute(table.update().values(backends='{"power": "gone"}')))
    assert on("relay-9") == []
