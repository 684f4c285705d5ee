# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What views know better of the current call than its audit would write by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask import g


@dataclass
class Note:
    """What a view has said of its own call."""

    action: str | None = None
    target: str | None = None
    who: str | None = None
    details: dict[str, Any] | None = None


def noted() -> Note | None:
    """What has been said of the current call."""
    found = g.get("audit_note")
    return found if isinstance(found, Note) else None


def note(target: str | None = None, *, action: str | None = None, who: str | None = None, **details: Any) -> None:
    """Say what the current call is really about; the last word counts.

    ``action``: this call is audited although it would not be by itself, such as the end of a sign-on. ``who``: of a
    call that makes somebody known.
    """
    made = noted()
    if made is None:
        made = g.audit_note = Note()
    made.target = target or made.target
    made.action = action or made.action
    made.who = who or made.who
    if details:
        made.details = {**(made.details or {}), **details}
