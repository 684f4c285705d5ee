# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How the driver reads and writes its rows, in what is the same for devices and requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, replace
from datetime import datetime
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from sqlalchemy import Connection, Table

from mozpool.db import history
from mozpool.statedriver import Change
from mozpool.statemachine import MachineRow


class OwnedRow(MachineRow, Protocol):
    """A row that one imaging server acts on and that a claim may join to another: a dataclass of ``db``."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def owner_id(self) -> int: ...
    @property
    def owner(self) -> str: ...
    @property
    def claim_id(self) -> int | None: ...


Owned = TypeVar("Owned", bound=OwnedRow)
OwnedOut = TypeVar("OwnedOut", bound=OwnedRow, covariant=True)


Note = Callable[[Connection, Owned, Change], None]
"""Writes what others are to be told of a change of a row, which is as it was before."""


def no_note(conn: Connection, row: object, change: Change) -> None:
    """Nobody is told anything."""


class Rows(Protocol[OwnedOut]):
    """What the module of each table with a state machine offers (``db.devices``, ``db.requests``)."""

    def get(self, conn: Connection, row_id: int, /) -> OwnedOut | None: ...

    def write(self, conn: Connection, row_id: int, version: int, values: Mapping[str, Any], /) -> bool: ...

    def version_and_token(self, conn: Connection, row_id: int, /) -> tuple[int, str | None] | None: ...

    def due(
        self, conn: Connection, owner_id: int, before: datetime, limit: int, /
    ) -> list[tuple[int, int, datetime]]: ...

    def postpone(self, conn: Connection, row_id: int, attempt: int, deadline: datetime | None, /) -> bool: ...


class RowStore(Generic[Owned]):
    """The rows of one imaging server. Its subclasses make it a :class:`mozpool.statedriver.Store`."""

    def __init__(self, rows: Rows[Owned], changes: Table, server_id: int, note: Note[Owned]) -> None:
        """``rows`` is the table's module, ``changes`` the table of its history.

        ``server_id`` is the id of the imaging server that this daemon is. ``note`` writes what else belongs into a
        transition's transaction.
        """
        self._rows = rows
        self._changes = changes
        self._server_id = server_id
        self._note = note

    def load(self, conn: Connection, row_id: int) -> Owned | None:
        """The row, or None when it is gone."""
        return self._rows.get(conn, row_id)

    def write(self, conn: Connection, row: Owned, change: Change) -> bool:
        """Row, history and what is noted besides, if the version is still the same."""
        if not self._rows.write(conn, row.id, row.version, change.values(row)):
            return False
        history.add(
            conn,
            self._changes,
            row.id,
            now=change.now,
            source=change.source,
            path=change.path,
            event=change.event,
            version=row.version + 1,
            claim_id=change.claim_id,
            token=change.token,
            detail=change.detail,
            device=row.name,
        )
        self._note(conn, row, change)
        return True

    def took_place(self, conn: Connection, row: Owned, change: Change) -> bool:
        """Whether the row, or its history, carries the change's token."""
        found = self._rows.version_and_token(conn, row.id)
        if found == (row.version + 1, change.token):
            return True
        return history.has_token(conn, self._changes, row.id, row.version + 1, change.token)

    def due(self, conn: Connection, before: datetime, limit: int) -> list[tuple[int, int, datetime]]:
        """This server's rows with a deadline before ``before``."""
        return self._rows.due(conn, self._server_id, before, limit)

    def ahead(self, conn: Connection, row_ids: Sequence[int]) -> Sequence[Owned]:
        """None of them."""
        return ()

    def postpone(self, conn: Connection, row_id: int, attempt: int, deadline: datetime | None) -> bool:
        """Move the deadline of an attempt."""
        return self._rows.postpone(conn, row_id, attempt, deadline)

    def is_ours(self, row: Owned) -> bool:
        """Each imaging server acts on its own rows only, and on those that it has taken over."""
        return row.owner_id == self._server_id

    def owner_of(self, row: Owned) -> str:
        """The fqdn of the server that acts on the row."""
        return row.owner

    def claim_of(self, row: Owned) -> int | None:
        """The claim that the row takes part in."""
        return row.claim_id

    def amended(self, row: Owned, fields: Mapping[str, Any]) -> Owned:
        """With the next version."""
        return replace(row, version=row.version + 1, **fields)
