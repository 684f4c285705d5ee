# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The state machines as diagrams show them."""

from __future__ import annotations

from typing import Any

from flask import Response

from mozpool.apikit import answer
from mozpool.errors import NotFound
from mozpool.lifeguard.api import lifeguard
from mozpool.pool.api import mozpool
from mozpool.statemachine import TAKEN_OVER, Machine
from mozpool.web.pages.base import blueprint

EVERYWHERE = frozenset({"close", "expire", "please_self_test", "please_start_maintenance"})
"""Events that lead from nearly every state to the same one: diagrams leave them out where they don't matter."""

MAX_AGE = 3600
"""Seconds for which browsers keep a machine."""


@blueprint.get("/machines/<name>.json")
def machine_json(name: str) -> Response:
    """The states of ``device`` or ``request``, and which leads where."""
    machines: dict[str, Machine[Any]] = {"device": lifeguard().driver.machine, "request": mozpool().driver.machine}
    if name not in machines:
        raise NotFound(f"there is no state machine {name[:64]}")
    machine = machines[name]
    events: dict[tuple[str, str], list[str]] = {}
    for source, event, target in machine.edges():
        if source != target and event != TAKEN_OVER:
            events.setdefault((source, target), []).append(event)
    said = answer(
        {
            "states": [
                {
                    "name": each,
                    "theme": type(state).__module__.rpartition(".")[2],
                    "meaning": machine.meaning_of(each),
                }
                for each, state in machine.states.items()
            ],
            "edges": [
                {"from": source, "to": target, "events": names, "everywhere": EVERYWHERE.issuperset(names)}
                for (source, target), names in events.items()
            ],
        }
    )
    said.cache_control.max_age = MAX_AGE
    return said
