# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Jobs on devices in a cloud, what is known of each: one more table, which servers that know nothing of it do not
miss."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0010_0003"
down_revision = "0009_0003"

BIG_ID = (
    sa.BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(sa.Integer(), "sqlite")
)
ID = sa.Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

INDEXED = ("request_id", "lead_request_id", "device_id", "number", "job_id", "task_id", "ordered", "ended")


def upgrade() -> None:
    # An interrupted run may have done a part of it: MySQL takes nothing back.
    inspector = sa.inspect(op.get_bind())
    if not inspector.has_table("hosted_jobs"):
        op.create_table(
            "hosted_jobs",
            sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
            sa.Column("claim_id", BIG_ID, nullable=False, comment="claim_history.id; the row outlives the claim"),
            sa.Column("request_id", BIG_ID, nullable=False),
            sa.Column(
                "lead_request_id", BIG_ID, nullable=False, comment="the first request of a job on several devices"
            ),
            sa.Column("device_id", ID, nullable=False),
            sa.Column("device", sa.String(32), nullable=False, comment="its name: the row outlives that of the device"),
            sa.Column("project", sa.String(64), nullable=False),
            sa.Column("number", sa.BigInteger, nullable=True, comment="the cloud's"),
            sa.Column("job_id", sa.String(64), nullable=True, comment="the cloud's, part of url"),
            sa.Column("url", sa.String(500), nullable=True),
            sa.Column("task_id", sa.String(32), nullable=True, comment="Taskcluster's, part of task_url"),
            sa.Column("task_url", sa.String(500), nullable=True),
            sa.Column("status", sa.String(32), nullable=True, comment="the cloud's last word"),
            sa.Column("ordered", MOMENT, nullable=False),
            sa.Column("running", MOMENT, nullable=True, comment="since when the cloud has said that it runs"),
            sa.Column("task_seen", MOMENT, nullable=True, comment="when its worker was seen with a task"),
            sa.Column("ended", MOMENT, nullable=True),
            sa.Column("reason", sa.String(190), nullable=True, comment="why it failed"),
            sa.PrimaryKeyConstraint("id", name="pk_hosted_jobs"),
            sa.UniqueConstraint("claim_id", name="uq_hosted_jobs_claim_id"),
            mysql_engine="InnoDB",
            mariadb_engine="InnoDB",
            mysql_charset="utf8mb4",
            mariadb_charset="utf8mb4",
        )
        inspector = sa.inspect(op.get_bind())
    there = {index["name"] for index in inspector.get_indexes("hosted_jobs")}
    for column in INDEXED:
        if f"ix_hosted_jobs_{column}" not in there:
            op.create_index(f"ix_hosted_jobs_{column}", "hosted_jobs", [column])
