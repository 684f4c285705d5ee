# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The inventory: devices that it no longer has leave when they are free, and one server at a time reads it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0006_0003"
down_revision = "0005_0003"


def moment(name: str, comment: str | None = None) -> sa.Column:
    """A column with microseconds on MySQL too."""
    kind = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    return sa.Column(name, kind, nullable=True, comment=comment)


def upgrade() -> None:
    # An interrupted run may have left any of it: MySQL takes nothing back.
    found = sa.inspect(op.get_bind())
    if "leaving" not in {column["name"] for column in found.get_columns("devices")}:
        comment = "not in the inventory any more: it goes as soon as it is free"
        op.add_column("devices", sa.Column("leaving", sa.Integer, nullable=False, server_default="0", comment=comment))
    if "ix_devices_leaving" not in {index["name"] for index in found.get_indexes("devices")}:
        op.create_index("ix_devices_leaving", "devices", ["leaving"])
    if found.has_table("jobs"):
        return
    op.create_table(
        "jobs",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column(
            "version",
            sa.BigInteger,
            nullable=False,
            server_default="0",
            comment="goes up whenever it was carried out",
        ),
        sa.Column("holder", sa.String(255), nullable=True, comment="who does it now"),
        sa.Column("token", sa.String(32), nullable=True, comment="of the one who does it; null = nobody"),
        moment("since", "since when, by the holder's clock"),
        moment("until", "from then on others may do it"),
        moment("ended", "when it was done last"),
        sa.Column("ended_by", sa.String(255), nullable=True),
        sa.Column("outcome", sa.String(16), nullable=True, comment="ok or failed"),
        sa.Column("message", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_jobs"),
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mariadb_charset="utf8mb4",
    )
