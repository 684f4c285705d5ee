# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Lines of syslog: all forms that boards send, and what else may come."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mozpool.bmm.syslogline import FACILITIES, Line, parse, plausible

NOW = datetime(2026, 1, 10, 12, 0, tzinfo=UTC)


def said(text: str | bytes, now: datetime = NOW) -> Line:
    line = parse(text if isinstance(text, bytes) else text.encode(), now)
    assert line is not None
    return line


def test_a_line_of_a_board_has_host_tag_time_and_text():
    assert said("<134>Jan  9 03:36:04 panda-1 mobile-init.sh: mounted: it's done") == Line(
        "local0", "panda-1", datetime(2026, 1, 9, 3, 36, 4, tzinfo=UTC), "mobile-init.sh", "mounted: it's done"
    )


@pytest.mark.parametrize("end", ["", "\0", "\n", "\r\n", "\n\0"])
def test_a_line_of_the_self_test_has_no_time(end: str):
    assert said(f"<134>panda-1 selftest.py[INFO]: all is well{end}") == Line(
        "local0", "panda-1", None, "selftest.py[INFO]", "all is well"
    )


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("sshd[77]: accepted", "sshd", "accepted"),
        ("selftest.sh[ERROR]: no disk", "selftest.sh[ERROR]", "no disk"),
        ("kernel panic", "kernel", "panic"),
        ("x:y", "x", "y"),
        (": nothing", "", ": nothing"),
        ("[77]: odd", "[77]", "odd"),
        ("x.sh:", "x.sh", ""),
        ("x.sh:   blanks   ", "x.sh", "blanks"),
        ("x.sh: tab\there, bell\x07, esc\x1b[0m", "x.sh", "tab\there, bell\\x07, esc\\x1b[0m"),
        ("x.sh: two\nlines", "x.sh", "two\\nlines"),
        ("x.sh: Grüße \U0001f4a9", "x.sh", "Grüße \U0001f4a9"),
    ],
)
def test_the_source_is_the_tag_without_a_process_id(text: str, source: str, message: str):
    line = said(f"<134>panda-1 {text}")
    assert (line.source, line.message) == (source, message)


def test_what_is_not_utf_8_is_read_as_latin_1():
    assert said(b"<134>panda-1 x: caf\xe9").message == "café"
    assert said(b"<134>panda-1 x: half \xed\xa0\x80").message == "half í\xa0\\x80"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2026-01-09T03:36:04.5+02:00 panda-1.example.com agent 77 ID47 - started", ("agent", "started")),
        ("1 2026-01-09T01:36:04.5Z panda-1.example.com agent - - - \ufeffGrüße", ("agent", "Grüße")),
        ('1 2026-01-09T01:36:04.5 panda-1.example.com agent - - [a@1 b="]\\""][c d="e"] said', ("agent", "said")),
        ("1 2026-01-09T01:36:04.5Z panda-1.example.com - - - -", ("-", "")),
    ],
)
def test_rfc_5424_is_read(text: str, expected: tuple[str, str]):
    line = said(f"<134>{text}")
    assert (line.host, line.ts) == ("panda-1.example.com", datetime(2026, 1, 9, 1, 36, 4, 500_000, tzinfo=UTC))
    assert (line.source, line.message) == expected


def test_rfc_5424_may_say_no_time():
    assert said("<134>1 - panda-1 agent - - - started").ts is None


def test_a_time_without_a_year_is_of_the_nearest_one():
    assert said("<134>Dec 31 23:59:59 panda-1 x: y").ts == datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)
    late = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
    assert said("<134>Jan  1 00:00:01 panda-1 x: y", late).ts == datetime(2027, 1, 1, 0, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize("when", ["Jan 32 00:00:00 ", "Feb 30 00:00:00 ", "Jan  1 25:00:00 ", "9999-99-99T00:00:00Z "])
def test_a_time_that_does_not_exist_is_none(when: str):
    line = said(f"<134>{when}panda-1 x: y")
    assert (line.host, line.ts, line.message) == ("panda-1", None, "y")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"panda-1 x: no priority",
        b"<>panda-1 x: y",
        b"<192>panda-1 x: y",
        b"<1234>panda-1 x: y",
        b"<134>",
        b"<134>panda-1",
        b"<134>x.sh: nobody's",
        b"<134>Jan  9 03:36:04 ",
        b"\xff\xfe" * 100,
    ],
)
def test_what_does_not_say_whose_it_is_is_nothing(data: bytes):
    assert parse(data, NOW) is None


@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda text: b"<134>" + text.encode("utf-8", "surrogatepass")),
        st.text(max_size=200).map(lambda text: f"<134>1 - panda-1 x - - [{text}".encode("utf-8", "surrogatepass")),
        st.binary(max_size=200).map(lambda data: b"<134>Jan  9 03:36:04 panda-1 " + data),
    )
)
@example(b"<134>1 0001-01-01T00:00:00+14:00 panda-1 x - - - y")
@example(b"<134>1 - panda-1 x - - " + b'["' * 4000)
@example("<134>Jan  \u0661 03:36:04 panda-1 x: y".encode())
def test_nothing_upsets_it(data: bytes):
    line = parse(data, NOW)
    if line is not None:
        assert line.facility in FACILITIES
        assert line.host
        (line.source + line.message).encode()
        assert "\n" not in line.source + line.message
        assert line.ts is None or line.ts.utcoffset() == timedelta(0)


@given(st.datetimes(datetime(2025, 8, 1), datetime(2026, 6, 1)), st.text("abc-09", min_size=1), st.text())  # noqa: DTZ001
def test_what_a_board_says_is_what_is_read(when: datetime, host: str, text: str):
    line = said(f"<134>{when:%b %e %H:%M:%S} {host} x.sh: {text}".encode("utf-8", "replace"))
    assert line.ts == when.replace(microsecond=0, tzinfo=UTC)
    assert (line.host, line.source) == (host, "x.sh")


def test_times_that_no_line_is_kept_for_are_now():
    keep = timedelta(days=14)
    assert plausible(None, NOW, keep) == NOW
    for good in (NOW - keep, NOW, datetime(2026, 1, 11, 23, 59, tzinfo=UTC)):
        assert plausible(good, NOW, keep) == good
    for bad in (NOW - keep - timedelta(seconds=1), datetime(2026, 1, 12, tzinfo=UTC)):
        assert plausible(bad, NOW, keep) == NOW
