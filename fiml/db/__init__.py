"""Engines, tables, migrations, the Redis client. Knows no rules of sessions."""
