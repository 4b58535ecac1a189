"""Engines, tables, migrations and the Redis client. Knows nothing of the rules of sessions."""
