# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Where Alembic starts: runs the migrations on the connection that it is given, in its open transaction."""

from alembic import context
from sqlalchemy import Engine

from mozpool.db.tables import metadata

connection = context.config.attributes["connection"]
if isinstance(connection, Engine):
    connection = connection.connect()
# With the metadata come its rules for the names of keys and indexes, which unnamed ones in the migrations get.
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
