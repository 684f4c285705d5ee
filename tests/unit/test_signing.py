# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Signed calls between imaging servers: what is taken, and all that is not."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mozpool.access.principal import EVERYBODY, Kind, Principal, Role, Team
from mozpool.access.signing import SCHEME, WINDOW, BadSignature, Call, OtherRun, Sender, Signer, Verifier
from mozpool.clock import SimClock

KEY, NEW = "k" * 32, "n" * 40
A, B = "server-1.example.com", "server-2.example.com:8080"
PATH = "/api/device/panda-1/event/please_image/?by=me%20too"
BODY = b'{"image": "b2g"}'
CALL = Call.to("POST", PATH, BODY)


class Two:
    """A server that signs and one that checks, each with a clock of its own."""

    def __init__(self, keys: tuple[str, ...] = (KEY,), its_keys: tuple[str, ...] = (KEY,)) -> None:
        self.clock, self.its_clock = SimClock(), SimClock()
        self.signer = Signer(A, keys, self.clock)
        self.verifier = Verifier(B, its_keys, self.its_clock)

    def signed(self, call: Call = CALL, *, to: str = B, run: str | None = None, who: Principal | None = None) -> str:
        scheme, _, credentials = self.signer.sign(call, to, self.verifier.run if run is None else run, who).partition(
            " "
        )
        assert scheme == SCHEME
        return credentials

    def refused(self, credentials: str, call: Call = CALL) -> str:
        with pytest.raises(BadSignature) as caught:
            self.verifier.check(credentials, call)
        return caught.value.message


def test_a_servers_own_call_is_known() -> None:
    two = Two()
    assert two.verifier.check(two.signed(), CALL) == Sender(A, None)


def test_the_path_is_what_the_application_sees() -> None:
    two = Two()
    credentials = two.signed(Call.to("GET", "/api/device/a%2Db%20c/ping/?x=%41", b""))
    assert two.verifier.check(credentials, Call("GET", "/api/device/a-b c/ping/", "x=%41", b"")).server == A


TEAM = Team(3, "perf", 4, 3600, ("staging", "none"))


@pytest.mark.parametrize(
    "who",
    [
        Principal(Kind.TOKEN, Role.USER, "me@example.com", TEAM, credential=7),
        Principal(Kind.TOKEN, Role.ADMIN, "ci"),
        Principal(Kind.NOBODY, Role.VIEWER),
        Principal(Kind.PERSON, Role.OPERATOR, "jörg", Team(1, "all")),
    ],
)
def test_it_is_known_for_whom_a_call_is_passed_on(who: Principal) -> None:
    two = Two()
    assert two.verifier.check(two.signed(who=who), CALL) == Sender(A, who)


def test_a_session_stays_where_it_was_begun() -> None:
    two = Two()
    who = Principal(Kind.PERSON, Role.USER, "me@example.com", session=9)
    assert two.verifier.check(two.signed(who=who), CALL).on_behalf == replace(who, session=None)


def test_whom_a_server_has_not_asked_who_they_are_is_nobody_elsewhere() -> None:
    two = Two()
    assert two.verifier.check(two.signed(who=EVERYBODY), CALL).on_behalf == Principal(Kind.NOBODY, Role.NOBODY)


@pytest.mark.parametrize(
    "changed",
    [
        replace(CALL, method="GET"),
        replace(CALL, path=CALL.path + "x"),
        replace(CALL, query=CALL.query + "&once=1"),
        replace(CALL, query=""),
        replace(CALL, body=b'{"image": "raw"}'),
        replace(CALL, body=b""),
    ],
)
def test_a_call_that_was_changed_on_its_way_is_refused(changed: Call) -> None:
    two = Two()
    assert "something has changed it" in two.refused(two.signed(), changed)


def test_a_call_counts_once() -> None:
    two = Two()
    credentials = two.signed()
    two.verifier.check(credentials, CALL)
    assert two.refused(credentials) == "the same call has come before"
    two.its_clock.advance(WINDOW + 1)
    assert "it was signed 61 s ago" in two.refused(credentials)


@pytest.mark.parametrize("ahead", [-30.0, -WINDOW, 30.0, WINDOW])
def test_clocks_may_differ_by_some_seconds(ahead: float) -> None:
    two = Two()
    (two.clock if ahead > 0 else two.its_clock).advance(abs(ahead))
    credentials = two.signed()
    assert two.verifier.check(credentials, CALL).server == A
    for _ in range(4):  # as long as it would be taken by its time, it is known
        assert two.refused(credentials)
        two.its_clock.advance(WINDOW / 2)


@pytest.mark.parametrize(("ahead", "said"), [(WINDOW + 2, "62 s from now"), (-WINDOW - 2, "62 s ago")])
def test_clocks_that_differ_too_much_are_named(ahead: float, said: str) -> None:
    two = Two()
    (two.clock if ahead > 0 else two.its_clock).advance(abs(ahead))
    message = two.refused(two.signed())
    assert said in message
    assert A in message
    assert B in message


def test_what_was_seen_is_forgotten_when_its_time_is_over() -> None:
    two = Two()
    for _ in range(10):
        two.verifier.check(two.signed(), CALL)
        two.clock.advance(WINDOW)
        two.its_clock.advance(WINDOW)
    assert len(two.verifier._nonces) == len(two.verifier._arrived) <= 4


def test_a_call_for_another_server_is_refused() -> None:
    two = Two()
    assert (
        two.refused(two.signed(to="server-3.example.com")) == f"the call is for server-3.example.com, and this is {B}"
    )
    assert two.verifier.check(two.signed(to=B.upper()), CALL).server == A


def test_a_call_from_before_a_restart_is_refused() -> None:
    two = Two()
    credentials = two.signed()
    again = Verifier(B, (KEY,), two.its_clock)
    with pytest.raises(OtherRun):
        again.check(credentials, CALL)
    assert again.run != two.verifier.run


@pytest.mark.parametrize(
    ("keys", "its_keys"),
    [((NEW, KEY), (KEY,)), ((KEY,), (NEW, KEY)), ((NEW, KEY), (NEW, KEY)), ((NEW,), (NEW, KEY)), ((NEW, KEY), (NEW,))],
)
def test_keys_are_changed_from_server_to_server(keys: tuple[str, ...], its_keys: tuple[str, ...]) -> None:
    two = Two(keys, its_keys)
    assert two.verifier.check(two.signed(), CALL).server == A


def test_another_key_is_refused() -> None:
    two = Two((NEW,), (KEY,))
    assert two.refused(two.signed()) == "the signature is of another [auth] server_key"


def test_without_a_key_nobody_is_believed() -> None:
    two = Two((KEY,), ())
    assert two.refused(two.signed()) == f"{B} has no [auth] server_key to compare signatures with"


@pytest.mark.parametrize(
    ("newer", "role"), [({"team": {"id": 3, "name": "perf", "motto": "x"}}, Role.USER), ({"kind": "robot"}, None)]
)
def test_what_a_newer_server_says_is_understood_as_far_as_it_can_be(
    monkeypatch: pytest.MonkeyPatch, newer: dict[str, object], role: Role | None
) -> None:
    two = Two()
    who = Principal(Kind.TOKEN, Role.USER, "me")
    said = {"kind": "token", "role": "user", "name": "me", "team": None, "credential": None, **newer}
    monkeypatch.setattr("mozpool.access.signing._described", lambda who: said)
    if role is None:
        assert "this version does not understand" in two.refused(two.signed(who=who))
        return
    assert two.verifier.check(two.signed(who=who), CALL).on_behalf == replace(who, team=Team(3, "perf"))


def test_claims_can_not_be_written_anew() -> None:
    two = Two()
    text, _, mac = two.signed().partition(" ")
    claims = json.loads(base64.urlsafe_b64decode(text))
    for name in claims:
        forged = base64.urlsafe_b64encode(json.dumps({**claims, name: "x"}).encode()).decode()
        assert two.refused(f"{forged} {mac}") == "the signature is of another [auth] server_key"


@given(st.text(max_size=200))
def test_what_makes_no_sense_is_refused(credentials: str) -> None:
    Two().refused(credentials)


@given(st.integers(0, 400), st.integers(1, 255))
def test_no_byte_of_a_signature_may_differ(place: int, by: int) -> None:
    two = Two()
    good = two.signed().encode()
    place %= len(good)
    changed = good[:place] + bytes([(good[place] + by) % 256]) + good[place + 1 :]
    two.refused(changed.decode("latin-1"))
