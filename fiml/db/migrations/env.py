"""Runs the migrations on the connection that `fiml.db.schema` passes in, inside its transaction."""

from alembic import context

from fiml.db.schema import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
