# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""From 4.2.1 to 5.0: versions, queue, labels, claims with an id and keys, history; all times in UTC.

MySQL can't undo a change of a table. Should this stop half-way, it can simply be run again: every step first looks
whether it is still to be done.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from mozpool.clock import Clock
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.schema import load_procedures

revision = "0002"
down_revision = "0001"

# SQLite numbers rows by itself only when the key is a plain INTEGER.
Id = sa.Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
BigId = (
    sa.BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(sa.Integer(), "sqlite")
)
Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

OLD_TABLES = (
    "imaging_servers",
    "pxe_configs",
    "images",
    "hardware_types",
    "image_pxe_configs",
    "devices",
    "requests",
    "relay_boards",
    "device_logs",
    "request_logs",
)
LOGS = ("device_logs", "request_logs")


def upgrade() -> None:
    """First the tables, then what is in them."""
    if on_mysql():
        for table in OLD_TABLES:
            take_any_character(table)
            name_keys(table)
    change_images_and_hardware_types()
    change_devices()
    change_requests()
    change_relay_boards_and_logs()
    add_tables()
    if on_mysql():
        load_procedures(op.get_bind())
        for table in LOGS:
            # So many days back that no line is dropped: that is dbcron's business.
            op.execute(sa.text("CALL update_log_partitions(:name, 36500, 1)").bindparams(name=table))
    now = Clock().now().replace(tzinfo=None)
    rename_old_states()
    let_timeouts_fire(now)
    give_claims_an_id(now)
    release_claims_of_ended_requests(now)
    describe_devices()


def downgrade() -> None:
    """A claim's id can't be told to 4.2.1."""
    raise NotImplementedError("there is no way back but a backup")


# -- tables ---------------------------------------------------------------------------------------------------------


def change_images_and_hardware_types() -> None:
    """Images that are made by hand get defaults; a hardware type names its backends."""
    with op.batch_alter_table("images") as batch:
        for name, default in (("can_reuse", "0"), ("hidden", "0"), ("has_sut_agent", "1")):
            batch.alter_column(name, server_default=default, existing_type=sa.Integer(), existing_nullable=False)
    add_columns(
        "hardware_types",
        sa.Column("backends", sa.Text, comment="JSON: interface to backend name, for devices that name none"),
    )


def change_devices() -> None:
    """The state machine's columns, where a device answers, what it holds, and who has it."""
    with op.batch_alter_table("devices") as batch:
        batch.alter_column("state_timeout", type_=Moment, existing_type=sa.DateTime(), existing_nullable=True)
    add_columns(
        "devices",
        sa.Column("address", sa.String(255), comment="where it answers, when that is not its fqdn"),
        *machine_columns(),
        sa.Column("boot_config_hash", sa.String(40), comment="of the parsed boot_config, to compare by"),
        sa.Column("pxe_config", sa.String(32), comment="every boot uses this config until it is cleared"),
        sa.Column("last_pxe_config", sa.String(32)),
        sa.Column("backends", sa.Text, comment="JSON: interface to backend name, and options"),
        sa.Column("claim_id", BigId, comment="device_requests.id of who has it; null = nobody"),
        sa.Column("operation_claim_id", BigId, comment="for whom the current operation was started"),
        number("going_offline", comment="lock out if the self-test fails"),
        number("shuffle", comment="drawn anew whenever it becomes free"),
        sa.Column("last_seen", Moment),
    )
    add_index("ix_devices_available", "devices", "state", "claim_id", "shuffle")
    never_reuse_ids("devices")


def change_requests() -> None:
    """The state machine's columns, the queue, and what else may be asked for."""
    requests = sa.table("requests", sa.column("environment"))
    op.execute(requests.update().where(requests.c.environment.is_(None)).values(environment="any"))
    with op.batch_alter_table("requests") as batch:
        batch.alter_column("image_id", nullable=True, existing_type=Id)
        batch.alter_column("expires", type_=Moment, existing_type=sa.DateTime(), existing_nullable=False)
        batch.alter_column("state_timeout", type_=Moment, existing_type=sa.DateTime(), existing_nullable=True)
        batch.alter_column(
            "environment", nullable=False, existing_type=sa.String(32), existing_server_default=sa.text("'any'")
        )
    add_columns(
        "requests",
        sa.Column("created", Moment),
        *machine_columns(),
        sa.Column("hardware_type", sa.String(32)),
        sa.Column("hardware_model", sa.String(32)),
        sa.Column("labels", sa.Text, comment="JSON object: label to value, all must match"),
        number("priority"),
        number("wait", default="600", comment="seconds it may stay in the queue"),
        number("queue_key", sa.BigInteger(), comment="order in the queue, lowest first"),
        sa.Column("criteria", sa.String(40), comment="equal for requests that the same devices can serve"),
        sa.Column("callback_url", sa.Text),
        sa.Column("idempotency_key", sa.String(128)),
        sa.Column("body_hash", sa.String(40)),
        sa.Column("reason", sa.Text, comment="why it failed, was closed, or waits"),
    )
    add_index("ix_requests_expires", "requests", "expires")
    add_index("ix_requests_state_timeout", "requests", "state_timeout")
    add_unique_key("uq_requests_idempotency_key", "requests", "idempotency_key")
    add_index("ix_requests_queue", "requests", "state", "criteria", "queue_key", "id")
    never_reuse_ids("requests")


def change_relay_boards_and_logs() -> None:
    """What is known of any power switch, not of relay boards alone; timeouts with microseconds; ids of one kind."""
    with op.batch_alter_table("relay_boards") as batch:
        batch.alter_column("state_timeout", type_=Moment, existing_type=sa.DateTime(), existing_nullable=True)
    add_columns(
        "relay_boards",
        sa.Column("lane", sa.String(190), comment="of a switch that the server found itself"),
        sa.Column("state_since", Moment),
        sa.Column("reason", sa.Text, comment="why it is not ok"),
    )
    add_unique_key("uq_relay_boards_lane", "relay_boards", "lane")
    if on_mysql():
        # One statement a table: each makes these big tables anew.
        for table, key, kind in (("device_logs", "device_id", "INTEGER"), ("request_logs", "request_id", "BIGINT")):
            op.execute(
                sa.text(
                    f"ALTER TABLE {table} MODIFY id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT, "
                    f"MODIFY {key} {kind} UNSIGNED NOT NULL, MODIFY ts TIMESTAMP NOT NULL"
                )
            )
    else:
        with op.batch_alter_table("request_logs") as batch:
            batch.alter_column("request_id", type_=BigId, existing_type=sa.BigInteger(), existing_nullable=False)


def add_tables() -> None:
    """Labels, and the history of claims and states."""
    create(
        "device_labels",
        sa.Column("device_id", Id, sa.ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.String(190), nullable=False),
    )
    add_index("ix_device_labels_name_value", "device_labels", "name", "value")
    create(
        "claim_history",
        sa.Column("id", BigId, primary_key=True),
        sa.Column("request_id", BigId, nullable=False),
        sa.Column("device_id", Id, nullable=False),
        sa.Column("claimed_at", Moment, nullable=False),
        sa.Column("released_at", Moment),
        sa.Column("imaging_result", sa.String(32)),
        sa.Column("reason", sa.String(190), comment="why the device was given up"),
        sqlite_autoincrement=True,
    )
    add_index("ix_claim_history_request_id", "claim_history", "request_id")
    add_index("ix_claim_history_device_id", "claim_history", "device_id")
    for table, key, key_type in (("device_history", "device_id", Id), ("request_history", "request_id", BigId)):
        create(
            table,
            sa.Column("id", BigId, primary_key=True),
            sa.Column(key, key_type, nullable=False),
            sa.Column("ts", Moment, nullable=False),
            sa.Column("from_state", sa.String(32), nullable=False),
            sa.Column("to_state", sa.String(32), nullable=False),
            sa.Column("event", sa.String(64), nullable=False),
            sa.Column("version", sa.BigInteger, nullable=False),
            sa.Column("claim_id", BigId),
            sa.Column("token", sa.String(32)),
            sa.Column("detail", sa.String(255)),
        )
        add_index(f"ix_{table}_ts", table, "ts")
        add_index(f"ix_{table}_{key}_version", table, key, "version")


# -- what is in them ------------------------------------------------------------------------------------------------

devices = sa.table(
    "devices",
    *(
        sa.column(name)
        for name in ("id", "state", "state_timeout", "claim_id", "boot_config", "boot_config_hash", "shuffle")
    ),
)
requests = sa.table("requests", *(sa.column(name) for name in ("id", "state", "state_timeout")))
relay_boards = sa.table("relay_boards", sa.column("state"), sa.column("state_timeout"))
claims = sa.table("device_requests", *(sa.column(name) for name in ("id", "request_id", "device_id", "imaging_result")))
claim_history = sa.table(
    "claim_history",
    *(
        sa.column(name)
        for name in ("id", "request_id", "device_id", "claimed_at", "released_at", "imaging_result", "reason")
    ),
)


def rename_old_states() -> None:
    """States that 4.2.1 still met from before; names that are unknown stay, the state machines cope with them."""
    op.execute(devices.update().where(devices.c.state == "free").values(state="ready"))
    op.execute(requests.update().where(requests.c.state == "expired").values(state="closed"))
    # What 4.2.1 knew of a relay board is not known today: it is fine until it fails.
    op.execute(relay_boards.update().values(state="ok"))


def let_timeouts_fire(now: datetime) -> None:
    """4.2.1 kept timeouts in local time: rather than hours early or late they are due now."""
    for table in (devices, requests, relay_boards):
        op.execute(table.update().where(table.c.state_timeout.is_not(None)).values(state_timeout=now))


def give_claims_an_id(now: datetime) -> None:
    """Every claim of a device that exists by a request that exists gets a line in the history, and its id from there.

    The others are the orphans that the old clean-up job left.
    """
    if has_table("device_requests") and "id" not in columns_of("device_requests"):
        op.rename_table("device_requests", "device_requests_4_2_1")
    create(
        "device_requests",
        sa.Column("id", BigId, primary_key=True, autoincrement=False, comment="the claim's id, from claim_history"),
        sa.Column("request_id", BigId, sa.ForeignKey("requests.id", ondelete="RESTRICT"), nullable=False, unique=True),
        sa.Column("device_id", Id, sa.ForeignKey("devices.id", ondelete="RESTRICT"), nullable=False, unique=True),
        sa.Column("imaging_result", sa.String(32)),
    )
    if has_table("device_requests_4_2_1"):
        copy_claims(now)
        op.drop_table("device_requests_4_2_1")
    mine = sa.select(claims.c.id).where(claims.c.device_id == devices.c.id).correlate(devices)
    op.execute(devices.update().values(claim_id=mine.scalar_subquery()))


def copy_claims(now: datetime) -> None:
    """From the old table into the history, and from both into the new table."""
    old = sa.table(
        "device_requests_4_2_1", *(sa.column(name) for name in ("request_id", "device_id", "imaging_result"))
    )
    known = sa.select(sa.literal(1)).where(claim_history.c.request_id == old.c.request_id)
    op.execute(
        claim_history.insert().from_select(
            ["request_id", "device_id", "claimed_at", "imaging_result"],
            sa.select(old.c.request_id, old.c.device_id, sa.literal(now, Moment), old.c.imaging_result)
            .join(requests, requests.c.id == old.c.request_id)
            .join(devices, devices.c.id == old.c.device_id)
            .where(~known.correlate(old).exists())
            .order_by(old.c.request_id),
        )
    )
    taken = sa.select(sa.literal(1)).where(claims.c.request_id == claim_history.c.request_id)
    op.execute(
        claims.insert().from_select(
            ["id", "request_id", "device_id", "imaging_result"],
            sa.select(claim_history.c.id, old.c.request_id, old.c.device_id, old.c.imaging_result)
            .join(old, old.c.request_id == claim_history.c.request_id)
            .where(~taken.correlate(claim_history).exists()),
        )
    )


def release_claims_of_ended_requests(now: datetime) -> None:
    """In 4.2.1 an ended request could still hold its device."""
    ended = sa.select(requests.c.id).where(
        (requests.c.state == "closed") | requests.c.state.startswith("failed_", autoescape=True)
    )
    released = sa.select(claims.c.id).where(claims.c.request_id.in_(ended))
    op.execute(devices.update().where(devices.c.claim_id.in_(released)).values(claim_id=None))
    op.execute(
        claim_history.update()
        .where(claim_history.c.request_id.in_(ended), claim_history.c.released_at.is_(None))
        .values(released_at=now, reason="its request had ended before the upgrade")
    )
    op.execute(claims.delete().where(claims.c.request_id.in_(ended)))


def describe_devices() -> None:
    """What the choice of a device needs: a comparable boot config, and a place in a random order."""
    draw = sa.text("FLOOR(RAND() * 2147483647)" if on_mysql() else "ABS(RANDOM()) % 2147483647")
    op.execute(devices.update().values(shuffle=draw))
    for device_id, boot_config in op.get_bind().execute(sa.select(devices.c.id, devices.c.boot_config)).all():
        values = {"boot_config_hash": boot_config_hash(boot_config)}
        op.execute(devices.update().where(devices.c.id == device_id).values(values))


# -- tools ----------------------------------------------------------------------------------------------------------


def on_mysql() -> bool:
    """Whether this is MySQL or MariaDB."""
    return op.get_bind().dialect.name != "sqlite"


def has_table(name: str) -> bool:
    """Whether the table exists at this moment."""
    return sa.inspect(op.get_bind()).has_table(name)


def columns_of(table: str) -> set[str]:
    """The names of the columns that the table has at this moment."""
    return {str(column["name"]) for column in sa.inspect(op.get_bind()).get_columns(table)}


def machine_columns() -> list[sa.Column[Any]]:
    """What the new state machine keeps, besides the old columns."""
    return [
        sa.Column("state_since", Moment),
        number("version", sa.BigInteger()),
        number("attempt", sa.BigInteger()),
        sa.Column("token", sa.String(32)),
    ]


def number(name: str, kind: Any = sa.Integer, default: str = "0", comment: str | None = None) -> sa.Column[Any]:
    """A number that old rows have, too."""
    return sa.Column(name, kind, nullable=False, server_default=default, comment=comment)


def create(name: str, *parts: Any, **options: Any) -> None:
    """Make an InnoDB table, unless an interrupted run has made it."""
    op.create_table(name, *parts, if_not_exists=True, mysql_engine="InnoDB", mysql_charset="utf8mb4", **options)


def add_columns(table: str, *columns: sa.Column[Any]) -> None:
    """Add those columns that are missing."""
    present = columns_of(table)
    with op.batch_alter_table(table) as batch:
        for column in columns:
            if column.name not in present:
                batch.add_column(column)


def add_index(name: str, table: str, *columns: str) -> None:
    """Add the index if it is missing."""
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, list(columns))


def add_unique_key(name: str, table: str, *columns: str) -> None:
    """Add the key if it is missing."""
    if name not in {key["name"] for key in sa.inspect(op.get_bind()).get_unique_constraints(table)}:
        with op.batch_alter_table(table) as batch:
            batch.create_unique_constraint(name, list(columns))


def never_reuse_ids(table: str) -> None:
    """Let SQLite remember the highest id there ever was, as MySQL does.

    It does so only for a table made that way; any later change that makes the table anew has to say so again.
    """
    if not on_mysql():
        with op.batch_alter_table(table, recreate="always", table_kwargs={"sqlite_autoincrement": True}):
            pass


def take_any_character(table: str) -> None:
    """Old tables are in the server's character set of their time, often latin1. Texts keep their type."""
    connection = op.get_bind()
    collation = connection.scalar(
        sa.text(
            "SELECT table_collation FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND table_name = :table"
        ),
        {"table": table},
    )
    if not str(collation).startswith("utf8mb4"):
        quoted = connection.dialect.identifier_preparer.quote(table)
        # The old row formats have no room for an index on 255 characters of four bytes.
        op.execute(sa.text(f"ALTER TABLE {quoted} ROW_FORMAT=DYNAMIC, CONVERT TO CHARACTER SET utf8mb4"))
    for column in sa.inspect(connection).get_columns(table):
        if isinstance(column["type"], mysql.MEDIUMTEXT):
            op.alter_column(table, column["name"], type_=sa.Text(), existing_nullable=column["nullable"])


def name_keys(table: str) -> None:
    """Give foreign keys and indexes the names that they have in a new database: the old server made them up."""
    quote = op.get_bind().dialect.identifier_preparer.quote
    inspector = sa.inspect(op.get_bind())
    names = {}  # of the indexes that belong to foreign keys, by their columns
    for key in inspector.get_foreign_keys(table):
        (column,) = key["constrained_columns"]
        name = f"fk_{table}_{column}"
        names[(column,)] = name
        if key["name"] != name:
            # In one statement, so that no interruption loses a key.
            op.execute(
                sa.text(
                    f"ALTER TABLE {quote(table)} DROP FOREIGN KEY {quote(str(key['name']))}, "
                    f"ADD CONSTRAINT {quote(name)} FOREIGN KEY ({quote(column)}) "
                    f"REFERENCES {quote(key['referred_table'])} (id) ON DELETE RESTRICT"
                )
            )
    inspector = sa.inspect(op.get_bind())
    present = {str(index["name"]) for index in inspector.get_indexes(table)}
    for index in inspector.get_indexes(table):
        old, columns = str(index["name"]), tuple(str(name) for name in index["column_names"])
        if old.startswith(("ix_", "uq_", "fk_")):
            continue  # ours already, from an interrupted run
        kind = "uq" if index["unique"] else "ix"
        name = f"{kind}_{table}_{'_'.join(columns)}"
        if not index["unique"]:
            name = names.get(columns, name)
        if name in present:
            op.drop_index(old, table)
        else:
            op.execute(sa.text(f"ALTER TABLE {quote(table)} RENAME INDEX {quote(old)} TO {quote(name)}"))
            present.add(name)
