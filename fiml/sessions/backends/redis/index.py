"""The indexes in Redis: how they name a session, and the commands that add a session and remove it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from fiml.core.clock import to_micros
from fiml.db.redis_commands import Command
from fiml.sessions.backends.redis import fields, keys
from fiml.sessions.records import Header
from fiml.sessions.rights import users_in

LATER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Place:
    """One life of a session in the indexes: its entry in the listings, and whose listings it is in."""

    session_id: UUID
    user_id: str | None
    listed_member: str
    given_to: tuple[str, ...] = ()

    @property
    def expiry_member(self) -> str:
        """The entry in the expiry index: that of the listings, and the user."""
        return f"{self.listed_member}:{self.user_id or ''}"

    @property
    def given_expiry_members(self) -> list[str]:
        """The entries in the expiry index for the users it is shared with, so that their listings are cleared too."""
        return [f"{self.listed_member}~{user_id}" for user_id in self.given_to]

    @property
    def listings(self) -> list[str]:
        """The keys of the listings that it is in."""
        everybody = keys.all_key(keys.part(self.session_id))
        own = [] if self.user_id is None else [keys.user_key(self.user_id)]
        return [everybody, *own, *(keys.given_key(user_id) for user_id in self.given_to)]

    @property
    def expiry_key(self) -> str:
        """The key of the part of the expiry index that it is in."""
        return keys.expiry_key(keys.part(self.session_id))


@dataclass(frozen=True, slots=True)
class ExpiryEntry:
    """An entry of the expiry index, as it was when it was read: a life that may have expired."""

    place: Place
    life: int
    score: int
    member: str

    @property
    def session_id(self) -> UUID:
        return self.place.session_id


def place_of(header: Header) -> Place:
    """The place of a session in the indexes."""
    member = fields.listed_member(header.created_at, header.id, header.life)
    return Place(header.id, header.user_id, member, tuple(users_in(header.grants)))


def expiry_entry(member: bytes, score: float) -> ExpiryEntry:
    """An entry from its member and score."""
    text = member.decode()
    end = next(index for index in range(fields.POSITION_CHARACTERS, len(text)) if text[index] in ":~")
    listed_member, separator, user_id = text[:end], text[end], text[end + 1 :]
    session_id = fields.id_at(listed_member)
    if separator == ":":
        place = Place(session_id, user_id or None, listed_member)
    else:
        place = Place(session_id, None, listed_member, (user_id,))
    return ExpiryEntry(place, fields.life_at(listed_member), int(score), text)


def enter(header: Header) -> list[Command]:
    """The commands that add a session to all indexes. If it is there with an earlier expiry, that one stays."""
    place = place_of(header)
    listed: list[Command] = [("ZADD", key, 0, place.listed_member) for key in place.listings]
    return [*listed, _at_the_latest(place, header.expires_at), *_enter_given(place, header.expires_at)]


def enter_given(place: Place, user_id: str, expires_at: datetime) -> list[Command]:
    """The commands that add a session to the listing of a user it is shared with."""
    given = replace(place, given_to=(user_id,))
    return [("ZADD", keys.given_key(user_id), 0, place.listed_member), *_enter_given(given, expires_at)]


def leave_given(place: Place, user_id: str) -> tuple[list[Command], list[Command]]:
    """The commands that undo `enter_given`, in two stages like those of `leave`."""
    given = replace(place, given_to=(user_id,))
    return (
        [("ZREM", keys.given_key(user_id), place.listed_member)],
        [("ZREM", place.expiry_key, *given.given_expiry_members)],
    )


def _enter_given(place: Place, expires_at: datetime) -> list[Command]:
    # Later than the entry of the session itself, with which they are usually removed.
    micros = to_micros(expires_at + LATER)
    return [("ZADD", place.expiry_key, micros, member) for member in place.given_expiry_members]


def expire_by(header: Header, expires_at: datetime) -> list[Command]:
    """The commands that let the sweeper look at a session at a time, or earlier if its entry says so already.

    The entry changes in any case, so that a sweeper that looked at the session before doesn't move it.
    """
    place = place_of(header)
    return [_at_the_latest(place, expires_at), ("ZADD", place.expiry_key, "INCR", -1, place.expiry_member)]


def _at_the_latest(place: Place, expires_at: datetime) -> Command:
    return ("ZADD", place.expiry_key, "LT", to_micros(expires_at), place.expiry_member)


def leave(places: Iterable[Place]) -> tuple[list[Command], list[Command]]:
    """The commands that remove lives from all indexes, one command for each index, in two stages.

    The expiry index comes last: as long as it has an entry, a sweeper can find and drop the others.
    """
    listed: dict[str, list[str]] = defaultdict(list)
    expiring: dict[str, list[str]] = defaultdict(list)
    for place in places:
        for key in place.listings:
            listed[key].append(place.listed_member)
        expiring[place.expiry_key] += [place.expiry_member, *place.given_expiry_members]
    return _removals(listed), _removals(expiring)


def _removals(members_of: dict[str, list[str]]) -> list[Command]:
    return [("ZREM", key, *members) for key, members in members_of.items()]
