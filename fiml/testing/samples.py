"""Sessions and queries for tests, with defaults, so that a test names only what matters to it."""

from typing import Any

from fiml.sessions.models import QueryRecord, Session, SessionType


def make_session(**fields: Any) -> Session:
    """A session that isn't in any store: about AAPL and of the type equity, unless `fields` say otherwise."""
    return Session(**({"assets": ["AAPL"], "type": SessionType.EQUITY} | fields))


def make_query(query_type: str = "price", **fields: Any) -> QueryRecord:
    """A query for AAPL's price, unless the arguments say otherwise."""
    return QueryRecord(query_type, **({"parameters": {"symbol": "AAPL"}} | fields))
