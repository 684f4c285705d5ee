# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Exactly the tables of Mozpool 4.2.1: what an upgrade in place starts from."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from mozpool.db.schema import load_procedures

revision = "0001"
down_revision = None

# SQLite numbers rows by itself only when the key is a plain INTEGER.
Id = sa.Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
BigId = (
    sa.BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(sa.Integer(), "sqlite")
)
Timestamp = sa.DateTime().with_variant(mysql.TIMESTAMP(), "mysql", "mariadb")


def upgrade() -> None:
    """Make the tables, and on MySQL the procedures and the partitions of the logs."""
    create("imaging_servers", column("id", Id, primary_key=True), column("fqdn", sa.String(255), unique=True))
    create(
        "pxe_configs",
        column("id", Id, primary_key=True),
        column("name", sa.String(32), unique=True),
        column("description", sa.Text),
        column("contents", sa.Text),
        column("active", sa.Integer),
    )
    create(
        "images",
        column("id", Id, primary_key=True),
        column("name", sa.String(32), unique=True),
        column("boot_config_keys", sa.Text),
        column("can_reuse", sa.Integer),
        column("hidden", sa.Integer),
        column("has_sut_agent", sa.Integer),
    )
    create(
        "hardware_types",
        column("id", Id, primary_key=True),
        column("type", sa.String(32)),
        column("model", sa.String(32)),
        sa.UniqueConstraint("type", "model"),
    )
    create(
        "image_pxe_configs",
        column("image_id", Id, to("images"), primary_key=True),
        column("hardware_type_id", Id, to("hardware_types"), primary_key=True),
        column("pxe_config_id", Id, to("pxe_configs"), nullable=True),
    )
    create(
        "devices",
        column("id", Id, primary_key=True),
        column("name", sa.String(32), unique=True),
        column("fqdn", sa.String(256)),
        column("inventory_id", sa.Integer),
        column("state", sa.String(32)),
        column("state_counters", sa.Text),
        column("state_timeout", sa.DateTime, nullable=True, index=True),
        column("mac_address", sa.String(12)),
        column("imaging_server_id", Id, to("imaging_servers")),
        column("relay_info", sa.Text, nullable=True),
        column("image_id", Id, to("images"), nullable=True),
        column("boot_config", sa.Text, nullable=True),
        column("next_image_id", Id, to("images"), nullable=True),
        column("next_boot_config", sa.Text, nullable=True),
        column("comments", sa.Text, nullable=True),
        column("environment", sa.String(32), nullable=True, server_default="none"),
        column("hardware_type_id", Id, to("hardware_types"), nullable=True),
    )
    create(
        "requests",
        column("id", BigId, primary_key=True),
        column("imaging_server_id", Id, to("imaging_servers")),
        column("requested_device", sa.String(32)),
        column("assignee", sa.String(256)),
        column("expires", sa.DateTime),
        column("image_id", Id, to("images")),
        column("boot_config", sa.Text, nullable=True),
        column("state", sa.String(32)),
        column("state_counters", sa.Text),
        column("state_timeout", sa.DateTime, nullable=True),
        column("environment", sa.String(32), nullable=True, server_default="any"),
    )
    create(
        "device_requests",
        column("request_id", sa.BigInteger, unique=True),
        column("device_id", sa.Integer, unique=True),
        column("imaging_result", sa.String(32), nullable=True),
    )
    create(
        "relay_boards",
        column("id", Id, primary_key=True),
        column("name", sa.String(32), unique=True),
        column("fqdn", sa.String(255), unique=True),
        column("imaging_server_id", Id, to("imaging_servers")),
        column("state", sa.String(32)),
        column("state_counters", sa.Text),
        column("state_timeout", sa.DateTime, nullable=True),
    )
    partitioned = op.get_bind().dialect.name != "sqlite"
    for name, about in (
        ("device_logs", column("device_id", sa.Integer, index=True)),
        ("request_logs", column("request_id", sa.BigInteger, index=True)),
    ):
        create(
            name,
            column("id", BigId, autoincrement=True),
            about,
            column("ts", Timestamp, index=True),
            column("source", sa.String(32)),
            column("message", sa.Text),
            sa.PrimaryKeyConstraint("id", "ts") if partitioned else sa.PrimaryKeyConstraint("id"),
        )
    if partitioned:
        load_procedures(op.get_bind())
        for name in ("device_logs", "request_logs"):
            op.execute(sa.text("CALL init_log_partitions(:name, 14, 1)").bindparams(name=name))


def downgrade() -> None:
    """There is nothing before 4.2.1."""
    raise NotImplementedError("there is no way back but a backup")


def column(name: str, kind: Any, *rest: Any, nullable: bool = False, **options: Any) -> sa.Column[Any]:
    """A column that is NOT NULL unless it says otherwise."""
    return sa.Column(name, kind, *rest, nullable=nullable, **options)


def to(table: str) -> sa.ForeignKey:
    """A reference that keeps the row it names from being deleted."""
    return sa.ForeignKey(f"{table}.id", ondelete="RESTRICT")


def create(name: str, *parts: Any) -> None:
    """Make an InnoDB table."""
    op.create_table(name, *parts, mysql_engine="InnoDB", mysql_charset="utf8mb4")
