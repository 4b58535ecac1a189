"""The embedded deployment: live and archived sessions in one SQLite file."""
