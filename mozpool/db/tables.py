# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Today's tables. The migrations in ``sql/migrations`` lead here from 4.2.1; a test compares the two.

All times are UTC. ``version`` guards a row against any other writer and goes up with every write;
``attempt`` goes up in state transitions only and names what an effect was started for; ``token`` tells
a writer whose commit went unanswered whether it took place.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import conv

naming = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=naming)


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC with microseconds: aware in Python, without a zone in the database."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Microseconds on MySQL too, whose DATETIME has none unless asked."""
        return dialect.type_descriptor(mysql.DATETIME(fsp=6) if dialect.name in ("mysql", "mariadb") else DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware → naive UTC. A naive value is a bug of the caller."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: all times are UTC and aware")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Naive UTC → aware."""
        return None if value is None else value.replace(tzinfo=UTC)


class LogTimestamp(UTCDateTime):
    """TIMESTAMP on MySQL, which day partitions need; sessions run with time_zone +00:00."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """TIMESTAMP with whole seconds, as in 4.2.1: ids give the order within one."""
        return dialect.type_descriptor(mysql.TIMESTAMP() if dialect.name in ("mysql", "mariadb") else DateTime())


# SQLite only numbers rows by itself when the key is a plain INTEGER.
Id = Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
BigId = BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(Integer(), "sqlite")
Counter = Integer()
STATE = String(32)
ENGINE: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mariadb_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_charset": "utf8mb4",
}


def _machine_columns() -> list[Column[Any]]:
    """What every table with a state machine has."""
    return [
        Column("state", STATE, nullable=False),
        Column("state_counters", Text, nullable=False),
        Column("state_timeout", UTCDateTime, nullable=True, index=True),
        Column("state_since", UTCDateTime, nullable=True),
        Column("version", BigInteger, nullable=False, server_default="0"),
        Column("attempt", BigInteger, nullable=False, server_default="0"),
        Column("token", String(32), nullable=True),
    ]


imaging_servers = Table(
    "imaging_servers",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("fqdn", String(255), nullable=False, unique=True),
    **ENGINE,
)

server_presence = Table(
    "server_presence",
    metadata,
    Column(
        "imaging_server_id",
        Id,
        ForeignKey("imaging_servers.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("beat", BigInteger, nullable=False, comment="goes up with every sign of life"),
    Column("stopped", Integer, nullable=False, comment="in good order"),
    Column("version", String(32), nullable=False),
    Column("started", UTCDateTime, nullable=False),
    Column("seen", UTCDateTime, nullable=False, comment="by its own clock"),
    Column("workers", Integer, nullable=False),
    Column("busy", Integer, nullable=False),
    **ENGINE,
)

pxe_configs = Table(
    "pxe_configs",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", String(32), nullable=False, unique=True),
    Column("description", Text, nullable=False),
    Column("contents", Text, nullable=False),
    Column("active", Integer, nullable=False),
    **ENGINE,
)

images = Table(
    "images",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", String(32), nullable=False, unique=True),
    Column("boot_config_keys", Text, nullable=False),
    Column("can_reuse", Integer, nullable=False, server_default="0"),
    Column("hidden", Integer, nullable=False, server_default="0"),
    Column("has_sut_agent", Integer, nullable=False, server_default="1"),
    **ENGINE,
)

hardware_types = Table(
    "hardware_types",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("type", String(32), nullable=False),
    Column("model", String(32), nullable=False),
    Column("backends", Text, nullable=True, comment="JSON: interface to backend name, for devices that name none"),
    UniqueConstraint("type", "model"),
    **ENGINE,
)

image_pxe_configs = Table(
    "image_pxe_configs",
    metadata,
    Column("image_id", Id, ForeignKey("images.id", ondelete="RESTRICT"), primary_key=True),
    Column("hardware_type_id", Id, ForeignKey("hardware_types.id", ondelete="RESTRICT"), primary_key=True),
    Column("pxe_config_id", Id, ForeignKey("pxe_configs.id", ondelete="RESTRICT"), nullable=True),
    **ENGINE,
)

devices = Table(
    "devices",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", String(32), nullable=False, unique=True),
    Column("fqdn", String(256), nullable=False),
    Column("address", String(255), nullable=True, comment="where it answers, when that is not its fqdn"),
    Column("inventory_id", Integer, nullable=False),
    *_machine_columns(),
    Column("mac_address", String(12), nullable=False),
    Column("imaging_server_id", Id, ForeignKey("imaging_servers.id", ondelete="RESTRICT"), nullable=False),
    Column("relay_info", Text, nullable=True),
    Column("image_id", Id, ForeignKey("images.id", ondelete="RESTRICT"), nullable=True),
    Column("boot_config", Text, nullable=True),
    Column("boot_config_hash", String(40), nullable=True, comment="of the parsed boot_config, to compare by"),
    Column("next_image_id", Id, ForeignKey("images.id", ondelete="RESTRICT"), nullable=True),
    Column("next_boot_config", Text, nullable=True),
    Column("pxe_config", String(32), nullable=True, comment="every boot uses this config until it is cleared"),
    Column("last_pxe_config", String(32), nullable=True),
    Column("comments", Text, nullable=True),
    Column("environment", String(32), nullable=True, server_default="none"),
    Column("hardware_type_id", Id, ForeignKey("hardware_types.id", ondelete="RESTRICT"), nullable=True),
    Column("backends", Text, nullable=True, comment="JSON: interface to backend name, and options"),
    Column("claim_id", BigId, nullable=True, comment="device_requests.id of who has it; null = nobody"),
    Column("operation_claim_id", BigId, nullable=True, comment="for whom the current operation was started"),
    Column("going_offline", Integer, nullable=False, server_default="0", comment="lock out if the self-test fails"),
    Column("shuffle", Integer, nullable=False, server_default="0", comment="drawn anew whenever it becomes free"),
    Column("last_seen", UTCDateTime, nullable=True),
    Index("ix_devices_available", "state", "claim_id", "shuffle"),
    sqlite_autoincrement=True,  # ids of deleted rows are not used again: logs and histories outlive the rows
    **ENGINE,
)

device_labels = Table(
    "device_labels",
    metadata,
    Column("device_id", Id, ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("value", String(190), nullable=False),
    Index("ix_device_labels_name_value", "name", "value"),
    **ENGINE,
)

requests = Table(
    "requests",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("imaging_server_id", Id, ForeignKey("imaging_servers.id", ondelete="RESTRICT"), nullable=False),
    Column("requested_device", String(32), nullable=False),
    Column("assignee", String(256), nullable=False),
    Column("created", UTCDateTime, nullable=True),
    Column("expires", UTCDateTime, nullable=False, index=True),
    Column("image_id", Id, ForeignKey("images.id", ondelete="RESTRICT"), nullable=True),
    Column("boot_config", Text, nullable=True),
    *_machine_columns(),
    Column("environment", String(32), nullable=False, server_default="any"),
    Column("hardware_type", String(32), nullable=True),
    Column("hardware_model", String(32), nullable=True),
    Column("labels", Text, nullable=True, comment="JSON object: label to value, all must match"),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("wait", Integer, nullable=False, server_default="600", comment="seconds it may stay in the queue"),
    Column("queue_key", BigInteger, nullable=False, server_default="0", comment="order in the queue, lowest first"),
    Column("criteria", String(40), nullable=True, comment="equal for requests that the same devices can serve"),
    Column("callback_url", Text, nullable=True),
    Column("idempotency_key", String(128), nullable=True, unique=True),
    Column("body_hash", String(40), nullable=True),
    Column("reason", Text, nullable=True, comment="why it failed, was closed, or waits"),
    Index("ix_requests_queue", "state", "criteria", "queue_key", "id"),
    sqlite_autoincrement=True,
    **ENGINE,
)

device_requests = Table(
    "device_requests",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=False, comment="the claim's id, from claim_history"),
    Column("request_id", BigId, ForeignKey("requests.id", ondelete="RESTRICT"), nullable=False, unique=True),
    Column("device_id", Id, ForeignKey("devices.id", ondelete="RESTRICT"), nullable=False, unique=True),
    Column("imaging_result", String(32), nullable=True),
    **ENGINE,
)

claim_history = Table(
    "claim_history",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("request_id", BigId, nullable=False, index=True),
    Column("device_id", Id, nullable=False, index=True),
    Column("claimed_at", UTCDateTime, nullable=False),
    Column("released_at", UTCDateTime, nullable=True),
    Column("imaging_result", String(32), nullable=True),
    Column("reason", String(190), nullable=True, comment="why the device was given up"),
    sqlite_autoincrement=True,
    **ENGINE,
)


def _history(name: str, key: str, key_type: Any) -> Table:
    """A table of state changes: written in the transition's own transaction, never in batches."""
    return Table(
        name,
        metadata,
        Column("id", BigId, primary_key=True, autoincrement=True),
        Column(key, key_type, nullable=False),
        Column("ts", UTCDateTime, nullable=False, index=True),
        Column("from_state", STATE, nullable=False),
        Column("to_state", STATE, nullable=False),
        Column("event", String(64), nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("claim_id", BigId, nullable=True),
        Column("token", String(32), nullable=True),
        Column("detail", String(255), nullable=True),
        Index(conv(f"ix_{name}_{key}_version"), key, "version"),
        **ENGINE,
    )


device_history = _history("device_history", "device_id", Id)
request_history = _history("request_history", "request_id", BigId)

relay_boards = Table(
    "relay_boards",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", String(32), nullable=False, unique=True),
    Column("fqdn", String(255), nullable=False, unique=True),
    Column("imaging_server_id", Id, ForeignKey("imaging_servers.id", ondelete="RESTRICT"), nullable=False),
    Column("state", STATE, nullable=False),
    Column("state_counters", Text, nullable=False),
    Column("state_timeout", UTCDateTime, nullable=True),
    Column("lane", String(190), nullable=True, unique=True, comment="of a switch that the server found itself"),
    Column("state_since", UTCDateTime, nullable=True),
    Column("reason", Text, nullable=True, comment="why it is not ok"),
    **ENGINE,
)


def _log(name: str, key: str, key_type: Any) -> Table:
    """A table of free-text lines, without foreign keys: MySQL partitions it by day.

    There its primary key is (id, ts), which the migrations see to; SQLite can't number such rows.
    """
    return Table(
        name,
        metadata,
        Column("id", BigId, primary_key=True, autoincrement=True),
        Column(key, key_type, nullable=False, index=True),
        Column("ts", LogTimestamp, nullable=False, index=True),
        Column("source", String(32), nullable=False),
        Column("message", Text, nullable=False),
        **ENGINE,
    )


device_logs = _log("device_logs", "device_id", Id)
request_logs = _log("request_logs", "request_id", BigId)
