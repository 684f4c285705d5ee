# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Reports as they are asked for: by the API, on pages, and by the command."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import insert
from werkzeug.serving import make_server

from mozpool.client.cli import main
from mozpool.db import tables
from mozpool.web.pages.reports import GROUPS
from mozpool.web.reports import REPORTS
from tests.app_fixtures import OWN, Server, add_relay_board, server

NAMES = [report.name for report in REPORTS]
DOCUMENT = Path(__file__).parents[2] / "docs" / "reports.md"


@pytest.fixture(scope="module")
def made(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with three devices, on which something has been going on."""
    directory = tmp_path_factory.mktemp("site")
    shutil.copyfile(_sqlite_template, directory / "pool.sqlite")
    with server(f"sqlite:///{directory}/pool.sqlite", directory) as made:
        add_relay_board(made, "far-board", "relay.example.com")
        now = made.daemon.clock.now()
        rows = [
            ("ada@example.com", "b2g", timedelta(hours=5), timedelta(minutes=1)),
            ("=cmd|' /C calc'!A0", "b2g", timedelta(hours=4), timedelta(minutes=2)),
            ("grace@example.com", "android", timedelta(hours=3), None),
        ]

        def work(conn: object) -> None:
            for number, (who, image, before, took) in enumerate(rows, start=900):
                begin = now - before
                ready = None if took is None else begin + took
                what = {"hardware_type": "panda", "hardware_model": "ES", "environment": "staging"}
                end = begin + timedelta(hours=1)
                conn.execute(  # type: ignore[attr-defined]
                    insert(tables.past_requests).values(
                        request_id=number,
                        assignee=who,
                        image=image,
                        created=begin,
                        ready_at=ready,
                        ended=end,
                        state="closed",
                        reason="expired",
                        **what,
                    )
                )
                conn.execute(  # type: ignore[attr-defined]
                    insert(tables.claim_history).values(
                        request_id=number,
                        device_id=1,
                        claimed_at=begin,
                        released_at=end,
                        ready_at=ready,
                        reason="expired",
                        device="device1",
                        **what,
                    )
                )

        made.daemon.database.run(work)
        yield made


@pytest.fixture
def site(made: Server) -> Server:
    """The same, with a failed device."""
    since = made.daemon.clock.now() - timedelta(hours=2)
    made.change("device2", state="failed_self_test", state_since=since, comments="-dusty\n<b>")
    return made


# --- The API ---


def test_every_report_is_listed_and_can_be_had(site: Server) -> None:
    listed = site.get("/api/report/").get_json()["reports"]
    assert [report["name"] for report in listed] == NAMES
    assert sorted(NAMES) == sorted(name for names in GROUPS.values() for name in names)
    for report in listed:
        said = site.get(f"/api/report/{report['name']}/").get_json()
        assert said["columns"] == report["columns"]
        assert (said["since"] is not None) == report["spans"]
        for row in said["rows"]:
            assert list(row) == [column["name"] for column in report["columns"]]


def test_it_tells_what_it_is_about(site: Server) -> None:
    said = site.get("/api/report/use-by-assignee/?since=2020-01-01").status_code
    assert said == 400, "so long ago nothing is kept"
    now = site.daemon.clock.now()
    since, until = now - timedelta(days=3), now - timedelta(hours=3.5)
    path = f"/api/report/use-by-assignee/?since={since:%Y-%m-%dT%H:%M:%SZ}&until={until:%Y-%m-%dT%H:%M:%S}"
    said = site.get(path).get_json()
    assert (said["since"], said["until"]) == (f"{since:%Y-%m-%dT%H:%M:%S}", f"{until:%Y-%m-%dT%H:%M:%S}")
    assert [(row["assignee"], row["requests"]) for row in said["rows"]] == [
        ("ada@example.com", 1),
        ("=cmd|' /C calc'!A0", 1),
    ]
    assert said["rows"][0]["hours"] == 1.0
    assert said["rows"][1]["hours"] == pytest.approx(0.5, abs=0.001)


def test_seven_days_are_what_is_usual(site: Server) -> None:
    before = site.daemon.clock.now().replace(microsecond=0)
    said = site.get("/api/report/ready-by-image/").get_json()
    assert f"{before - timedelta(days=7):%Y-%m-%dT%H:%M:%S}" <= said["since"]
    assert said["until"] >= f"{before:%Y-%m-%dT%H:%M:%S}"
    future = site.get("/api/report/ready-by-image/?until=9999-12-31&days=0.5").get_json()
    assert future["until"] < "9999"
    assert len(future["rows"]) == 2


def test_rows_can_be_limited_and_some_kinds_of_devices_left_out(site: Server) -> None:
    said = site.get("/api/report/use-by-assignee/?limit=1").get_json()
    assert (said["total"], len(said["rows"])) == (3, 1)
    for key, value in (("environment", "staging"), ("hardware_type", "panda"), ("hardware_model", "ES")):
        assert len(site.get(f"/api/report/use-by-assignee/?{key}={value}").get_json()["rows"]) == 3
        assert site.get(f"/api/report/use-by-assignee/?{key}=x").get_json()["rows"] == []


@pytest.mark.parametrize(
    ("query", "field", "expected"),
    [
        ("days=0", "days", "greater than 0"),
        ("days=-1", "days", "greater than 0"),
        ("days=91", "days", "less than or equal to 90"),
        ("days=nan", "days", "number"),
        ("days=many", "days", "'many'.*number"),
        ("days=7&since=2026-01-01", "days", "not with since"),
        ("since=yesterday", "since", "'yesterday' is not a time such as 2026-11-24"),
        ("since=0001-01-01T00:00%2B14:00", "since", "a time such as"),
        ("since=9999-12-31", "since", "a time before"),
        ("until=1999-01-01", "until", "within the last 90 days"),
        ("until=" + "x" * 65, "until", "64"),
        ("since=2026-11-24&until=2026-11-24", "since", "a time before"),
        ("days=90&until=2020-01-02", "until", "within the last 90 days"),
        ("limit=0", "limit", "greater than or equal to 1"),
        ("format=xml", "format", "'json' or 'csv'"),
        ("environment=" + "x" * 33, "environment", "32"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(site: Server, query: str, field: str, expected: str) -> None:
    answer = site.get(f"/api/report/use-by-type/?{query}")
    assert answer.status_code == 400
    error = answer.get_json()["error"]
    assert error["field"] == field
    assert re.search(rf"^{field}: .*{expected}", error["message"]), error["message"]


def test_a_report_that_there_is_not(site: Server) -> None:
    answer = site.get("/api/report/weather/")
    assert answer.status_code == 404
    assert "'weather'; there are devices, failed, use-by-assignee" in answer.get_json()["error"]["message"]


def test_boards_have_no_kinds(site: Server) -> None:
    answer = site.get("/api/report/worst-relay-boards/?environment=lab")
    assert answer.status_code == 400
    assert answer.get_json()["error"]["field"] == "environment"
    (board, other) = site.get("/api/report/worst-relay-boards/").get_json()["rows"]
    assert {board["board"], other["board"]} >= {"far-board"}
    assert {board["devices"], other["devices"]} == {0, 3}


def test_devices_in_need_of_a_person_are_told_in_words(site: Server) -> None:
    (row,) = site.get("/api/report/failed/").get_json()["rows"]
    assert row["device"] == "device2"
    assert row["server"] == OWN
    assert row["why"].startswith("The self-test found a fault of the hardware")
    assert row["comments"] == "-dusty\n<b>"
    assert row["hours"] == pytest.approx(2.0, abs=0.01)


def test_a_file_for_spreadsheets(site: Server) -> None:
    answer = site.get("/api/report/use-by-assignee/?format=csv")
    assert answer.mimetype == "text/csv"
    assert re.fullmatch(
        r'attachment; filename="mozpool-use-by-assignee-\d{4}-\d\d-\d\d.csv"', answer.headers["Content-Disposition"]
    )
    head, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert head == ["assignee", "hours", "requests"]
    assert sorted(rows) == [
        ["'=cmd|' /C calc'!A0", "1.0", "1"],
        ["ada@example.com", "1.0", "1"],
        ["grace@example.com", "1.0", "1"],
    ]


@pytest.mark.parametrize("begin", list("=+-@\t\r\n"))
def test_nothing_in_it_is_taken_for_a_formula(site: Server, begin: str) -> None:
    site.change("device2", comments=f"{begin}1+1")
    text = site.get("/api/report/failed/?format=csv").text
    assert list(csv.reader(io.StringIO(text, newline="")))[1][-1] == f"'{begin}1+1"


def test_the_document_tells_of_every_report_and_of_each_of_its_columns() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for report in REPORTS:
        (section,) = re.findall(rf"^#+ [^\n]*`{report.name}`.*?(?=^#|\Z)", text, re.M | re.S)
        cells = re.findall(r"^\| (`[^|]*) \|", section, re.M)
        described = re.findall(r"`([a-z0-9_]+)`", " ".join(cells))
        assert described == [column.name for column in report.columns], report.name


# --- Pages ---


@pytest.mark.parametrize("name", NAMES)
def test_every_report_has_a_page(site: Server, name: str) -> None:
    page = site.get(f"/reports/{name}")
    assert page.status_code == 200
    for column in next(report for report in REPORTS if report.name == name).columns:
        assert f">{column.title}</a>" in page.text
    assert f'href="/reports/{name}"' in site.get("/reports").text
    assert f"/api/report/{name}/?format=csv" in page.text


def test_a_page_shows_numbers_and_leads_to_devices(site: Server) -> None:
    page = " ".join(site.get("/reports/ready-by-device").text.split())
    assert '<a href="/devices/device1">device1</a>' in page
    assert "66.7" in page
    assert "&lt;b&gt;" in site.get("/reports/failed").text
    assert "<b>" not in site.get("/reports/failed").text


def test_an_empty_report_says_so(site: Server) -> None:
    assert "Nothing of this happened in that time." in site.get("/reports/use-by-type?environment=nowhere").text
    site.change("device2", state="ready")
    assert "There is none." in site.get("/reports/failed").text


def test_a_page_is_sorted_by_any_column(site: Server) -> None:
    def order(query: str) -> list[str]:
        text = site.get(f"/reports/ready-by-image{query}").text
        return re.findall(r"<td >(b2g|android)</td>", text)

    assert order("?sort=image") == ["android", "b2g"]
    assert order("?sort=-image") == ["b2g", "android"]
    assert order("?sort=-ready") == ["b2g", "android"]
    assert order("?sort=p50") == ["b2g", "android"], "what has no value comes last"
    assert order("?sort=-p50") == ["b2g", "android"]
    assert order("?sort=nonsense") == ["android", "b2g"]
    assert 'aria-sort="descending" class="number"><a href="?sort=ready"' in " ".join(
        site.get("/reports/ready-by-image?sort=-ready").text.split()
    )


def test_a_page_says_what_is_wrong_and_keeps_what_was_given(site: Server) -> None:
    page = site.get("/reports/use-by-type?since=<yesterday>")
    assert page.status_code == 400
    assert "since: &#39;&lt;yesterday&gt;&#39; is not a time" in page.text
    assert 'value="&lt;yesterday&gt;"' in page.text
    assert site.get("/reports/weather").status_code == 404


def test_a_span_that_is_given_by_its_beginning_has_no_days(site: Server) -> None:
    since = site.daemon.clock.now() - timedelta(days=1)
    page = site.get(f"/reports/use-by-type?days=7&since={since:%Y-%m-%dT%H:%M}&sort=hours")
    assert page.status_code == 200
    assert "days=7" not in page.text
    assert 'value="" selected' in page.text


# --- The command ---


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def url(made: Server) -> Iterator[str]:
    """Where the server can be reached over HTTP."""
    web = make_server("127.0.0.1", 0, made.app, threaded=True)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


@pytest.fixture
def mozpool(site: Server, url: str) -> Run:
    """Runs the command."""
    return lambda *arguments: CliRunner().invoke(main, ["--server", url, "report", *arguments])


def test_it_lists_the_reports(mozpool: Run) -> None:
    result = mozpool()
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["NAME", *NAMES]
    assert [report["name"] for report in json.loads(mozpool("--json").stdout)] == NAMES


def test_it_shows_a_table(mozpool: Run) -> None:
    result = mozpool("use-by-assignee", "--days", "2")
    assert result.exit_code == 0
    head, *rows = result.stdout.splitlines()
    assert re.split(r"  +", head) == ["ASSIGNEE", "HOURS", "REQUESTS"]
    assert ["ada@example.com", "1.0", "1"] in [re.split(r"  +", row) for row in rows]
    assert re.search(r"from \S+ \S+ to \S+ \S+ UTC", result.stderr)
    assert "as of" in mozpool("devices").stderr


def test_it_prints_json_and_csv(mozpool: Run) -> None:
    said = json.loads(mozpool("ready-by-image", "--json", "--hardware-type", "panda", "--limit", "1").stdout)
    assert (said["total"], len(said["rows"])) == (2, 1)
    result = mozpool("ready-by-image", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["image"] for row in rows] == ["android", "b2g"]
    assert rows[0]["p50"] == ""
    assert result.stdout.endswith("\n")
    assert "\r" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["weather"], 4, "there is no report 'weather'"),
        (["."], 2, "is not a report's name"),
        (["use-by-type", "--days", "0"], 2, "--days"),
        (["use-by-type", "--days", "91"], 2, "days: '91.0'"),
        (["use-by-type", "--since", "yesterday"], 2, "since: 'yesterday' is not a time"),
        (["use-by-type", "--days", "3", "--since", "2026-11-24"], 2, "days: "),
        (["use-by-type", "--csv", "--json"], 2, "exclude each other"),
        (["--csv"], 2, "name a report"),
        (["--days", "3"], 2, "name a report"),
    ],
)
def test_what_it_refuses(mozpool: Run, arguments: list[str], code: int, said: str) -> None:
    result = mozpool(*arguments)
    assert result.exit_code == code, result.output
    assert said in result.stderr
