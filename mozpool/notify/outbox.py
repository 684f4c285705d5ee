# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The outbox: what happened is noted in the transaction of what it is about, and told until somebody has taken it.

Any server of the pool tells what is due, each thing once unless a server dies or loses the database while it does so:
then it may be told again, under the same id. What a target does not take is tried again later and later, and its own
lane is all that waits for it meanwhile.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mozpool.access import details
from mozpool.clock import Clock
from mozpool.config import NotifyTarget, Settings
from mozpool.db import outbox
from mozpool.db.engine import Database
from mozpool.db.outbox import Letter, Waiting
from mozpool.errors import DatabaseAway
from mozpool.lanes import Lanes, Soon, Timers
from mozpool.notify import mail, webhook
from mozpool.notify.events import Event
from mozpool.notify.targets import recipient, wants
from mozpool.notify.webhook import NotTaken

log = logging.getLogger("mozpool.notify")

LANE = "outbox"
"""The lane of looking for what is due."""

CALLBACK = "callback"
"""What a request's own callback URL is told, in place of an event's kind."""

ABREAST = 4
"""How many callback URLs of one host are called at a time, as long as it answers."""

TAKEN_FOR = 60.0
"""Seconds beyond a call's own time limit after which it counts as not made: whoever began it must be gone."""

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 4 * 3600.0
"""Seconds until it is tried again: doubled each time, from the first to the longest."""

LONGEST_HOLD = 60.0
"""Seconds for which a target that does not answer at all is left alone, at most."""

MOST = 10_000
"""How much may wait for one target. What has waited longest is given up."""

LOOK_AGAIN = 0.5
"""Seconds until it is looked again when a target's lane found nothing more that it could tell."""

LOOK_AT = 50
"""How many letters are looked at to find the next one."""

IN_ONE_MAIL = 500
"""How many events one mail may tell of."""


class Outbox:
    """Writes what is to be told, and tells it. Methods may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        server_id: int,
        *,
        clock: Clock,
        rng: random.Random,
        timers: Timers,
        quick: Lanes,
        workers: Lanes,
        post: webhook.Post = webhook.post,
        send: mail.Send | None = None,
    ) -> None:
        """``quick`` workers look at what is due; ``workers`` tell it, by ``post`` or ``send``.

        Without ``send`` it is the mail server of the settings.
        """
        self.targets = settings.targets
        self._settings = settings
        self._database = database
        self._server_id = server_id
        self._clock = clock
        self._rng = rng
        self._timers = timers
        self._workers = workers
        self._post = post
        self._send = send or mail.Mailer(settings.email)
        self._speed = settings.testing.speed
        self._began = False
        self._soon = Soon(quick, LANE, self._look, "looking at the outbox")
        self._lock = threading.Lock()
        self._busy: set[tuple[str, int]] = set()
        self._failures: dict[str, int] = {}
        """Target → how often in a row it did not answer."""
        self._held: dict[str, float] = {}
        """Target → until when it is left alone (monotonic time)."""
        self._said: dict[str, str] = {}
        """Target → what was last logged of it."""

    # Noting

    def listens(self, kind: str) -> bool:
        """Whether anybody is told of events of this kind."""
        return any(kind in target.events for target in self.targets.values())

    def letters(self, event: Event) -> list[Letter]:
        """What is to be told of an event, and to whom."""
        body = json.dumps(event.body(self._settings.server.fqdn))
        now = self._clock.now()
        return [
            Letter(
                event=event.kind,
                event_key=event.key,
                target=name,
                body=body,
                created=now,
                due=now + timedelta(seconds=self._settings.email.delay / self._speed) if target.email else now,
                address=recipient(target, event),
                valid_until=event.valid_until,
            )
            for name, target in self.targets.items()
            if wants(target, event)
        ]

    def callback(self, url: str, key: str, body: Mapping[str, Any]) -> Letter:
        """What is to be told to a request's callback URL."""
        now = self._clock.now()
        return Letter(CALLBACK, key, host_of(url), json.dumps(body), now, now, address=url)

    def note(self, conn: Connection, letters: Sequence[Letter]) -> None:
        """Write them in this transaction; :meth:`wake` is to be called after it. Raises IntegrityError."""
        outbox.add(conn, letters)

    def note_once(self, event: Event, still: Callable[[Connection], bool] = lambda conn: True) -> None:
        """Note an event that other servers may have seen, too, if it is ``still`` one. Raises DatabaseAway."""
        letters = self.letters(event)
        if not letters:
            return

        def work(conn: Connection) -> None:
            known = outbox.known(conn, [event.key])
            if still(conn):
                outbox.add(conn, [letter for letter in letters if (letter.event_key, letter.target) not in known])

        try:
            self._database.run(work, repeatable=True)
        except IntegrityError:
            return  # another server was faster, which has the same targets
        self.wake()

    def noted(self, keys: Iterable[str]) -> set[str]:
        """Those of these events that were noted before. Raises DatabaseAway."""
        with self._database.read() as conn:
            return {key for key, _ in outbox.known(conn, list(keys))}

    # Looking

    def wake(self) -> None:
        """Have a worker look at what is due: something may have been noted."""
        self._soon.ask()

    def _look(self) -> None:
        try:
            self.look()
        except DatabaseAway as error:
            log.debug("what is to be told waits: %s", error)

    def look(self) -> None:
        """Begin to tell what is due, and set a timer for what will be. Raises DatabaseAway."""
        if not self._began:
            # What the process before this one was telling may or may not have been heard.
            now = self._clock.now()
            self._database.run(lambda conn: outbox.let_go(conn, self._server_id, now), repeatable=True)
            self._began = True
        with self._database.read() as conn:
            found = outbox.waiting(conn)
        now, here = self._clock.now(), self._clock.monotonic()
        pauses = []
        for waiting in found:
            if not self._is_known(waiting.target):
                continue  # another server may know it
            if waiting.number > MOST:
                self._cut(waiting)
            pause = max((waiting.due - now).total_seconds(), self._held.get(waiting.target, 0.0) - here)
            if pause > 0:
                pauses.append(pause)
            else:
                self._begin(waiting.target)
        if pauses:
            self._timers.set(LANE, min(pauses), self.wake)

    def _is_known(self, target: str) -> bool:
        return target in self.targets or "://" in target

    def _cut(self, waiting: Waiting) -> None:
        now = self._clock.now()
        gone = self._database.run(lambda conn: outbox.cut(conn, waiting.target, MOST, now), repeatable=True)
        if gone:
            log.error("%s takes nothing, and too much waits: the oldest %d are given up", waiting.target, gone)

    def give_up_old(self) -> None:
        """Give up what nobody has taken for days. Raises DatabaseAway."""
        now = self._clock.now()
        before = now - timedelta(days=self._settings.notify.give_up_after)
        for target, number in self._database.run(
            lambda conn: outbox.give_up(conn, before, now), repeatable=True
        ).items():
            log.error("%s has taken nothing for days: %d are given up", target, number)

    # Telling

    def _begin(self, target: str) -> None:
        is_callback = target not in self.targets
        # Where nobody answers, one call at a time is enough to find out when somebody does.
        lanes = ABREAST if is_callback and not self._failures.get(target) else 1
        for lane in range(lanes):
            self._next(target, lane, lanes)

    def _next(self, target: str, lane: int, lanes: int) -> None:
        with self._lock:
            if (target, lane) in self._busy:
                return
            self._busy.add((target, lane))
        self._workers.submit((target, lane), lambda: self._work(target, lane, lanes), f"telling {target}")

    def _work(self, target: str, lane: int, lanes: int) -> None:
        go_on = False
        try:
            go_on = self._tell(target, lane, lanes)
        except DatabaseAway as error:
            log.info("%s is told later: %s", target, error)
        finally:
            with self._lock:
                self._busy.discard((target, lane))
        if go_on:
            self._next(target, lane, lanes)
        else:
            self._timers.set(f"{LANE} again", LOOK_AGAIN / self._speed, self.wake)

    def _tell(self, target: str, lane: int, lanes: int) -> bool:
        """Tell the next thing; answer whether there may be more."""
        settings = self.targets.get(target)
        limit = webhook.CALL_LIMIT if settings is None or settings.webhook else self._settings.email.timeout
        letters = self._take(target, settings, lane, lanes, limit + TAKEN_FOR)
        if not letters:
            return False
        now = self._clock.now()
        late = [letter for letter in letters if letter.valid_until is not None and letter.valid_until < now]
        if late:
            self._write(lambda conn: outbox.end(conn, late, now, "it came too late to be of use"))
            letters = [letter for letter in letters if letter not in late]
            if not letters:
                return True
        try:
            if settings is not None and settings.email:
                self._mail(settings, letters)
            else:
                self._call(settings, letters[0])
        except NotTaken as error:
            return self._failed(target, letters, error)
        self._write(lambda conn: outbox.end(conn, letters, self._clock.now()))
        self._answers(target)
        return True

    def _take(self, target: str, settings: NotifyTarget | None, lane: int, lanes: int, seconds: float) -> list[Letter]:
        """The next letter, or all that go into the next mail, taken from other servers for so many seconds."""
        now = self._clock.now()
        by_mail = settings is not None and bool(settings.email)
        with self._database.read() as conn:
            found = outbox.due(conn, target, now, IN_ONE_MAIL if by_mail else LOOK_AT, fresh=by_mail)
        found = [letter for letter in found if lanes == 1 or _share(letter.address or "", lanes) == lane]
        if by_mail:
            due = next((letter for letter in found if letter.due <= now), None)
            found = [] if due is None else [letter for letter in found if letter.address == due.address]
        until = now + timedelta(seconds=seconds)

        def take(letters: Sequence[Letter]) -> list[Letter]:
            # When its commit goes unanswered, it is taken by nobody, and due again later.
            return self._database.run(lambda conn: outbox.take(conn, letters, until, self._server_id), repeatable=True)

        if by_mail:
            return take(found) if found else []
        return next((taken for taken in (take([letter]) for letter in found) if taken), [])

    def _call(self, settings: NotifyTarget | None, letter: Letter) -> None:
        body = letter.body.encode()
        url, secret = (letter.address or "", "") if settings is None else (settings.webhook, settings.secret)
        timestamp = int(self._clock.now().timestamp())
        self._post(url, body, webhook.headers(letter.event, letter.id, timestamp, body, secret))

    def _mail(self, settings: NotifyTarget, letters: Sequence[Letter]) -> None:
        address = letters[0].address
        recipients = settings.email if address is None else (address,)
        made = mail.compose(
            [json.loads(letter.body) for letter in letters],
            sender=self._settings.email.sender,
            recipients=recipients,
            identity=f"mozpool-{letters[0].id}-{len(letters)}",
            now=self._clock.now(),
        )
        refused = self._send(made, recipients)
        if refused:
            log.warning("the mail server refuses %s", ", ".join(refused))

    def _failed(self, target: str, letters: Sequence[Letter], error: NotTaken) -> bool:
        now = self._clock.now()
        reason = str(error)
        too_old = now - timedelta(days=self._settings.notify.give_up_after)
        over = [letter for letter in letters if error.final or letter.created < too_old]
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (min(30, letters[0].tries) - 1))
        due = now + timedelta(seconds=pause * self._rng.uniform(0.75, 1.25) / self._speed)

        def work(conn: Connection) -> None:
            outbox.end(conn, over, now, reason)
            outbox.again(conn, [letter for letter in letters if letter not in over], due, reason)

        self._write(work)
        for letter in over:
            log.error(
                "%s is not told of %s: %s, given up after %d tries", target, letter.event_key, reason, letter.tries
            )
        if self._said.get(target) != reason:
            self._said[target] = reason
            log.warning("%s was not told of %s, and is again later: %s", target, letters[0].event_key, reason)
        if error.answered:
            self._held.pop(target, None)
            self._failures.pop(target, None)
            return True
        failures = self._failures[target] = self._failures.get(target, 0) + 1
        hold = min(LONGEST_HOLD, 2.0 ** min(failures, 30)) / self._speed
        self._held[target] = self._clock.monotonic() + hold
        return False

    def _answers(self, target: str) -> None:
        self._held.pop(target, None)
        if self._said.pop(target, None) is not None:
            log.info("%s takes what it is told", target)
        if self._failures.pop(target, 0):
            self._write(lambda conn: outbox.hurry(conn, target))

    def _write(self, work: Any) -> None:
        """Write what came of it. Raises DatabaseAway: then it is told again."""
        self._database.run(work, repeatable=True)


def host_of(url: str) -> str:
    """The target that a callback URL belongs to: scheme and host, without what may be secret in it."""
    return outbox.target_name(details.host_of(url))


def _share(address: str, lanes: int) -> int:
    """Which of so many lanes an address belongs to: what one client is told comes in order."""
    return zlib.crc32(address.encode(errors="replace")) % lanes


def try_out(settings: Settings, name: str, now: datetime, post: webhook.Post = webhook.post) -> str:
    """Tell a target that this is a test; answer in words what came of it. Raises NotTaken."""
    target = settings.targets[name]
    event = Event(
        kind="test",
        key=f"test:{int(now.timestamp())}",
        time=now,
        subject=name,
        summary=f"a test of [notify {name}]",
        text=f"Nothing has happened: imaging server {settings.server.fqdn} was asked to test whether this arrives.",
        page="/servers",
    )
    body = event.body(settings.server.fqdn)
    if target.webhook:
        data = json.dumps(body).encode()
        post(target.webhook, data, webhook.headers(event.kind, 0, int(now.timestamp()), data, target.secret))
        return "the webhook has taken it"
    sender = settings.email.sender
    recipients = (sender,) if recipient(target, replace(event, assignee=sender)) else target.email
    made = mail.compose([body], sender=sender, recipients=recipients, identity=event.key.replace(":", "-"), now=now)
    refused = mail.Mailer(settings.email)(made, recipients)
    if refused:
        raise NotTaken(f"the mail server has refused {', '.join(refused)}", answered=True)
    return f"the mail server has taken it, for {', '.join(recipients)}"
