# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""An index with all that tells which lines are on a page of a log, in place of one that only knew whose they are."""

import sqlalchemy as sa
from alembic import op

revision = "0009_0003"
down_revision = "0008_0003"

LOGS = (("device_logs", "device_id"), ("request_logs", "request_id"))


def upgrade() -> None:
    # An interrupted run may have done a part of it: MySQL takes nothing back.
    inspector = sa.inspect(op.get_bind())
    for table, key in LOGS:
        there = {index["name"] for index in inspector.get_indexes(table)}
        if f"ix_{table}_page" not in there:
            op.create_index(f"ix_{table}_page", table, [key, "id", "ts"])
        if f"ix_{table}_{key}" in there:
            op.drop_index(f"ix_{table}_{key}", table)
