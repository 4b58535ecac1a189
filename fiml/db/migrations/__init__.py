"""Alembic migrations, run by `fiml.db.schema`."""
