# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What reports are made from: two more tables, and columns that servers which know nothing of them do not miss."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0007_0003"
down_revision = "0006_0003"

Id = sa.Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
BigId = (
    sa.BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(sa.Integer(), "sqlite")
)
Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
ENGINE = {
    "mysql_engine": "InnoDB",
    "mariadb_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_charset": "utf8mb4",
}


def upgrade() -> None:
    add_columns(
        "claim_history",
        sa.Column("ready_at", Moment, comment="when the request got it ready; written at the release"),
        sa.Column("device", sa.String(32), comment="what it was at the release; so are the next three"),
        sa.Column("environment", sa.String(32)),
        sa.Column("hardware_type", sa.String(32)),
        sa.Column("hardware_model", sa.String(32)),
    )
    add_index("claim_history", "released_at")
    add_columns(
        "device_history",
        sa.Column("device", sa.String(32), comment="its name: the row outlives that of the device"),
    )
    add_table(
        "past_requests",
        sa.Column("request_id", BigId, autoincrement=False, nullable=False),
        sa.Column("assignee", sa.String(256), nullable=False),
        sa.Column("environment", sa.String(32), comment="of the device that it had at its end, or that it wanted"),
        sa.Column("hardware_type", sa.String(32), comment="likewise"),
        sa.Column("hardware_model", sa.String(32), comment="likewise"),
        sa.Column("image", sa.String(32)),
        sa.Column("created", Moment),
        sa.Column("ready_at", Moment),
        sa.Column("ended", Moment, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("reason", sa.String(190)),
        sa.PrimaryKeyConstraint("request_id", name="pk_past_requests"),
    )
    add_index("past_requests", "ended")
    add_table(
        "relay_board_history",
        sa.Column("id", BigId, autoincrement=True, nullable=False),
        sa.Column("relay_board_id", Id, nullable=False),
        sa.Column("board", sa.String(32), nullable=False, comment="its name: the row outlives that of the board"),
        sa.Column("ts", Moment, nullable=False),
        sa.Column("from_state", sa.String(32), nullable=False),
        sa.Column("to_state", sa.String(32), nullable=False),
        sa.Column("reason", sa.String(190)),
        sa.PrimaryKeyConstraint("id", name="pk_relay_board_history"),
    )
    add_index("relay_board_history", "ts")


# An interrupted run may have left some of it: MySQL takes nothing back.


def add_table(name: str, *parts: sa.schema.SchemaItem) -> None:
    """Add the table if it is missing."""
    if not sa.inspect(op.get_bind()).has_table(name):
        op.create_table(name, *parts, **ENGINE)


def add_columns(table: str, *columns: sa.Column) -> None:
    """Add those that are missing."""
    present = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
    for column in columns:
        if column.name not in present:
            op.add_column(table, column)


def add_index(table: str, column: str) -> None:
    """Add the index if it is missing."""
    name = f"ix_{table}_{column}"
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, [column])
