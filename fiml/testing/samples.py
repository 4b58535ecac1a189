"""Sessions and queries for tests, of which a test names only what matters to it."""

from typing import Any

from fiml.sessions.models import QueryRecord, Session, SessionType


def make_session(**fields: Any) -> Session:
    """A session that no store knows: on AAPL, of the type equity, unless `fields` say otherwise."""
    return Session(**({"assets": ["AAPL"], "type": SessionType.EQUITY} | fields))


def make_query(query_type: str = "price", **fields: Any) -> QueryRecord:
    """A query of AAPL's price, unless told otherwise."""
    return QueryRecord(query_type, **({"parameters": {"symbol": "AAPL"}} | fields))
