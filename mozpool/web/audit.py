# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Which calls are audited, and what is written of them.

All that may change something: each call but GET and HEAD, and those GETs of which the matrix says that they act; those
that were refused, too. In the table it is before the answer goes out. Left out are

- calls that only look although they are POSTs (QUERIES);
- what imaging servers tell each other on their own behalf;
- what devices tell of themselves and is accepted: it is in their logs. In mode open, where nobody is known, that is
  every event that is no request (``please_...``), and what imaging servers tell requests (TOLD);
- calls that belong to another imaging server, which audits them;
- what is refused because too many calls come (429), and, of what is refused to nobody in particular, all but some calls
  a minute of each address: the next row says how many more there were.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

from apiflask import APIFlask
from flask import Response, g, request

from mozpool.access.addresses import caller
from mozpool.access.audit import Auditor
from mozpool.access.details import CALLED, fit, text
from mozpool.access.matrix import RULES
from mozpool.access.notes import noted
from mozpool.access.principal import EVERYBODY, Kind, Principal, Role
from mozpool.apikit import Site, json_body, site
from mozpool.clock import Clock
from mozpool.db.audit import OK, Entry
from mozpool.errors import BadInput, DatabaseAway
from mozpool.web.forward import CALLER, is_forwarded
from mozpool.web.pages.base import me
from mozpool.web.rates import MOST_KEYS, Rates

log = logging.getLogger("mozpool.audit")

QUERIES = frozenset({"catalogue.pxe_config_check"})
"""Endpoints that change nothing and are POSTs only because of what they are sent."""

TOLD = frozenset({"claimed", "job_ended", "lifeguard_finished"})
"""Events of requests that imaging servers send."""

MAX_UNREAD = 10_000
"""Bytes of a body that is read for the audit alone."""

STRANGERS = 60
"""Calls a minute of one address that are written although nobody knows who made them, and they were refused; a fifth
of them may come at once."""

LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})

_NOBODY = Principal(Kind.NOBODY, Role.NOBODY)


class Strangers:
    """Calls of nobody that were refused: so many of each address are written, so that they do not fill the audit."""

    def __init__(self, clock: Clock) -> None:
        self._rates = Rates(clock, STRANGERS)
        self._lock = threading.Lock()
        self._untold: dict[str, int] = {}

    def untold(self, address: str) -> int | None:
        """How many of an address were not written since the last one that was; None: this one is not, either."""
        key = caller(address)
        admitted = self._rates.take(key) is None
        with self._lock:
            if admitted:
                return self._untold.pop(key, 0)
            if len(self._untold) >= MOST_KEYS:
                self._untold.clear()
            self._untold[key] = self._untold.get(key, 0) + 1
            return None


def register(app: APIFlask, site: Site, auditor: Auditor) -> None:
    """Audit the calls of an application."""
    unknown = EVERYBODY if site.settings.auth_mode == "open" else _NOBODY
    strangers = Strangers(site.clock)

    @app.after_request
    def audited(said: Response) -> Response:
        try:
            # With credentials that were refused, nobody has been put there.
            who = g.get("principal", unknown)
            if is_audited(who, said):
                untold = 0
                if who.kind is Kind.NOBODY and said.status_code in (401, 403):
                    found = strangers.untold(request.remote_addr or "")
                    if found is None:
                        return said
                    untold = found
                auditor.write(entry_of(who, said, untold), away=_code(said) == DatabaseAway.code)
        except Exception:
            # Whatever is wrong here, what was carried out is answered.
            log.exception("not in the audit: %s %s: %d", request.method, request.endpoint, said.status_code)
        return said


def is_audited(who: Principal, said: Response) -> bool:
    """Whether the current call, made by them and answered so, belongs into the audit."""
    method, endpoint, status = request.method, request.endpoint, said.status_code
    if endpoint is None or method == "OPTIONS" or status == 429:
        return False
    made = noted()
    is_wanted = made is not None and made.action is not None
    if method in LOOKING and not is_wanted:
        rule = RULES.get(endpoint)
        if rule is None or not rule.acts:
            return False
    if is_forwarded() or (status == 302 and request.path.startswith("/api/")):
        return False
    if is_wanted:
        return True
    if endpoint in QUERIES or who.kind is Kind.SERVER:
        return False
    return status >= 400 or not _is_told(endpoint, who)


def _is_told(endpoint: str, who: Principal) -> bool:
    """Whether a device or an imaging server tells what has happened, as far as one can know."""
    if endpoint not in ("lifeguard.device_event", "mozpool.request_event"):
        return False
    if who.kind is not Kind.OPEN:
        return who.kind is Kind.DEVICE
    event = str((request.view_args or {}).get("event"))
    return event in TOLD if endpoint == "mozpool.request_event" else not event.startswith("please_")


def entry_of(who: Principal, said: Response, untold: int = 0) -> Entry:
    """The row of the current call, made by them and answered so. Time and server are the auditor's.

    ``untold`` is how many like it have no row.
    """
    made = noted()
    action = str(request.endpoint).rpartition(".")[2]
    details = _details(said)
    name = who.name
    if who.kind is Kind.OPEN:
        name = g.get("assignee") or me() or None
    target, used = _target(details)
    if made is not None:
        action, name, target = made.action or action, made.who or name, made.target or target
        details.update(made.details or {})
    details.pop(used, None)
    if details.get("assignee") == name:
        details.pop("assignee", None)
    if untold:
        details["more"] = untold
    return Entry(
        ts=site().clock.now(),
        kind=who.kind.value,
        who=name,
        credential=who.credential,
        address=request.remote_addr,
        server="",
        action=action,
        target=target,
        details=fit(details),
        status=said.status_code,
        outcome=_outcome(said),
    )


def _body(said: Response) -> dict[str, Any]:
    """The call's JSON. Where the view had no need to read it, it is read of calls that were carried out."""
    if "body" not in g and said.status_code < 400 and (request.content_length or 0) <= MAX_UNREAD:
        with suppress(BadInput):
            json_body()
    body = g.get("body")
    return body if isinstance(body, dict) and request.path.startswith("/api/") else {}


def _details(said: Response) -> dict[str, Any]:
    """What the call says: in its path and, of the API, in its query and its body.

    The path is what it was about: what else has the same name stands beside it.
    """
    details: dict[str, Any] = {}
    if request.query_string and request.path.startswith("/api/"):
        details.update(request.args.to_dict(flat=True))
    details.update(_body(said))
    for name, value in (request.view_args or {}).items():
        if name in details and details[name] != value:
            details[f"{name} (sent)"] = details[name]
        details[name] = value
    seen_by_other = request.headers.get(CALLER)
    # In mode open everybody may say anything.
    if seen_by_other is not None and (g.get("signed", False) or "principal" not in g):
        details["caller"] = _address(seen_by_other)
    return details


def _address(said: str) -> str:
    """An address that another server says to have been called from."""
    try:
        return str(ip_address(said.strip()))
    except ValueError:
        return "?"


def _target(details: dict[str, Any]) -> tuple[str | None, str]:
    """What the call is about, by its path: ``/api/device/NAME/...`` is about ``device NAME``; and the key used for it.

    Of what is made anew, the body says the name.
    """
    rule = request.url_rule
    parts = [] if rule is None else rule.rule.strip("/").split("/")
    for before, part in pairwise(parts):
        if part.startswith("<"):
            key = part.strip("<>").rpartition(":")[2]
            return f"{before} {details.get(key)}", key
    if len(parts) >= 3:
        kind = parts[-2]
        for key in (kind, "name"):
            if isinstance(details.get(key), str):
                return f"{kind} {text(details[key])}", key
    return None, ""


def _code(said: Response) -> str | None:
    """The code of the error that is answered."""
    return _error(said).get("code") if said.status_code >= 500 else None


def _error(said: Response) -> dict[str, Any]:
    found = said.get_json(silent=True) if said.mimetype == "application/json" else None
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}


def _outcome(said: Response) -> str:
    if said.status_code < 400:
        return OK
    error = _error(said)
    if error.get("field") in CALLED:  # the message quotes it
        return f"{error['field']} is not right"
    return text(str(error.get("message") or said.status))
