# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What may be told: events, and what each of them says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from mozpool.apikit import time_text
from mozpool.db.relay_boards import RelayBoard
from mozpool.db.servers import Server

REASON = 1000
"""The most characters of a reason that are told: some quote what a board said."""


@dataclass(frozen=True)
class Event:
    """Something that happened. What it has no property of (None), filters by that property let pass."""

    kind: str
    """One of :data:`mozpool.config.EVENTS`."""
    key: str
    """Its own name: equal for all servers that see it."""
    time: datetime
    subject: str
    """What it happened to, by name."""
    summary: str
    """One line."""
    text: str
    """Sentences: what, since when, why."""
    page: str
    """The path of the page that shows more."""
    details: Mapping[str, Any] = field(default_factory=dict)
    valid_until: datetime | None = None
    """After that nobody needs to be told any more."""
    environment: str | None = None
    device: str | None = None
    hardware_type: str | None = None
    server: str | None = None
    assignee: str | None = None

    def body(self, server: str) -> dict[str, Any]:
        """What is told, as a JSON object; pages are those of the imaging server with this fqdn."""
        return {
            "id": self.key,
            "event": self.kind,
            "time": time_text(self.time),
            "subject": self.subject,
            "summary": self.summary,
            "text": self.text,
            "url": f"http://{server}{self.page}",
            "details": dict(self.details),
        }


def page_of(*parts: object) -> str:
    """The path of a page."""
    return "".join(f"/{quote(str(part), safe='')}" for part in parts)


def relay_board_failed(board: RelayBoard, now: datetime) -> Event:
    """A relay board or another power switch counts as failed, and its devices wait."""
    reason = (board.reason or "it does not answer")[:REASON]
    return Event(
        kind="relay_board_failed",
        key=f"relay_board:{board.id}:{int((board.since or now).timestamp() * 1000)}",
        time=now,
        subject=board.name,
        summary=f"{board.name} failed: {reason}",
        text=f"Relay board {board.name} has failed since {moment(board.since or now)}: {reason}. What is to be "
        "done to the power of its devices waits until it answers; it is tried again and again.",
        page=page_of("relays", board.name),
        details={
            "relay_board": board.name,
            "address": board.fqdn,
            "imaging_server": board.imaging_server,
            "reason": reason,
        },
        server=board.imaging_server,
    )


def server_away(server: Server, beat: int, now: datetime) -> Event:
    """An imaging server gives no sign of life since this beat."""
    since = None if server.presence is None else server.presence.seen
    group = None if server.presence is None else server.presence.group
    if group is None:
        then = "are not handed out until it is back"
    else:
        then = f"are taken over by the other servers of group {group}, if there are any"
    return _of_server(
        "server_away",
        f"server:{server.id}:{beat}:away",
        server,
        now,
        f"{server.fqdn} is away",
        f"Imaging server {server.fqdn} gives no sign of life: its last one came {moment(since or now)}. Its devices "
        f"({server.devices}) {then}; it serves {server.open_requests} open requests.",
    )


def server_back(server: Server, beat: int, now: datetime) -> Event:
    """An imaging server that was away since this beat gives signs of life again."""
    key, summary = f"server:{server.id}:{beat}:back", f"{server.fqdn} is back"
    return _of_server(
        "server_back", key, server, now, summary, f"Imaging server {server.fqdn} gives signs of life again."
    )


def _of_server(kind: str, key: str, server: Server, now: datetime, summary: str, text: str) -> Event:
    said = server.presence
    return Event(
        kind=kind,
        key=key,
        time=now,
        subject=server.fqdn,
        summary=summary,
        text=text,
        page=page_of("servers"),
        details={
            "imaging_server": server.fqdn,
            "group": None if said is None else said.group,
            "last_heartbeat": None if said is None else time_text(said.seen),
            "devices": server.devices,
            "open_requests": server.open_requests,
        },
        server=server.fqdn,
    )


def moment(value: datetime) -> str:
    """A time in a sentence."""
    return value.strftime("%Y-%m-%d %H:%M:%S UTC")
