# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Jobs on devices in a cloud: what is known of each."""

import sqlalchemy as sa
from alembic import op

from mozpool.db.tables import hosted_jobs

revision = "0010_0003"
down_revision = "0009_0003"


def upgrade() -> None:
    # An interrupted run may have done a part of it: MySQL takes nothing back.
    hosted_jobs.create(op.get_bind(), checkfirst=True)
