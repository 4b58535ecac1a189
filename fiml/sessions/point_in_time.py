"""What a session knew at a moment, from records that never change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from fiml.core import clock
from fiml.sessions.notes import Note, notes_in
from fiml.sessions.queries import QueryRecord, market_moment_to_iso


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFigure:
    """A number from a record: `as_of` is the market's time, `known_at` when all of the record was known.

    `as_of` and `currency` are those of the record's price; its `result_summary` says where other figures differ.
    """

    value: float
    as_of: date | None
    known_at: datetime
    provider: str | None
    currency: str | None
    adjustment: str | None
    record_id: UUID

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "value": self.value,
            "as_of": None if self.as_of is None else market_moment_to_iso(self.as_of),
            "known_at": clock.to_iso(self.known_at),
            "provider": self.provider,
            "currency": self.currency,
            "adjustment": self.adjustment,
            "record_id": str(self.record_id),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownContext:
    """What was known at `moment`.

    `figures` has the latest figures: `QueryRecord.subject` -> name -> figure.
    """

    moment: datetime
    queries: list[QueryRecord]
    figures: dict[str, dict[str, KnownFigure]]
    notes: list[Note]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "moment": clock.to_iso(self.moment),
            "queries": [query.to_dict() for query in self.queries],
            "figures": {
                symbol: {name: figure.to_dict() for name, figure in figures.items()}
                for symbol, figures in self.figures.items()
            },
            "notes": [note.to_dict() for note in self.notes],
        }


def known_by(moment: datetime, queries: Sequence[QueryRecord], context: Mapping[str, Any]) -> KnownContext:
    """The part of a session that was known at a moment."""
    known = [query for query in queries if query.was_known_by(moment)]
    figures: dict[str, dict[str, KnownFigure]] = {}
    # The answer that was learnt last counts: a later question may have got an older answer from a cache.
    for query in sorted(known, key=lambda query: (query.known_at or query.timestamp, query.timestamp)):
        if query.subject is not None and query.figures:
            figures.setdefault(query.subject, {}).update(_figures_of(query))
    notes = [note for note in notes_in(context) if note.written_at <= moment]
    return KnownContext(moment=moment, queries=known, figures=figures, notes=notes)


def _figures_of(query: QueryRecord) -> dict[str, KnownFigure]:
    return {
        name: KnownFigure(
            value=value,
            as_of=query.as_of,
            known_at=query.known_at or query.timestamp,
            provider=query.provider,
            currency=query.currency,
            adjustment=query.adjustment,
            record_id=query.id,
        )
        for name, value in query.figures.items()
    }
