"""Every error fiml raises on purpose.

FimlError
├── InvalidInput            correct the input
│   ├── InvalidSessionId
│   └── SymbolNotFound
├── SessionNotFound         no such session, or not yours
├── SessionExpired          resume it
├── SessionArchived         resume it
├── SessionFull             begin a new one
├── SessionConflict         read again, then write again
├── SessionOnHold           release it first
├── NotPermitted            ask somebody who may do it
├── NotSupported            find another way
├── Unavailable             try again later
│   ├── Unconfirmed         the write was done but could be lost: read again first
│   ├── RateLimited         try again at the named time
│   └── BadData             the provider's answer can't be used
├── Misconfigured           tell the operator
│   ├── MissingExtra
│   ├── MissingKey          a session is encrypted with a key that this process doesn't have
│   ├── SchemaOutdated
│   └── SchemaTooNew
├── RecordRefused           the database refuses a session's record; nothing was changed
└── CorruptRecord           a stored record can't be read; nothing was changed
    ├── NotEncrypted        an operator encrypts it, or finds out who wrote it
    └── SessionQuarantined  an operator fixes the cause, then retries it
"""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

_ECHO_CHARACTERS = 80


def echo(value: object) -> str:
    """A caller's value, made safe for a message: escaped, at most 80 characters, text in quotes."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # an integer with too many digits to convert
        return f"a very long {type(value).__name__}"
    cut = text if len(text) <= _ECHO_CHARACTERS else text[: _ECHO_CHARACTERS - 1] + "…"
    if not cut.isprintable():
        escaped = ascii(cut)
        return escaped if len(escaped) <= _ECHO_CHARACTERS else escaped[: _ECHO_CHARACTERS - 2] + "…'"
    return f"'{cut}'" if isinstance(value, str) else cut


class FimlError(Exception):
    """The root. `code` is for machines; the message says what, which and the next step."""

    code: ClassVar[str] = "error"

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies, and for other processes: `__init__` takes other arguments than the message."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[FimlError], args: tuple[Any, ...], attributes: dict[str, Any]) -> FimlError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class InvalidInput(FimlError):
    """A value was refused; nothing was written."""

    code = "invalid_input"

    def __init__(self, field: str, problem: str, valid: str) -> None:
        self.field = field
        self.problem = problem
        self.valid = valid
        super().__init__(f"{field} {problem}; {valid}")


class InvalidSessionId(InvalidInput):
    """The text doesn't have the form of a session's id."""

    code = "invalid_session_id"

    def __init__(self, value: object) -> None:
        self.value = value
        super().__init__(
            "session id",
            f"{echo(value)} is malformed",
            "give the UUID that creating the session returned, or list the sessions to find it",
        )


class SymbolNotFound(InvalidInput):
    """The market has no such symbol.

    Attributes:
        known: all symbols that the source has, or the nearest ones (`is_nearest`).
        meant: the symbol of the instrument whose name was given instead.
    """

    code = "symbol_not_found"

    def __init__(
        self, symbol: str, *, source: str, known: list[str], is_nearest: bool = False, meant: str | None = None
    ) -> None:
        self.symbol = symbol
        self.source = source
        self.known = known
        self.is_nearest = is_nearest
        self.meant = meant
        listed = ", ".join(known)
        next_step = f"it has {listed}" if meant is None else f"did you mean {meant}? It has {listed}"
        if is_nearest:
            next_step = f"the nearest are {listed}" if known else "look the symbol up, and name its market or exchange"
        super().__init__("symbol", f"{echo(symbol)} is not in the {source} data", next_step)


class _AboutSession(FimlError):
    def __init__(self, session_id: UUID, message: str) -> None:
        self.session_id = session_id
        super().__init__(message)


class SessionNotFound(_AboutSession):
    """No session has this id, or it is another user's."""

    code = "session_not_found"

    def __init__(self, session_id: UUID) -> None:
        super().__init__(session_id, f"no session {session_id}; list the sessions to find it, or create one")


class SessionExpired(_AboutSession):
    """The session has expired and waits to be archived; it can be read and resumed."""

    code = "session_expired"

    def __init__(self, session_id: UUID, expired_at: datetime) -> None:
        self.expired_at = expired_at
        super().__init__(
            session_id,
            f"session {session_id} expired at {expired_at:%Y-%m-%dT%H:%M:%SZ}; "
            "it can still be read; resume it to continue (resume_session, or `fiml sessions resume`)",
        )


class SessionArchived(_AboutSession):
    """The session is in the archive; it can be read and resumed."""

    code = "session_archived"

    def __init__(self, session_id: UUID) -> None:
        super().__init__(
            session_id,
            f"session {session_id} is archived; "
            "it can still be read; resume it to continue (resume_session, or `fiml sessions resume`)",
        )


class SessionFull(_AboutSession):
    """The session has reached a limit: of queries, of their bytes, or of changes."""

    code = "session_full"

    def __init__(
        self, session_id: UUID, limit: str, *, setting: str | None = "FIML_SESSION_MAX_QUERIES_PER_SESSION"
    ) -> None:
        self.limit = limit
        self.setting = setting
        raise_it = f", or raise {setting}" if setting else ""
        super().__init__(
            session_id,
            f"session {session_id} is full: it holds at most {limit}; create a new session to continue{raise_it}",
        )


class SessionConflict(_AboutSession):
    """Somebody else wrote to the session in between; `expected` and `actual` are versions."""

    code = "session_conflict"

    def __init__(self, session_id: UUID, *, expected: int, actual: int) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(
            session_id,
            f"session {session_id} is at version {actual}, not {expected}; read it again and repeat the change",
        )


class SessionOnHold(_AboutSession):
    """The session is on legal hold: neither a caller nor retention can delete it."""

    code = "session_on_hold"

    def __init__(self, session_id: UUID, reason: str) -> None:
        self.reason = reason
        super().__init__(
            session_id,
            f"session {session_id} is on hold ({echo(reason)}) and can't be deleted; "
            "release it first (store.release, or `fiml sessions release`)",
        )


class NotPermitted(FimlError):
    """The principal may not do this."""

    code = "not_permitted"

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(f"{what}; {next_step}")


class NotSupported(FimlError):
    """fiml, or this deployment of it, doesn't do this."""

    code = "not_supported"

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(f"{what}; {next_step}")


class Unavailable(FimlError):
    """An engine or a provider is unavailable; the call may have had no effect, and may be repeated."""

    code = "unavailable"

    def __init__(self, what: str, reason: str, next_step: str = "try again, or run `fiml doctor`") -> None:
        self.what = what
        super().__init__(f"{what} is unavailable ({reason}); {next_step}")


class Unconfirmed(Unavailable):
    """A write was done, but reached fewer replicas than `FIML_REDIS_WAIT_REPLICAS`: a failover could lose it.

    Attributes:
        reached: how many replicas have the write.
        wanted: how many should have it.
        session_id: the session that the call created, whose id the caller learns only here; `None` for other calls.
    """

    code = "unconfirmed"

    def __init__(self, what: str, reached: int, wanted: int, *, session_id: UUID | None = None) -> None:
        super().__init__(what, "replicas")
        self.reached = reached
        self.wanted = wanted
        self.session_id = session_id
        which = "the session" if session_id is None else f"the new session {session_id}"
        self.args = (
            f"{what} made the change, but only {reached} of {wanted} replicas have it (FIML_REDIS_WAIT_REPLICAS), so "
            f"a failover could lose it; read {which} before you try again, and run `fiml doctor`",
        )


class RateLimited(Unavailable):
    """A provider, or fiml itself on HTTP, accepts no more calls until `retry_at`."""

    code = "rate_limited"

    def __init__(self, what: str, retry_at: datetime) -> None:
        super().__init__(what, "rate limit")
        self.retry_at = retry_at
        self.args = (f"{what} accepts no more calls for now; try again at {retry_at:%Y-%m-%dT%H:%M:%SZ}",)


class BadData(Unavailable):
    """A provider's answer can't be used: it isn't JSON, a figure has the wrong type, or a price is below zero."""

    code = "bad_data"

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(what, problem)
        self.problem = problem
        self.args = (f"the answer from {what} can't be used ({problem}); try again later",)


class Misconfigured(FimlError):
    """A setting or the installation is wrong; an operator has to fix it."""

    code = "misconfigured"


class MissingExtra(Misconfigured):
    """A part is needed, but its extra is not installed."""

    code = "missing_extra"

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs the extra [{extra}]; install it with: pip install 'fiml[{extra}]'")


class MissingKey(Misconfigured):
    """A record is encrypted with a key that this process doesn't have."""

    code = "missing_key"

    def __init__(self, record: str, key_id: str) -> None:
        self.record = record
        self.key_id = key_id
        super().__init__(
            f"{record} is encrypted with the key {echo(key_id)}, which this process doesn't have; "
            "set FIML_ENCRYPTION_KEYS to the file that has it (`fiml keys list` shows which keys a file has)"
        )


class SchemaOutdated(Misconfigured):
    """The database is behind this version of fiml."""

    code = "schema_outdated"

    def __init__(self, found: str, needed: str) -> None:
        self.found = found
        self.needed = needed
        super().__init__(f"the database is at schema {found}, this fiml needs {needed}; run `fiml db upgrade`")


class SchemaTooNew(Misconfigured):
    """The database, or a record in it, was written by a later version of fiml."""

    code = "schema_too_new"

    def __init__(self, found: str, known: str, *, what: str = "schema", needs: str = "") -> None:
        self.found = found
        self.known = known
        self.needs = needs or None
        newer = f"fiml {needs} or newer" if needs else "a newer fiml"
        super().__init__(
            f"the database holds {what} {found}, but this fiml supports none later than {known}; install {newer}"
        )


class RecordRefused(FimlError):
    """The database is reachable but will never accept this record; the session was left where it is."""

    code = "record_refused"

    def __init__(self, record: str, problem: str) -> None:
        self.record = record
        self.problem = problem
        super().__init__(f"the database refuses {record} ({problem}); the next sweep moves it to quarantine")


class CorruptRecord(FimlError):
    """A stored record can't be read. It was left as it is."""

    code = "corrupt_record"

    def __init__(self, record: str, problem: str) -> None:
        self.record = record
        self.problem = problem
        super().__init__(
            f"{record} can't be read ({problem}); it was left as it is: restore it from a backup, or delete it"
        )


class NotEncrypted(CorruptRecord):
    """A value is in plaintext, but encrypted values are expected: it predates encryption, or fiml didn't write it."""

    code = "not_encrypted"

    def __init__(self, record: str, where: str) -> None:
        super().__init__(record, f"{where} is not encrypted")
        self.where = where
        self.args = (
            f"{record} can't be read: {where} is not encrypted, but FIML_ENCRYPTION_KEYS is set; "
            "`fiml keys rotate --encrypt-plaintext` encrypts the sessions from before it was set",
        )


class SessionQuarantined(CorruptRecord):
    """The session could not be archived and was set aside, with its bytes and the reason."""

    code = "session_quarantined"

    def __init__(self, session_id: UUID, reason: str) -> None:
        super().__init__(f"session {session_id}", reason)
        self.session_id = session_id
        self.args = (
            f"session {session_id} is in quarantine: {reason}; "
            f"`fiml sessions quarantine show {session_id}` shows it, and `quarantine retry` tries again",
        )
