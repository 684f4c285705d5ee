# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Where the inventory is read from: one interface, and a module for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mozpool.clock import Deadline
from mozpool.config import Inventory
from mozpool.errors import MozpoolError
from mozpool.lifeguard.inventory.hosts import Entry

Say = Callable[[str], None]


class Source(Protocol):
    """An inventory."""

    @property
    def title(self) -> str:
        """Which one it is, for messages: without user names, passwords and tokens."""
        ...

    @property
    def needed(self) -> Sequence[str]:
        """Fields without which a host is skipped."""
        ...

    def entries(self, deadline: Deadline, say: Say) -> Sequence[Entry]:
        """All hosts. ``say`` is told how far it is. Raises InventoryError: half an answer is none."""
        ...


class NoInventory(MozpoolError):
    """The configuration names no inventory."""

    status = 409
    code = "no_inventory"


def source_of(settings: Inventory) -> Source:
    """The inventory that the configuration names. Raises NoInventory."""
    from mozpool.lifeguard.inventory.sources.command import CommandSource
    from mozpool.lifeguard.inventory.sources.files import FileSource
    from mozpool.lifeguard.inventory.sources.mozilla import MozillaSource
    from mozpool.lifeguard.inventory.sources.netbox import NetBoxSource

    if not settings.is_configured:
        raise NoInventory("no inventory is configured: see [inventory] in config.ini.dist")
    if settings.source == "file":
        assert settings.path is not None
        return FileSource(settings.path)
    if settings.source == "command":
        assert settings.command is not None
        return CommandSource(settings.command)
    return NetBoxSource(settings) if settings.source == "netbox" else MozillaSource(settings)
