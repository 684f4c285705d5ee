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
    Double,
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

MAX_COLUMN = 65_535
"""Bytes that a TEXT column holds."""

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


def _owner_columns() -> list[Column[Any]]:
    """Who acts on a row, apart from the imaging server that it belongs to; without foreign keys, which SQLite could
    only be given by making the table anew."""
    return [
        Column(
            "owner_id", Id, nullable=True, index=True, comment="the server that acts on it; null = imaging_server_id"
        ),
        Column("epoch", BigInteger, nullable=False, server_default="0", comment="goes up with every change of owner"),
        Column("came_from_id", Id, nullable=True, index=True, comment="the owner before, until the new one has begun"),
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
    Column("group_name", String(64), nullable=True, comment="its servers take over from one another"),
    Column("takeover_after", Double, nullable=True, comment="seconds of silence after which they do"),
    Column("losses", BigInteger, nullable=False, server_default="0", comment="how often others took over from it"),
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
    Column("boot_token", String(64), nullable=True, comment="SHA-256 of what its scripts send back in this boot"),
    Column(
        "leaving",
        Integer,
        nullable=False,
        server_default="0",
        index=True,
        comment="not in the inventory any more: it goes as soon as it is free",
    ),
    *_owner_columns(),
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
    Column("made_by", String(256), nullable=True, comment="whose it is; null = made in mode open"),
    Column("team_id", Id, nullable=True, index=True, comment="whose quota it counts for"),
    *_owner_columns(),
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
    Column("released_at", UTCDateTime, nullable=True, index=True),
    Column("imaging_result", String(32), nullable=True),
    Column("reason", String(190), nullable=True, comment="why the device was given up"),
    Column("ready_at", UTCDateTime, nullable=True, comment="when the request got it ready; written at the release"),
    Column("device", String(32), nullable=True, comment="what it was at the release; so are the next three"),
    Column("environment", String(32), nullable=True),
    Column("hardware_type", String(32), nullable=True),
    Column("hardware_model", String(32), nullable=True),
    sqlite_autoincrement=True,
    **ENGINE,
)


past_requests = Table(
    "past_requests",
    metadata,
    Column("request_id", BigId, primary_key=True, autoincrement=False),
    Column("assignee", String(256), nullable=False),
    Column("environment", String(32), nullable=True, comment="of the device that it had at its end, or that it wanted"),
    Column("hardware_type", String(32), nullable=True, comment="likewise"),
    Column("hardware_model", String(32), nullable=True, comment="likewise"),
    Column("image", String(32), nullable=True),
    Column("created", UTCDateTime, nullable=True),
    Column("ready_at", UTCDateTime, nullable=True),
    Column("ended", UTCDateTime, nullable=False, index=True),
    Column("state", STATE, nullable=False),
    Column("reason", String(190), nullable=True),
    **ENGINE,
)
"""What reports need of requests that ended: written in the transition that ends one, and kept longer than its row."""


def _history(name: str, key: str, key_type: Any, *more: Column[Any]) -> Table:
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
        *more,
        Index(conv(f"ix_{name}_{key}_version"), key, "version"),
        **ENGINE,
    )


device_history = _history(
    "device_history",
    "device_id",
    Id,
    Column("device", String(32), nullable=True, comment="its name: the row outlives that of the device"),
)
request_history = _history("request_history", "request_id", BigId)

pool_samples = Table(
    "pool_samples",
    metadata,
    Column("minute", BigInteger, primary_key=True, autoincrement=False, comment="since 1970-01-01 00:00 UTC"),
    Column("in_use", Integer, nullable=False),
    Column("idle", Integer, nullable=False),
    Column("processing", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("out_of_service", Integer, nullable=False),
    Column("away", Integer, nullable=False, comment="those of the above whose server is away"),
    Column("waiting", Integer, nullable=False, comment="requests in the queue"),
    Column("ready", Integer, nullable=False, comment="requests that became ready in the minute before"),
    Column("ready_median", Double, nullable=True, comment="seconds that they took"),
    Column("ready_worst", Double, nullable=True),
    Column("failures", Integer, nullable=False, comment="devices that failed in the minute before"),
    **ENGINE,
)
"""The pool once a minute, for charts: whichever server is the first to write a minute's row."""

jobs = Table(
    "jobs",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", BigInteger, nullable=False, server_default="0", comment="goes up whenever it was carried out"),
    Column("holder", String(255), nullable=True, comment="who does it now"),
    Column("token", String(32), nullable=True, comment="of the one who does it; null = nobody"),
    Column("since", UTCDateTime, nullable=True, comment="since when, by the holder's clock"),
    Column("until", UTCDateTime, nullable=True, comment="from then on others may do it"),
    Column("ended", UTCDateTime, nullable=True, comment="when it was done last"),
    Column("ended_by", String(255), nullable=True),
    Column("outcome", String(16), nullable=True, comment="ok or failed"),
    Column("message", Text, nullable=True),
    **ENGINE,
)
"""What only one server of the pool does at a time."""

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("event", String(32), nullable=False),
    Column("event_key", String(96), nullable=False, comment="equal for all servers that see the same event"),
    Column("target", String(190), nullable=False, comment="a [notify NAME], or scheme and host of a callback_url"),
    Column("address", Text, nullable=True, comment="where to, when the target does not say it"),
    Column("body", Text, nullable=False, comment="JSON"),
    Column("created", UTCDateTime, nullable=False),
    Column("due", UTCDateTime, nullable=False, comment="when it is to be tried; who tries it moves it on first"),
    Column("valid_until", UTCDateTime, nullable=True, comment="not told any more after that"),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("taken_by", Id, nullable=True, comment="the server that is trying it"),
    Column("last_error", String(255), nullable=True, comment="why it was not taken"),
    Column("ended", UTCDateTime, nullable=True, comment="when it was delivered or given up"),
    Column("delivered", Integer, nullable=False, server_default="0"),
    UniqueConstraint("event_key", "target"),
    Index("ix_outbox_waiting", "ended", "target", "due"),
    **ENGINE,
)

hosted_jobs = Table(
    "hosted_jobs",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("claim_id", BigId, nullable=False, unique=True, comment="claim_history.id; the row outlives the claim"),
    Column("request_id", BigId, nullable=False, index=True),
    Column(
        "lead_request_id", BigId, nullable=False, index=True, comment="the first request of a job on several devices"
    ),
    Column("device_id", Id, nullable=False, index=True),
    Column("device", String(32), nullable=False, comment="its name: the row outlives that of the device"),
    Column("project", String(64), nullable=False),
    Column("number", BigInteger, nullable=True, index=True, comment="the cloud's"),
    Column("job_id", String(64), nullable=True, index=True, comment="the cloud's, part of url"),
    Column("url", String(500), nullable=True),
    Column("task_id", String(32), nullable=True, index=True, comment="Taskcluster's, part of task_url"),
    Column("task_url", String(500), nullable=True),
    Column("status", String(32), nullable=True, comment="the cloud's last word"),
    Column("ordered", UTCDateTime, nullable=False, index=True),
    Column("running", UTCDateTime, nullable=True, comment="since when the cloud has said that it runs"),
    Column("task_seen", UTCDateTime, nullable=True, comment="when its worker was seen with a task"),
    Column("ended", UTCDateTime, nullable=True, index=True),
    Column("reason", String(190), nullable=True, comment="why it failed"),
    **ENGINE,
)

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

relay_board_history = Table(
    "relay_board_history",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("relay_board_id", Id, nullable=False),
    Column("board", String(32), nullable=False, comment="its name: the row outlives that of the board"),
    Column("ts", UTCDateTime, nullable=False, index=True),
    Column("from_state", STATE, nullable=False),
    Column("to_state", STATE, nullable=False),
    Column("reason", String(190), nullable=True),
    **ENGINE,
)


def _log(name: str, key: str, key_type: Any) -> Table:
    """A table of free-text lines, without foreign keys: MySQL partitions it by day.

    There its primary key is (id, ts), which the migrations see to; SQLite can't number such rows. The index ``page``
    has all that tells which lines are on a page of somebody's log, in order.
    """
    return Table(
        name,
        metadata,
        Column("id", BigId, primary_key=True, autoincrement=True),
        Column(key, key_type, nullable=False),
        Column("ts", LogTimestamp, nullable=False, index=True),
        Column("source", String(32), nullable=False),
        Column("message", Text, nullable=False),
        Index(conv(f"ix_{name}_page"), key, "id", "ts"),
        **ENGINE,
    )


device_logs = _log("device_logs", "device_id", Id)
request_logs = _log("request_logs", "request_id", BigId)

teams = Table(
    "teams",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("max_devices", Integer, nullable=True, comment="at a time; null = as many as there are"),
    Column("max_duration", Integer, nullable=True, comment="seconds; null = as long as anybody"),
    Column("environments", Text, nullable=True, comment="JSON list of those it may use; null = all"),
    Column("groups", Text, nullable=True, comment="JSON list of the OpenID groups whose people are in it"),
    Column("turn", BigInteger, nullable=False, server_default="0", comment="goes up with every claim that is counted"),
    **ENGINE,
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("name", String(256), nullable=False, index=True, comment="whose it is: requests belong to this name"),
    Column("secret_hash", String(64), nullable=False, comment="SHA-256"),
    Column("role", String(16), nullable=False),
    Column("team_id", Id, nullable=True),
    Column("note", String(190), nullable=True),
    Column("created", UTCDateTime, nullable=False),
    Column("created_by", String(256), nullable=False),
    Column("expires", UTCDateTime, nullable=True),
    Column("revoked", UTCDateTime, nullable=True),
    Column("last_used", UTCDateTime, nullable=True),
    Column("last_address", String(64), nullable=True),
    Column("parent_id", BigId, nullable=True, index=True, comment="the token by which it was made; null = none was"),
    **ENGINE,
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("secret_hash", String(64), nullable=False, unique=True, comment="SHA-256 of what the cookie holds"),
    Column("name", String(256), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("team_id", Id, nullable=True),
    Column("token_id", BigId, nullable=True, comment="the token that it was begun with; null = an OpenID sign-on"),
    Column("created", UTCDateTime, nullable=False),
    Column("expires", UTCDateTime, nullable=False, index=True),
    Column("last_used", UTCDateTime, nullable=True),
    Column("address", String(64), nullable=True),
    **ENGINE,
)
"""Who is signed on in a browser; on any server of the pool."""

audit = Table(
    "audit",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("ts", UTCDateTime, nullable=False, index=True),
    Column(
        "kind", String(16), nullable=False, comment="of who: person, token, device, server, command, job, open, nobody"
    ),
    Column("who", String(256), nullable=True),
    Column("credential", BigInteger, nullable=True, comment="the id of the token"),
    Column("address", String(64), nullable=True, comment="from where"),
    Column("server", String(256), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(256), nullable=True, comment="such as device panda-0001, request 12"),
    Column("details", Text, nullable=True, comment="JSON, without secrets"),
    Column("status", Integer, nullable=True, comment="of the answer to an API call"),
    Column("outcome", String(190), nullable=False, comment="ok, or why not"),
    Index(conv("ix_audit_who_ts"), "who", "ts"),
    Index(conv("ix_audit_target_ts"), "target", "ts"),
    Index(conv("ix_audit_action_ts"), "action", "ts"),
    Index(conv("ix_audit_status_ts"), "status", "ts"),
    **ENGINE,
)
"""Every change, who made it from where, and what came of it. Rows are added, never changed."""
