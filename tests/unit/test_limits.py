# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How much one call can ask for, and how long what is stored can be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from mozpool.db import logs
from mozpool.db.engine import Database
from mozpool.db.tables import device_logs
from mozpool.web.app import bare_app
from tests.app_fixtures import Server, server
from tests.unit.test_db_logs import NOW


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    with server(sqlite_url, tmp_path) as made:
        yield made


def parameters() -> list[tuple[str, str, dict[str, Any]]]:
    """Path, name and schema of each number that a query may hold."""
    spec = bare_app().spec
    assert isinstance(spec, dict)
    found = []
    for path, methods in spec["paths"].items():
        for method, described in methods.items():
            for each in described["parameters"]:
                if (method, each["in"]) == ("get", "query") and each["schema"].get("type") in ("integer", "number"):
                    found.append((path, each["name"], each["schema"]))
    return found


def test_every_number_of_a_query_has_a_bound_that_holds(site: Server) -> None:
    site.made("device1")
    known = {"name": "device1", "number": "1", "report": "failed"}
    seen = set()
    for path, name, schema in parameters():
        most = schema.get("maximum", schema.get("exclusiveMaximum"))
        assert most is not None, (path, name)
        place = re.sub(r"{(\w+)}", lambda match: known[match[1]], path)
        for value in (most + 1, 10**30, "9" * 5000):
            said = site.get(f"{place}?{name}={value}")
            assert said.status_code == 400, (place, name, value)
            assert said.get_json()["error"]["field"] == name
        seen.add(name)
    assert {"limit", "cursor", "timeperiod", "hours"} <= seen


@pytest.mark.parametrize("path", ["/api/device/list/?details=1", "/api/request/list/", "/api/device/list/"])
def test_without_a_limit_a_list_is_whole_as_it_always_was(site: Server, path: str) -> None:
    for _ in range(3):
        site.made()
    ((key, found),) = site.get(path).get_json().items()
    assert key in ("devices", "requests")
    assert len(found) == 3


@pytest.mark.parametrize("query", ["size=999999999", "size=-1", "page=99999999999999999999", "page=0&size=x"])
@pytest.mark.parametrize("page", ["/devices", "/requests"])
def test_a_page_shows_so_much_whatever_its_address_says(site: Server, page: str, query: str) -> None:
    assert site.get(f"{page}?{query}").status_code == 200


def test_a_log_of_long_lines_comes_in_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand lines of the greatest length would not fit into memory."""
    monkeypatch.setattr(logs, "PIECE", 50)
    monkeypatch.setattr(logs, "MOST_CHARACTERS", 120_000)
    rows = [{"device_id": 1, "ts": NOW, "source": "x", "message": f"{number} " + "y" * 990} for number in range(1000)]
    database.run(lambda conn: conn.execute(insert(device_logs), rows))
    with database.read() as conn:
        newest = logs.latest(conn, device_logs, 1, limit=100_000)
        # It ends with the fifty lines that bring it beyond 120 000 characters.
        assert [line.message.split()[0] for line in newest] == [str(number) for number in range(850, 1000)]
        found = list(newest)
        while part := logs.latest(conn, device_logs, 1, limit=100_000, before=found[0].id):
            found = part + found
        assert [line.message.split()[0] for line in found] == [str(number) for number in range(1000)]
        assert len(logs.latest(conn, device_logs, 1, limit=70)) == 70


def test_long_lines_are_cut_where_they_are_stored(site: Server) -> None:
    site.daemon.logbook.add("device", site.device().id, "device1", "s" * 500, "y" * 100_000)
    site.daemon.logbook.flush()
    line = site.get("/api/device/device1/log/").get_json()["log"][-1]
    assert len(line["message"]) == 16_000
    assert len(line["source"]) == 32


def test_what_an_event_brings_along_does_not_fill_the_log(site: Server) -> None:
    """Boards call with a plain GET, and anybody may."""
    for _ in range(3):
        site.get("/api/device/device1/event/" + "x" * 20_000 + "/")
        site.post("/api/device/device1/event/nothing/", {"what": "y" * 500_000})
    site.daemon.logbook.flush()
    said = site.get("/api/device/device1/log/?limit=1000").text
    assert len(said) < 100_000
