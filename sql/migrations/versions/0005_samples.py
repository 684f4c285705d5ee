# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pool once a minute, for charts: one more table, which servers that know nothing of it do not miss."""

import sqlalchemy as sa
from alembic import op

revision = "0005_0003"
down_revision = "0004_0003"


def upgrade() -> None:
    # An interrupted run may have left it: MySQL takes nothing back.
    if sa.inspect(op.get_bind()).has_table("pool_samples"):
        return
    op.create_table(
        "pool_samples",
        sa.Column("minute", sa.BigInteger, autoincrement=False, nullable=False, comment="since 1970-01-01 00:00 UTC"),
        sa.Column("in_use", sa.Integer, nullable=False),
        sa.Column("idle", sa.Integer, nullable=False),
        sa.Column("processing", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("out_of_service", sa.Integer, nullable=False),
        sa.Column("away", sa.Integer, nullable=False, comment="those of the above whose server is away"),
        sa.Column("waiting", sa.Integer, nullable=False, comment="requests in the queue"),
        sa.Column("ready", sa.Integer, nullable=False, comment="requests that became ready in the minute before"),
        sa.Column("ready_median", sa.Double, nullable=True, comment="seconds that they took"),
        sa.Column("ready_worst", sa.Double, nullable=True),
        sa.Column("failures", sa.Integer, nullable=False, comment="devices that failed in the minute before"),
        sa.PrimaryKeyConstraint("minute", name="pk_pool_samples"),
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mariadb_charset="utf8mb4",
    )
