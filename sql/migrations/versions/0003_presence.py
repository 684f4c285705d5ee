# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Servers give signs of life: one more table, which servers that know nothing of it do not miss."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"

Id = sa.Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    # An interrupted run may have left it: MySQL takes nothing back.
    if sa.inspect(op.get_bind()).has_table("server_presence"):
        return
    op.create_table(
        "server_presence",
        sa.Column("imaging_server_id", Id, autoincrement=False, nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False, comment="goes up with every sign of life"),
        sa.Column("stopped", sa.Integer, nullable=False, comment="in good order"),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("started", Moment, nullable=False),
        sa.Column("seen", Moment, nullable=False, comment="by its own clock"),
        sa.Column("workers", sa.Integer, nullable=False),
        sa.Column("busy", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("imaging_server_id", name="pk_server_presence"),
        sa.ForeignKeyConstraint(
            ["imaging_server_id"],
            ["imaging_servers.id"],
            name="fk_server_presence_imaging_server_id",
            ondelete="CASCADE",
        ),
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mariadb_charset="utf8mb4",
    )
