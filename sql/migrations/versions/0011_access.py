# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who may do what, and who did: tables and columns that servers which know nothing of them do not miss."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0011_0003"
down_revision = "0010_0003"

BIG_ID = (
    sa.BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(sa.Integer(), "sqlite")
)
ID = sa.Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def columns() -> dict[str, list[sa.Column]]:
    """Table → the columns that are new in it."""
    return {
        "devices": [
            sa.Column(
                "boot_token", sa.String(64), nullable=True, comment="SHA-256 of what its scripts send back in this boot"
            )
        ],
        "requests": [
            sa.Column("made_by", sa.String(256), nullable=True, comment="whose it is; null = made in mode open"),
            sa.Column("team_id", ID, nullable=True, comment="whose quota it counts for"),
        ],
    }


def tables() -> dict[str, list[sa.Column]]:
    """Table → its columns."""
    return {
        "teams": [
            sa.Column("id", ID, primary_key=True, autoincrement=True),
            sa.Column("name", sa.String(64), nullable=False),
            sa.Column("max_devices", sa.Integer, nullable=True, comment="at a time; null = as many as there are"),
            sa.Column("max_duration", sa.Integer, nullable=True, comment="seconds; null = as long as anybody"),
            sa.Column("environments", sa.Text, nullable=True, comment="JSON list of those it may use; null = all"),
            sa.Column(
                "groups", sa.Text, nullable=True, comment="JSON list of the OpenID groups whose people are in it"
            ),
            sa.Column(
                "turn",
                sa.BigInteger,
                nullable=False,
                server_default="0",
                comment="goes up with every claim that is counted",
            ),
            sa.UniqueConstraint("name", name="uq_teams_name"),
        ],
        "tokens": [
            sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
            sa.Column("name", sa.String(256), nullable=False, comment="whose it is: requests belong to this name"),
            sa.Column("secret_hash", sa.String(64), nullable=False, comment="SHA-256"),
            sa.Column("role", sa.String(16), nullable=False),
            sa.Column("team_id", ID, nullable=True),
            sa.Column("note", sa.String(190), nullable=True),
            sa.Column("created", MOMENT, nullable=False),
            sa.Column("created_by", sa.String(256), nullable=False),
            sa.Column("expires", MOMENT, nullable=True),
            sa.Column("revoked", MOMENT, nullable=True),
            sa.Column("last_used", MOMENT, nullable=True),
            sa.Column("last_address", sa.String(64), nullable=True),
            sa.Column("parent_id", BIG_ID, nullable=True, comment="the token by which it was made; null = none was"),
        ],
        "sessions": [
            sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
            sa.Column("secret_hash", sa.String(64), nullable=False, comment="SHA-256 of what the cookie holds"),
            sa.Column("name", sa.String(256), nullable=False),
            sa.Column("role", sa.String(16), nullable=False),
            sa.Column("team_id", ID, nullable=True),
            sa.Column(
                "token_id", BIG_ID, nullable=True, comment="the token that it was begun with; null = an OpenID sign-on"
            ),
            sa.Column("created", MOMENT, nullable=False),
            sa.Column("expires", MOMENT, nullable=False),
            sa.Column("last_used", MOMENT, nullable=True),
            sa.Column("address", sa.String(64), nullable=True),
            sa.UniqueConstraint("secret_hash", name="uq_sessions_secret_hash"),
        ],
        "audit": [
            sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
            sa.Column("ts", MOMENT, nullable=False),
            sa.Column(
                "kind",
                sa.String(16),
                nullable=False,
                comment="of who: person, token, device, server, command, job, open, nobody",
            ),
            sa.Column("who", sa.String(256), nullable=True),
            sa.Column("credential", sa.BigInteger, nullable=True, comment="the id of the token"),
            sa.Column("address", sa.String(64), nullable=True, comment="from where"),
            sa.Column("server", sa.String(256), nullable=False),
            sa.Column("action", sa.String(64), nullable=False),
            sa.Column("target", sa.String(256), nullable=True, comment="such as device panda-0001, request 12"),
            sa.Column("details", sa.Text, nullable=True, comment="JSON, without secrets"),
            sa.Column("status", sa.Integer, nullable=True, comment="of the answer to an API call"),
            sa.Column("outcome", sa.String(190), nullable=False, comment="ok, or why not"),
        ],
    }


INDEXED: dict[str, tuple[tuple[str, ...], ...]] = {
    "requests": (("team_id",),),
    "tokens": (("name",), ("parent_id",)),
    "sessions": (("name",), ("expires",)),
    "audit": (("ts",), ("who", "ts"), ("target", "ts"), ("action", "ts"), ("status", "ts")),
}
"""Table → the columns of each of its indexes."""


def upgrade() -> None:
    # An interrupted run may have done a part of it: MySQL takes nothing back.
    inspector = sa.inspect(op.get_bind())
    for table, new in columns().items():
        there = {column["name"] for column in inspector.get_columns(table)}
        for column in new:
            if column.name not in there:
                op.add_column(table, column)
    for table, its in tables().items():
        if not inspector.has_table(table):
            op.create_table(
                table,
                *its,
                sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
                mysql_engine="InnoDB",
                mariadb_engine="InnoDB",
                mysql_charset="utf8mb4",
                mariadb_charset="utf8mb4",
            )
    inspector = sa.inspect(op.get_bind())
    for table, indexes in INDEXED.items():
        there = {index["name"] for index in inspector.get_indexes(table)}
        for names in indexes:
            index = f"ix_{table}_{'_'.join(names)}"
            if index not in there:
                op.create_index(index, table, list(names))
