# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is to be told to others until they have taken it: one more table, which servers that know nothing of it do not
miss."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0008_0003"
down_revision = "0007_0003"

BIG_ID = (
    sa.BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(sa.Integer(), "sqlite")
)
ID = sa.Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    # An interrupted run may have left it: MySQL takes nothing back.
    inspector = sa.inspect(op.get_bind())
    if not inspector.has_table("outbox"):
        op.create_table(
            "outbox",
            sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
            sa.Column("event", sa.String(32), nullable=False),
            sa.Column(
                "event_key", sa.String(96), nullable=False, comment="equal for all servers that see the same event"
            ),
            sa.Column(
                "target",
                sa.String(190),
                nullable=False,
                comment="a [notify NAME], or scheme and host of a callback_url",
            ),
            sa.Column("address", sa.Text, nullable=True, comment="where to, when the target does not say it"),
            sa.Column("body", sa.Text, nullable=False, comment="JSON"),
            sa.Column("created", MOMENT, nullable=False),
            sa.Column("due", MOMENT, nullable=False, comment="when it is to be tried; who tries it moves it on first"),
            sa.Column("valid_until", MOMENT, nullable=True, comment="not told any more after that"),
            sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
            sa.Column("taken_by", ID, nullable=True, comment="the server that is trying it"),
            sa.Column("last_error", sa.String(255), nullable=True, comment="why it was not taken"),
            sa.Column("ended", MOMENT, nullable=True, comment="when it was delivered or given up"),
            sa.Column("delivered", sa.Integer, nullable=False, server_default="0"),
            sa.PrimaryKeyConstraint("id", name="pk_outbox"),
            sa.UniqueConstraint("event_key", "target", name="uq_outbox_event_key_target"),
            mysql_engine="InnoDB",
            mariadb_engine="InnoDB",
            mysql_charset="utf8mb4",
            mariadb_charset="utf8mb4",
        )
        inspector = sa.inspect(op.get_bind())
    if "ix_outbox_waiting" not in {index["name"] for index in inspector.get_indexes("outbox")}:
        op.create_index("ix_outbox_waiting", "outbox", ["ended", "target", "due"])
