"""The server deployment: live sessions in Redis, ended ones in PostgreSQL."""
