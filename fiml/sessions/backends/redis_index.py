"""The indexes in Redis: how they name a session, and the commands that enter it and take it out."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from fiml.core.clock import to_micros
from fiml.db.redis_client import Command
from fiml.sessions.backends import redis_fields as fields
from fiml.sessions.backends import redis_keys as keys
from fiml.sessions.records import Header


@dataclass(frozen=True, slots=True)
class Place:
    """One life of a session as the indexes name it: its member in the listings, and the user whose listing it is in."""

    session_id: UUID
    user_id: str | None
    listed_member: str

    @property
    def expiry_member(self) -> str:
        """How the expiry index names it: as the listings do, and with the user."""
        return f"{self.listed_member}:{self.user_id or ''}"

    @property
    def listings(self) -> list[str]:
        """The listings that it is in."""
        everybody = keys.all_key(keys.part(self.session_id))
        return [everybody] if self.user_id is None else [everybody, keys.user_key(self.user_id)]

    @property
    def expiry_key(self) -> str:
        """The part of the expiry index that it is in."""
        return keys.expiry_key(keys.part(self.session_id))


@dataclass(frozen=True, slots=True)
class ExpiryEntry:
    """An entry of the expiry index: a life of which it may be time, as of when it was read."""

    place: Place
    life: int
    score: int

    @property
    def session_id(self) -> UUID:
        return self.place.session_id


def place_of(header: Header) -> Place:
    """Where a session stands in the indexes."""
    return Place(header.id, header.user_id, fields.listed_member(header.created_at, header.id, header.life))


def expiry_entry(member: bytes, score: float) -> ExpiryEntry:
    """An entry from its member and score."""
    listed_member, _, user_id = member.decode().partition(":")
    place = Place(fields.id_at(listed_member), user_id or None, listed_member)
    return ExpiryEntry(place, fields.life_at(listed_member), int(score))


def enter(header: Header) -> list[Command]:
    """The commands that enter a session everywhere."""
    place = place_of(header)
    listed: list[Command] = [("ZADD", key, 0, place.listed_member) for key in place.listings]
    return [*listed, enter_expiry(header, to_micros(header.expires_at))]


def enter_expiry(header: Header, micros: int) -> Command:
    """The command that lets the sweeper look at a session at a time."""
    place = place_of(header)
    return ("ZADD", place.expiry_key, micros, place.expiry_member)


def leave(places: Iterable[Place]) -> list[Command]:
    """The commands that take lives out of all indexes, one for each index that names some of them."""
    listed: dict[str, list[str]] = defaultdict(list)
    expiring: dict[str, list[str]] = defaultdict(list)
    for place in places:
        for key in place.listings:
            listed[key].append(place.listed_member)
        expiring[place.expiry_key].append(place.expiry_member)
    # The expiry last: while it is there, a sweeper can find and drop the others.
    return [("ZREM", key, *members) for index in (listed, expiring) for key, members in index.items()]
