# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who is told of what: the configured targets and their filters."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from mozpool.config import ADDRESS, ASSIGNEE, NotifyTarget
from mozpool.notify.events import Event


def wants(target: NotifyTarget, event: Event) -> bool:
    """Whether a target is told of an event."""
    if event.kind not in target.events or (target.email == (ASSIGNEE,) and recipient(target, event) is None):
        return False
    pairs = (
        (target.environments, event.environment),
        (target.devices, event.device),
        (target.hardware_types, event.hardware_type),
        (target.servers, event.server),
        (target.assignees, event.assignee),
    )
    return all(
        not patterns or value is None or any(fnmatchcase(value.lower(), pattern.lower()) for pattern in patterns)
        for patterns, value in pairs
    )


def recipient(target: NotifyTarget, event: Event) -> str | None:
    """The address that only this event's mail goes to; None: those of the configuration."""
    if target.email != (ASSIGNEE,) or event.assignee is None or not ADDRESS.fullmatch(event.assignee):
        return None
    return event.assignee


def described(targets: Mapping[str, NotifyTarget]) -> list[str]:
    """A line for each target, for the log: without addresses, which may be secret."""
    return [
        f"{name} is told by {'webhook' if target.webhook else 'e-mail'} of {', '.join(target.events)}"
        for name, target in sorted(targets.items())
    ]
