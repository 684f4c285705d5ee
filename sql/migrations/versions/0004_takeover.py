# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Servers of a group take over from one another: columns that servers which know nothing of them do not miss."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004_0003"
down_revision = "0003"

Id = sa.Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")


def upgrade() -> None:
    for table in ("devices", "requests"):
        add_columns(
            table,
            sa.Column("owner_id", Id, comment="the server that acts on it; null = imaging_server_id"),
            sa.Column(
                "epoch", sa.BigInteger, nullable=False, server_default="0", comment="goes up with every change of owner"
            ),
            sa.Column("came_from_id", Id, comment="the owner before, until the new one has begun"),
        )
        for column in ("owner_id", "came_from_id"):
            add_index(f"ix_{table}_{column}", table, column)
    add_columns(
        "server_presence",
        sa.Column("group_name", sa.String(64), comment="its servers take over from one another"),
        sa.Column("takeover_after", sa.Double, comment="seconds of silence after which they do"),
        sa.Column(
            "losses", sa.BigInteger, nullable=False, server_default="0", comment="how often others took over from it"
        ),
    )


def add_columns(table: str, *columns: sa.Column) -> None:
    """Add those that are missing: an interrupted run may have added some, and MySQL takes nothing back."""
    present = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
    for column in columns:
        if column.name not in present:
            op.add_column(table, column)


def add_index(name: str, table: str, column: str) -> None:
    """Add the index if it is missing."""
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, [column])
