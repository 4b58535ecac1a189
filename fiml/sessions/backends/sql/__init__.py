"""Sessions in SQL on PostgreSQL and SQLite alike: the archive and all that is stored about sessions."""
