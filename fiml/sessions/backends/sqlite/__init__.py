"""The embedded deployment: live and ended sessions in one SQLite file."""
