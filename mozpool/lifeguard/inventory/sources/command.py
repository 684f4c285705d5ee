# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A program that prints all hosts as JSON: a list of objects with the fields that files have, too."""

from __future__ import annotations

from collections.abc import Sequence

from mozpool.bmm import program
from mozpool.clock import Deadline
from mozpool.lifeguard.inventory.hosts import NEEDED, Entry, InventoryError
from mozpool.lifeguard.inventory.sources import Say
from mozpool.lifeguard.inventory.sources.shared import listed, parse

OUTPUT_LIMIT = 64 * 1024 * 1024
"""Bytes that it may print."""


class CommandSource:
    """It must end with status 0; what it says on stderr otherwise is quoted."""

    needed = NEEDED

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self.title = command[0]

    def entries(self, deadline: Deadline, say: Say) -> Sequence[Entry]:
        """All hosts that it prints."""
        try:
            output = program.run(self._command, deadline, OUTPUT_LIMIT + 1)
        except program.ProgramError as error:
            raise InventoryError(str(error)) from error
        if len(output) > OUTPUT_LIMIT:
            raise InventoryError(f"{self.title} printed more than {OUTPUT_LIMIT} bytes")
        return listed(parse(output, f"what {self.title} printed"), self.title)
