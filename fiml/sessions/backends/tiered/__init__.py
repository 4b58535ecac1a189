"""The server deployment: live sessions in Redis, archived ones in PostgreSQL."""
